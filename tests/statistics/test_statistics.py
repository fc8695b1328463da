"""Intervals against textbook numbers and against 2000 simulated experiments; tests against exact counts."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from upft.statistics import GAIN, LOSS, NOISE, accuracy, paired, smallest_detectable
from upft.statistics.means import mean_interval
from upft.statistics.pairs import difference_interval

EXPERIMENTS = 2000


def column(*values: int) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(("right", "questions"), [(0, 30), (1, 30), (17, 30), (30, 30), (727, 1319)])
def test_one_sample_a_question_is_wilsons_interval(right: int, questions: int) -> None:
    estimate = accuracy(column(*[1] * right + [0] * (questions - right)))
    expected = stats.binomtest(right, questions).proportion_ci(method="wilson")
    assert estimate.value == pytest.approx(right / questions)
    assert estimate.low == pytest.approx(expected.low, abs=1e-12)
    assert estimate.high == pytest.approx(expected.high, abs=1e-12)


def test_several_samples_by_hand() -> None:
    # question means 1, 1/2, 0, 1/2: p = 1/2, variance (1/4 + 0 + 1/4 + 0)/3 = 1/6, SE² = 1/24, n = (1/4)/(1/24) = 6
    estimate = accuracy([[1, 1], [1, 0], [0, 0], [0, 1]])
    # two samples: Wilson's for 15/16, Hall's for 1/16, whose cubic is the identity without skewness
    z, t, weight = stats.norm.ppf(0.975), stats.t.ppf(0.975, 3), (1 / 2) ** 4
    wilson = z / (1 + z * z / 6) * math.sqrt(0.25 / 6 + z * z / 144)
    half = (1 - weight) * wilson + weight * t / math.sqrt(24)
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - half)
    assert estimate.high == pytest.approx(0.5 + half)


def test_copied_samples_add_no_certainty() -> None:
    once = np.random.default_rng(0).integers(0, 2, (200, 1))
    single, copied = accuracy(once), accuracy(np.repeat(once, 16, axis=1))
    assert copied.high - copied.low >= single.high - single.low
    assert copied.high - copied.low < 1.02 * (single.high - single.low)


def test_independent_samples_add_certainty_and_never_more_than_their_number() -> None:
    rng = np.random.default_rng(0)
    alike = (rng.random((200, 16)) < 0.5).astype(float)  # every question as hard as every other
    estimate = accuracy(alike)
    pooled = stats.binomtest(int(alike.sum()), alike.size).proportion_ci(method="wilson")
    assert 0.85 * (pooled.high - pooled.low) <= estimate.high - estimate.low < 1.3 * (pooled.high - pooled.low)
    # every question exactly half right: means do not vary, which says nothing about how they could
    balanced = accuracy(np.tile([1.0, 0.0], (30, 8)))
    z = stats.norm.ppf(0.975)
    assert balanced.high - balanced.low == pytest.approx(2 * z / (1 + z * z / 30) * math.sqrt(0.25 / 30 + z * z / 3600))


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_alike_still_has_a_width(value: float, samples: int) -> None:
    estimate = accuracy(np.full((30, samples), value))
    assert estimate.value == value
    assert 0.08 < estimate.high - estimate.low < 0.16
    assert 0.0 <= estimate.low <= value <= estimate.high <= 1.0


@pytest.mark.parametrize("spread", [(1, 1), (2, 2), (3, 1), (0.5, 0.5), (8, 2)])
@pytest.mark.parametrize(("questions", "samples"), [(30, 4), (30, 16), (30, 64), (100, 8), (500, 4)])
def test_accuracy_covers_the_truth(questions: int, samples: int, spread: tuple[float, float]) -> None:
    rng = np.random.default_rng([questions, samples, int(10 * spread[0]), int(10 * spread[1])])
    difficulty = rng.beta(*spread, (EXPERIMENTS, questions, 1))
    correct = rng.random((EXPERIMENTS, questions, samples), dtype=np.float32) < difficulty
    truth = spread[0] / sum(spread)
    _, low, high = mean_interval(correct.mean(axis=-1), samples, samples)
    covered = np.mean((low <= truth) & (truth <= high))
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("spread", [(1, 1), (2, 2), (3, 1), (0.5, 0.5), (8, 2)])
@pytest.mark.parametrize("questions", [30, 500])
def test_accuracy_covers_the_truth_with_one_sample(questions: int, spread: tuple[float, float]) -> None:
    rng = np.random.default_rng(questions)
    right = (rng.random((EXPERIMENTS, questions)) < rng.beta(*spread, (EXPERIMENTS, questions))).sum(axis=1)
    by_count = [accuracy(column(*[1] * n + [0] * (questions - n))) for n in range(questions + 1)]
    truth = spread[0] / sum(spread)
    assert 0.93 <= np.mean([by_count[n].low <= truth <= by_count[n].high for n in right]) <= 0.97


def test_one_sample_covers_exactly_as_often_as_a_lattice_lets_it() -> None:
    # 30 answers take 31 values, so coverage jumps with the true accuracy; it is right on average and never far off
    estimates = [accuracy(column(*[1] * n + [0] * (30 - n))) for n in range(31)]
    low, high = (np.array([getattr(e, end) for e in estimates]) for end in ("low", "high"))
    coverage = [stats.binom.pmf(np.arange(31), 30, p)[(low <= p) & (p <= high)].sum() for p in np.linspace(0.02, 0.98, 193)]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)
    assert min(coverage) > 0.90


@pytest.mark.parametrize("gain", [0.0, 0.2])
@pytest.mark.parametrize(("questions", "samples"), [(30, 1), (30, 16), (500, 1), (500, 4)])
def test_paired_interval_covers_the_truth(questions: int, samples: int, gain: float) -> None:
    rng = np.random.default_rng([questions, samples])
    before = rng.beta(2, 2, (EXPERIMENTS, questions, 1))
    after = before + gain * (1 - before)
    shape = (EXPERIMENTS, questions, samples)
    a, b = rng.random(shape, dtype=np.float32) < before, rng.random(shape, dtype=np.float32) < after
    _, low, high = difference_interval(b.mean(axis=-1) - a.mean(axis=-1))
    covered = np.mean((low <= gain / 2) & (gain / 2 <= high))  # E[1 - difficulty] = 1/2
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(("questions", "samples"), [(100, 1), (12, 4)])
def test_no_gain_is_seldom_called_one(questions: int, samples: int) -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.beta(1, 1, (600, questions, 1))
    shape = (600, questions, samples)
    a, b = rng.random(shape) < difficulty, rng.random(shape) < difficulty
    found = [paired(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([p.p_value < 0.05 for p in found]) < 0.07
    assert 0.005 < np.mean([p.verdict != NOISE for p in found]) < 0.07


def test_paired_by_hand_with_one_sample() -> None:
    # 8 won, 1 lost, 11 alike: d = 7/20; sum of squares 9, variance (9 - 20 * 0.35²)/19 = 6.55/19
    a = column(*[0] * 8, 1, *[1] * 6, *[0] * 5)
    b = column(*[1] * 8, 0, *[1] * 6, *[0] * 5)
    found = paired(a, b)
    half = stats.t.ppf(0.975, 19) * math.sqrt(6.55 / 19 / 20)
    assert found.difference == pytest.approx(0.35)
    assert (found.low, found.high) == (pytest.approx(0.35 - half), pytest.approx(0.35 + half))
    assert found.p_value == pytest.approx(2 * (1 + 9 / 2) / 2**9)  # P(fewer than 1 of 9) and half of P(1 of 9), both sides
    assert (found.test, found.verdict) == ("mid-P McNemar", GAIN)
    back = paired(b, a)
    assert (back.difference, back.low, back.high) == (-found.difference, -found.high, -found.low)
    assert (back.p_value, back.verdict) == (found.p_value, LOSS)


def test_paired_by_hand_with_several_samples() -> None:
    a = np.array([[0, 0], [0, 1], [1, 0], [0, 0], [1, 1], [0, 0]])
    b = np.array([[1, 1], [1, 1], [1, 1], [0, 1], [1, 1], [1, 1]])
    d = b.mean(axis=1) - a.mean(axis=1)
    assert d.tolist() == [1, 0.5, 0.5, 0.5, 0, 1]
    flips = [np.sign(round(abs(np.mean(d * signs)) - abs(d.mean()), 9)) / 2 + 0.5 for signs in product((-1, 1), repeat=6)]
    found = paired(a, b)
    half = stats.t.ppf(0.975, 5) * d.std(ddof=1) / math.sqrt(6)
    assert (found.low, found.high) == (pytest.approx(d.mean() - half), pytest.approx(d.mean() + half))
    assert found.p_value == pytest.approx(np.mean(flips))
    assert found.test == "sign-flip permutation (exact)"


def test_sign_flips_are_fixed_by_their_seed_and_agree_with_students_t() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.random((300, 1))
    a, b = rng.random((300, 4)) < difficulty, rng.random((300, 4)) < np.minimum(1, difficulty + 0.05)
    found = paired(a, b, seed=7)
    assert found == paired(a, b, seed=7)
    expected = stats.ttest_rel(b.mean(axis=1), a.mean(axis=1)).pvalue
    assert found.p_value == pytest.approx(expected, abs=0.01)
    assert found.test == "sign-flip permutation (9999 flips)"


def test_numbers_of_samples_may_differ() -> None:
    found = paired(np.zeros((20, 1)), np.tile([1, 0, 0, 0], (20, 1)))
    assert found.difference == 0.25
    assert found.test.startswith("sign-flip")
    assert found.verdict == GAIN


def test_no_difference_at_all_is_not_certainty() -> None:
    same = np.ones((30, 4))
    found = paired(same, same)
    assert (found.difference, found.p_value, found.verdict) == (0.0, 1.0, NOISE)
    assert found.high == -found.low == pytest.approx(1 - 0.025 ** (1 / 30))


def test_verdict_needs_interval_and_test() -> None:
    # 4 won, none lost of 500: the interval leaves zero out by a hair, the test does not agree
    a, b = column(*[0] * 4, *[1] * 496), column(*[1] * 500)
    found = paired(a, b)
    assert found.low > 0
    assert found.p_value == pytest.approx(stats.binomtest(4, 4).pvalue - stats.binom.pmf(4, 4, 0.5))
    assert found.p_value > 0.05
    assert found.verdict == NOISE


def test_smallest_detectable_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    questions, deviation = 60, 0.4
    half = stats.t.ppf(0.975, questions - 1) * deviation / math.sqrt(questions)
    effect = smallest_detectable(half, questions)
    assert effect > half
    drawn = rng.normal(effect, deviation, (20_000, questions))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(questions))
    assert np.mean(t > stats.t.ppf(0.975, questions - 1)) == pytest.approx(0.8, abs=0.01)


def test_one_question_says_next_to_nothing() -> None:
    assert accuracy([[1]]).low < 0.25
    assert paired([[0]], [[1]]).verdict == NOISE
    assert smallest_detectable(0.3, 1) == 1.0


@pytest.mark.parametrize("bad", [np.zeros((0, 1)), np.zeros((3, 0)), np.zeros(3)])
def test_other_shapes_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="questions, samples"):
        accuracy(bad)
    with pytest.raises(ValueError, match="questions"):
        paired(bad, np.zeros((2, 1)))


def test_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="a has 3 questions, b 4"):
        paired(np.zeros((3, 1)), np.zeros((4, 1)))
