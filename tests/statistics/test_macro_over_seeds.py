"""The mean over tasks under several seeds: of one task what one task gives, and coverage where a seed moves all tasks."""

from __future__ import annotations

import numpy as np
import pytest

from upft import statistics


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
