"""Means over tasks and over training seeds, by hand and against independent reckoning."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from upft.statistics import (
    GAIN,
    NOISE,
    Estimate,
    accuracy,
    macro,
    over_seeds,
    paired_macro,
    paired_macro_over_seeds,
    paired_over_seeds,
    paired_values,
)


def test_macro_by_hand() -> None:
    found = macro([Estimate(0.5, 0.47, 0.53), Estimate(0.9, 0.86, 0.92)])
    assert (found.value, found.low, found.high) == (
        pytest.approx(0.7), pytest.approx(0.7 - 0.05 / 2), pytest.approx(0.7 + math.hypot(0.03, 0.02) / 2))


def test_macro_of_one_task_is_that_task() -> None:
    one = accuracy([[1], [0], [1], [1]])
    found = macro([one])
    assert (found.value, found.low, found.high) == (
        pytest.approx(one.value), pytest.approx(one.low), pytest.approx(one.high))
    with pytest.raises(ValueError, match="no task"):
        macro([])


def test_paired_macro_weighs_tasks_not_questions() -> None:
    small_a, small_b = np.array([0, 0, 1, 0]), np.array([1, 0, 1, 1])
    large_a, large_b = np.array([1, 1, 0, 1, 0, 0, 1, 0]), np.array([1, 0, 0, 1, 0, 0, 1, 1])
    found = paired_macro([small_a, large_a], [small_b, large_b])
    assert found.difference == pytest.approx((2 / 4 + 0 / 8) / 2)
    alone = [paired_values(a, b) for a, b in ((small_a, small_b), (large_a, large_b))]
    assert found.low == pytest.approx(found.difference - math.hypot(*(p.difference - p.low for p in alone)) / 2)
    assert found.high == pytest.approx(found.difference + math.hypot(*(p.high - p.difference for p in alone)) / 2)
    # four questions changed: each sign either way, small task's 1/8, large task's 1/16
    sums = [abs(sum(s * w for s, w in zip(signs, (1 / 8, 1 / 8, 1 / 16, 1 / 16), strict=True)))
            for signs in product((-1, 1), repeat=4)]
    assert found.p_value == pytest.approx(np.mean([1.0 if s > 0.25 + 1e-9 else 0.5 if s > 0.25 - 1e-9 else 0.0 for s in sums]))
    assert found.verdict == NOISE


def test_paired_macro_refuses_other_questions() -> None:
    with pytest.raises(ValueError, match="a has 1 tasks, b 2"):
        paired_macro([[1, 0]], [[1, 0], [1, 1]])
    with pytest.raises(ValueError, match="task 0"):
        paired_macro([[1, 0]], [[1, 0, 1]])


def test_nothing_changed_anywhere_is_noise() -> None:
    found = paired_macro([np.ones(30), np.zeros(50)], [np.ones(30), np.zeros(50)])
    assert (found.difference, found.p_value, found.verdict) == (0.0, 1.0, NOISE)
    assert found.high == -found.low == pytest.approx(math.hypot(1 - 0.025 ** (1 / 30), 1 - 0.025 ** (1 / 50)) / 2)


def anova(values: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of questions, seeds and the rest, from sums of squares written out."""
    seeds, questions = values.shape
    mean = sum(values[s, q] for s in range(seeds) for q in range(questions)) / values.size
    rows, columns = [values[s].sum() / questions for s in range(seeds)], [values[:, q].sum() / seeds for q in range(questions)]
    of_questions = seeds * sum((c - mean) ** 2 for c in columns) / (questions - 1)
    of_seeds = questions * sum((r - mean) ** 2 for r in rows) / (seeds - 1)
    rest = sum((values[s, q] - rows[s] - columns[q] + mean) ** 2 for s in range(seeds) for q in range(questions))
    return of_questions, of_seeds, rest / ((seeds - 1) * (questions - 1))


@pytest.mark.parametrize("uneven", [True, False])
def test_paired_over_seeds_by_hand(uneven: bool) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2, (3, 20)).astype(float), rng.integers(0, 2, (3, 20)).astype(float)
    b[1] = np.maximum(b[1], a[1])
    if uneven:  # some questions gain under every seed
        a[:, :6], b[:, :6] = 0, 1
    q, s, e = anova(b - a)
    assert (q > e) == uneven  # else the questions' own part would be negative, and is nothing
    variance = (q + s - e) / 60 if uneven else s / 60
    freedom = max((q + s - e) ** 2 / (q * q / 19 + s * s / 2 + e * e / 38), 2) if uneven else 2
    found = paired_over_seeds(a, b)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert found.difference == pytest.approx((b - a).mean())
    assert (found.low, found.high) == (pytest.approx(found.difference - half), pytest.approx(found.difference + half))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.difference) / math.sqrt(variance), freedom))


def test_a_seed_that_moves_every_question_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random((3, 2000)) < 0.5).astype(float)
    quiet = paired_over_seeds(a, (rng.random((3, 2000)) < 0.6).astype(float))
    loud = paired_over_seeds(a, (rng.random((3, 2000)) < np.array([[0.45], [0.55], [0.65]])).astype(float))
    pooled = 1.96 * math.sqrt(2 * 0.25 / 6000)
    assert quiet.verdict == GAIN
    assert quiet.high - quiet.low < 2 * 2.6 * pooled  # near what 6000 answers give, seed or no seed
    assert loud.verdict == NOISE
    assert loud.high - loud.low > 0.3  # three seeds 10 points apart: t with 2 degrees of freedom, ± 4.3 x 10/sqrt(3)
    one = over_seeds(a)
    assert one.low < 0.5 < one.high
    assert one.value == pytest.approx(a.mean())


def test_seeds_that_agree_wholly_count_as_one() -> None:
    once = (np.random.default_rng(1).random(200) < 0.7).astype(float)
    copied = over_seeds(np.tile(once, (4, 1)))
    single = accuracy(once[:, None])
    assert copied.high - copied.low == pytest.approx(single.high - single.low, rel=0.02)


def test_seeds_whose_means_are_equal_by_chance_leave_the_rest() -> None:
    """Each seed gains other questions, as many: no part of seeds or questions is left, and yet something is known."""
    before, after = np.zeros((2, 100)), np.zeros((2, 100))
    after[0, :12], after[1, 12:24] = 1, 1
    found = paired_over_seeds(before, after)
    rest = ((after - after.mean(axis=0)) ** 2).sum() / 99  # both seeds' means are the whole's
    half = stats.t.ppf(0.975, 99) * math.sqrt(rest / 200)
    assert (found.low, found.high) == (pytest.approx(0.12 - half), pytest.approx(0.12 + half))
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.12 / math.sqrt(rest / 200), 99))
    assert found.p_value < 0.01
    assert found.verdict == GAIN
    macro = paired_macro_over_seeds([before], [after])
    assert (macro.low, macro.high, macro.p_value) == tuple(
        pytest.approx(one) for one in (found.low, found.high, found.p_value))
    still = paired_over_seeds(before, before)
    assert (still.difference, still.p_value) == (0, 1)
    assert still.high > 0, "nothing changed on 100 questions: on others something may"


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (5,)])
def test_one_seed_or_question_has_no_variance(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 2 of each"):
        over_seeds(np.zeros(shape))


def test_seeds_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="same seeds and questions"):
        paired_over_seeds(np.zeros((2, 5)), np.zeros((3, 5)))
