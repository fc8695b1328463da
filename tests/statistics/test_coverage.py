"""How often intervals hold the truth and tests cry wolf, by the simulations of bench/coverage.py: 2,000 experiments a cell.

Seeds are fixed, so a cell is one number. What lies outside 93 to 97% is said here and in docs/statistics.md: cells with so few
informative questions that coverage is a lattice may hold more; nothing else may, and none may hold less but those named.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from upft import statistics
from upft.statistics import pairs

SCRIPT = Path(__file__).parents[2] / "bench" / "coverage.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench = load()
MIDDLE = (0.2, 0.5)
"""Accuracies at which 30 questions are enough to be told apart."""


@pytest.mark.parametrize("kind", ["beta", "two levels"])
def test_accuracy_of_few_questions(kind: str) -> None:
    for samples, p in product((1, 4, 32), MIDDLE):
        assert 93 <= bench.accuracy(30, samples, kind, p) <= 97.1, (samples, p)


def test_a_cell_can_fail() -> None:
    """What is measured is a coverage: it knows an interval that is too narrow, and one that covers something else."""
    rng = np.random.default_rng(0)
    values = rng.binomial(4, bench.difficulty(rng, "beta", 0.5, (2000, 30))) / 4
    pooled = 1.96 * np.sqrt(values.mean(axis=1) * (1 - values.mean(axis=1)) / 120)  # answers counted as independent
    assert bench.held(values.mean(axis=1) - pooled, values.mean(axis=1) + pooled, 0.5) < 85
    assert bench.held(values.mean(axis=1) - 0.2, values.mean(axis=1) + 0.2, 0.8) < 60


@pytest.mark.parametrize("kind", ["beta", "beta, narrow", "two levels", "alike", "few"])
def test_populations_have_their_mean(kind: str) -> None:
    for p in bench.ACCURACIES:
        drawn = bench.difficulty(np.random.default_rng(1), kind, p, (1, 400_000))
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert drawn.mean() == pytest.approx(p, abs=0.003)
        if kind != "few":
            for k in (2, 8):
                assert (1 - (1 - drawn) ** k).mean() == pytest.approx(bench.pass_truth(kind, p, k), abs=0.003)


def test_the_truth_of_a_majority_is_what_voting_gives() -> None:
    rng = np.random.default_rng(3)
    for mix, k in (("easy", 4), ("middling", 5), ("hard", 4)):
        shares, chances = zip(*bench.TYPES[mix], strict=True)
        kinds = rng.choice(len(shares), size=200_000, p=shares)
        counts = rng.multinomial(k, np.array(chances)[kinds])[:, :3]
        top = counts.max(axis=1)
        worth = (counts[:, 0] == top) * (top > 0) / (counts == top[:, None]).sum(axis=1)
        assert worth.mean() == pytest.approx(bench.majority_truth(mix, k), abs=0.005)


def test_mcnemar_is_the_sign_flip_test_of_single_answers() -> None:
    rng = np.random.default_rng(0)
    few = rng.choice([-1.0, 0.0, 1.0], size=(200, 40), p=(0.1, 0.8, 0.1))
    exact = (np.abs(few) > 0).sum(axis=1) <= pairs.EXACT
    assert exact.sum() > 150
    np.testing.assert_allclose(pairs.sign_flips(few[exact], 0), pairs.mcnemar(few[exact]), atol=1e-12)
    many = rng.choice([-1.0, 0.0, 1.0], size=(50, 300), p=(0.2, 0.55, 0.25))
    np.testing.assert_allclose(pairs.sign_flips(many, 0), pairs.mcnemar(many), atol=0.02)


def test_no_common_interval_of_thirty_answers_stays_within_more_often_than_wilsons() -> None:
    """Exactly, over accuracies: the share at which coverage lies in 93 to 97%, and the share any interval could reach."""
    n, x = 30, np.arange(31)
    grid = np.linspace(0.02, 0.98, 481)
    mass = stats.binom.pmf(x[:, None], n, grid)

    def within(low: np.ndarray, high: np.ndarray) -> float:
        cover = (mass * ((low[:, None] <= grid) & (grid <= high[:, None]))).sum(axis=0)
        return float(np.mean((cover >= 0.93) & (cover <= 0.97)))

    ours = [statistics.accuracy([[1]] * k + [[0]] * (n - k)) for k in range(n + 1)]
    wilson = within(np.array([e.low for e in ours]), np.array([e.high for e in ours]))
    jeffreys = within(np.where(x == 0, 0.0, stats.beta.ppf(0.025, x + 0.5, n - x + 0.5)),
                      np.where(x == n, 1.0, stats.beta.ppf(0.975, x + 0.5, n - x + 0.5)))
    exact = within(np.where(x == 0, 0.0, stats.beta.ppf(0.025, x, n - x + 1)),
                   np.where(x == n, 1.0, stats.beta.ppf(0.975, x + 1, n - x)))
    cumulative = np.vstack([np.zeros(len(grid)), np.cumsum(mass, axis=0)])
    spans = cumulative[None, 1:] - cumulative[:-1, None]
    reachable = float(np.mean(((spans >= 0.93) & (spans <= 0.97)).any(axis=(0, 1))))
    assert exact < jeffreys < wilson < reachable
    assert wilson > 0.9 > 0.85 > jeffreys
    assert reachable < 0.96


def cells(kinds: tuple[str, ...]) -> Iterator[tuple[int, int, str, float]]:
    yield from product(bench.QUESTIONS, (1, 4, 32), kinds, bench.ACCURACIES)


@pytest.mark.slow
def test_accuracy() -> None:
    for questions, samples, kind, p in cells(bench.KINDS):
        if kind != "beta" and (samples == 1 or (questions, samples) == (1319, 32)):
            continue  # one answer a question is right or wrong, however difficulty is spread; the rest is in the document
        lattice = questions == 30 and p not in MIDDLE
        found = bench.accuracy(questions, samples, kind, p)
        assert 93 <= found <= (98.5 if lattice else 97.1), (questions, samples, kind, p, found)


@pytest.mark.slow
def test_accuracy_where_few_questions_are_hopeless() -> None:
    """Nearly unknowable from 30 questions, and right from 198 on."""
    for questions, samples, p in product((198, 500), (4, 32), bench.ACCURACIES):
        assert 93 <= bench.accuracy(questions, samples, "few", p) <= 98.1, (questions, samples, p)
    assert bench.accuracy(30, 32, "few", 0.97) < 60


@pytest.mark.slow
def test_pass_at_k() -> None:
    found = {(q, n, k, kind, p): bench.pass_at_k(q, n, k, kind, p)
             for q, (n, k), kind, p in product((30, 198, 500), ((4, 2), (4, 4), (32, 4), (32, 8), (32, 32)), bench.KINDS,
                                               bench.ACCURACIES) if q * (1 - bench.pass_truth(kind, p, k)) >= 2}
    assert len(found) > 150
    assert all(cell >= 93 for cell in found.values())
    above = {key: cell for key, cell in found.items() if cell > 97}
    assert len(above) <= 0.06 * len(found), above
    assert all(key[0] * (1 - bench.pass_truth(key[3], key[4], key[2])) < 8 or cell < 98 for key, cell in above.items()), above


@pytest.mark.slow
def test_majority_at_k() -> None:
    for questions, (samples, k), mix in product(bench.QUESTIONS, ((4, 4), (8, 4), (8, 8), (32, 8)), bench.TYPES):
        found = bench.majority_at_k(questions, samples, k, mix)
        assert 93 <= found <= 97, (questions, samples, k, mix, found)


@pytest.mark.slow
def test_paired() -> None:
    # a gain in 3 to 10% of 30 questions: most runs hold one such question or none
    rare = {(30, 4, "beta", 0.97, "gain"), (30, 32, "beta", 0.97, "gain"), (30, 32, "beta", 0.9, "gain")}
    for questions, samples, kind, p in cells(("alike", "beta", "two levels")):
        if kind != "beta" and questions == 1319:
            continue
        for effect in ("same", "other", "gain")[::2 if kind == "alike" or questions == 1319 else 1]:
            found = bench.paired(questions, samples, kind, p, effect)
            lattice = questions == 30 and p not in MIDDLE
            low = 80 if (questions, samples, kind, p, effect) in rare else 93
            assert low <= found <= (100 if lattice else 97.1), (questions, samples, kind, p, effect, found)


@pytest.mark.slow
def test_false_alarms() -> None:
    for questions, samples, (kind, effect), p in product((30, 198), (1, 4, 32), (("alike", "same"), ("beta", "other")),
                                                         bench.ACCURACIES):
        found = bench.false_alarms(questions, samples, kind, p, effect)
        few = questions * 2 * p * (1 - p) / samples < 9 and questions == 30  # questions that flip
        assert (0 if few else 3) <= found <= 6.7, (questions, samples, kind, effect, p, found)


@pytest.mark.slow
def test_what_is_detectable_is_found_four_times_in_five() -> None:
    for questions, samples, kind, p in product((198, 1319), (1, 4), ("alike", "beta"), (0.05, 0.2, 0.5, 0.9)):
        difference, found = bench.power(questions, samples, kind, p)
        assert 0 < difference < 0.2
        assert 77 <= found <= 83, (questions, samples, kind, p, found)


@pytest.mark.slow
def test_means_over_tasks() -> None:
    for name, kind in product(bench.TASKS, ("beta", "two levels")):
        for effect in (None, "same", "gain"):
            found = bench.macro(name, kind, effect)
            assert 93 <= found <= 97, (name, kind, effect, found)
    assert 3 <= bench.macro_alarms("four tasks", "beta", "same") <= 6


@pytest.mark.slow
def test_training_seeds() -> None:
    for questions, count, spread, p in product((30, 198, 500), (3, 5), (0.0, 0.03), (0.2, 0.5, 0.9)):
        mean, difference, alarms = bench.seeds(questions, count, spread, p, "same")
        low, high = (92.5, 97.1) if questions > 30 else (93, 98.6)  # three seeds of few questions: wide, not narrow
        assert low <= mean <= high, (questions, count, spread, p, mean)
        assert low <= difference <= high, (questions, count, spread, p, difference)
        assert 1.5 <= alarms <= 7.5, (questions, count, spread, p, alarms)
        _, gained, _ = bench.seeds(questions, count, spread, p, "gain")
        assert low <= gained <= high, (questions, count, spread, p, gained)
