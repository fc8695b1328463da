"""The mean over tasks under several seeds: of one task what one task gives, and coverage where a seed moves all tasks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from upft import statistics
from upft.statistics.several import seeds_macro


def draw(rng: np.random.Generator, seeds: int, questions: int, seed_effect: np.ndarray) -> np.ndarray:
    """[seeds, questions] of 0 and 1."""
    hard = rng.normal(0, 0.15, questions)
    return (rng.random((seeds, questions)) < np.clip(0.5 + hard + seed_effect[:, None], 0, 1)).astype(float)


def test_of_one_task_it_is_that_tasks() -> None:
    rng = np.random.default_rng(1)
    a, b = (draw(rng, 4, 50, rng.normal(0, 0.05, 4)) for _ in range(2))
    one, other = statistics.paired_macro_over_seeds([a], [b]), statistics.paired_over_seeds(a, b)
    assert vars(one) == pytest.approx(vars(other))
    assert vars(statistics.macro_over_seeds([a])) == pytest.approx(vars(statistics.over_seeds(a)))
    assert statistics.paired_macro_over_seeds([a], [a]).verdict == "inside noise"


def test_a_seed_that_moves_all_tasks_widens_the_interval_and_is_covered() -> None:
    """The true mean over seeds is 0.5; the seeds' effects are common to both tasks."""
    rng, covered, tries = np.random.default_rng(7), 0, 600
    for _ in range(tries):
        effect = rng.normal(0, 0.08, 5)
        found = statistics.macro_over_seeds([draw(rng, 5, 40, effect), draw(rng, 5, 120, effect)])
        covered += found.low <= 0.5 <= found.high
    assert 0.92 <= covered / tries <= 0.985


def test_tasks_need_the_same_seeds() -> None:
    with pytest.raises(ValueError, match="the same seeds"):
        statistics.macro_over_seeds([np.eye(2), np.eye(3)])
    with pytest.raises(ValueError, match="other tasks"):
        statistics.paired_macro_over_seeds([np.eye(2)], [np.eye(3)])


def test_what_several_seeds_would_find_four_times_in_five() -> None:
    """(t.975 + t.8) standard errors, at the degrees of freedom of the test itself; of many trainings that have that true
    difference four in five are called one."""
    rng = np.random.default_rng(3)
    before = [rng.random((4, 30)) for _ in range(2)]
    after = [one + rng.normal(0.02, 0.1, one.shape) + rng.normal(0, 0.03, (4, 1)) for one in before]
    pair = statistics.paired_macro_over_seeds(before, after)
    _, variance, freedom = seeds_macro([y - x for x, y in zip(before, after, strict=True)])
    found = statistics.detectable_over_seeds(before, after)
    assert found == pytest.approx((stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * np.sqrt(variance))
    assert found > (pair.high - pair.low) / 2
    same = [np.ones((2, 20))]
    half = statistics.paired_macro_over_seeds(same, same).high
    assert half < statistics.detectable_over_seeds(same, same) < 2 * half

    def trained(base: np.ndarray, gain: float) -> np.ndarray:
        return base + rng.normal(gain, 0.1, base.shape) + rng.normal(0, 0.02, (len(base), 1))

    base = rng.random((8, 25))
    gain = float(np.mean([statistics.detectable_over_seeds([base], [trained(base, 0.0)]) for _ in range(200)]))
    named = sum(statistics.paired_over_seeds(base, trained(base, gain)).verdict == "gain" for _ in range(400))
    assert 0.7 < named / 400 < 0.9
