"""pass@k and maj@k: what k answers to a question are worth, from the n that were sampled.

Knows votes and verdicts. Refuses to know which answers mean the same: a vote is a canonical answer, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from upft.statistics.means import Array, Estimate, estimate, question_means

MOST_SAMPLES = 1000
"""C(n, k) of more samples does not fit a float."""

Group = tuple[int, float]


def pass_at_k(correct: ArrayLike, k: int) -> Estimate:
    """Share of questions that k samples solve at least once: mean of `pass_values` with its 95% interval.

    A question's n samples fall into n/k independent tries. Raises ValueError unless 1 <= k <= samples.
    """
    values = pass_values(correct, k)
    tries = np.shape(correct)[1] / k
    return estimate(values, tries, np.inf if tries > 1 else 1)


def pass_values(correct: ArrayLike, k: int) -> Array:
    """[questions]: 1 - C(n-c, k)/C(n, k) with c of n samples right: the unbiased estimator of the probability that one of
    k samples is right (Chen et al. 2021, arXiv:2107.03374). Raises ValueError unless 1 <= k <= samples."""
    means, n = question_means(correct)
    _check(k, n)
    by_count = np.array([1 - comb(n - c, k) / comb(n, k) for c in range(n + 1)])
    values: Array = by_count[np.rint(means * n).astype(int)]
    return values


def majority_at_k(votes: Sequence[Sequence[str | None]], correct: ArrayLike, k: int) -> Estimate:
    """Accuracy of the most frequent answer of k samples: mean of `majority_values` with its 95% interval.

    A question's n samples fall into n/k independent votes. Raises ValueError as `majority_values` does.
    """
    values = majority_values(votes, correct, k)
    return estimate(values, np.shape(correct)[1] / k, np.inf)  # ties make values between 0 and 1 even of a single vote


def majority_values(votes: Sequence[Sequence[str | None]], correct: ArrayLike, k: int) -> Array:
    """[questions]: expected accuracy of the majority answer of k of the n samples, over all C(n, k) ways to choose them.

    Exact for every n and k: the ways are counted by how many votes each answer gets, not listed. Ties count by the
    share of the tied answers that are right; a sample without an answer (None) has no vote, and k samples without any
    count as wrong. An answer is right as often as its samples were graded right. votes: [questions][samples].
    Raises ValueError when votes and correct disagree in shape, or unless 1 <= k <= samples <= 1000.
    """
    matrix = np.asarray(correct, dtype=np.float64)
    question_means(matrix)
    _check(k, matrix.shape[1])
    if len(votes) != len(matrix) or any(len(row) != matrix.shape[1] for row in votes):
        raise ValueError(f"votes must have the shape of correct, {matrix.shape}: one vote or None a sample")
    return np.array([_majority(*_groups(row, right), k) for row, right in zip(votes, matrix, strict=True)])


def _check(k: int, samples: int) -> None:
    if not 1 <= k <= samples <= MOST_SAMPLES:
        raise ValueError(f"k={k} with {samples} samples a question: k must be from 1 to the number of samples, "
                         f"that number at most {MOST_SAMPLES}")


def _groups(votes: Sequence[str | None], right: Array) -> tuple[tuple[Group, ...], int]:
    """((samples, share right) of each answer, ordered; samples without an answer)."""
    found: dict[str, list[float]] = {}
    for vote, one in zip(votes, right.tolist(), strict=True):
        if vote is not None:
            found.setdefault(vote, []).append(one)
    return tuple(sorted((len(group), sum(group) / len(group)) for group in found.values())), sum(v is None for v in votes)


@lru_cache(maxsize=1 << 16)
def _majority(groups: tuple[Group, ...], silent: int, k: int) -> float:
    """Expected accuracy of the majority of k of the samples.

    For each winning number of votes the ways to choose k samples are counted group by group: ways[v, t] with v samples chosen
    and t answers at that number, worth[v, t] the same times the sum of the tied answers' accuracies.
    """
    total = 0.0
    for top in range(1, min(k, max((size for size, _ in groups), default=0)) + 1):
        ties = min(k // top, sum(size >= top for size, _ in groups))
        ways, worth = np.zeros((k + 1, ties + 1)), np.zeros((k + 1, ties + 1))
        ways[0, 0] = 1.0
        for size, right in groups:
            more_ways, more_worth = ways.copy(), worth.copy()  # none of this answer's samples chosen
            for chosen in range(1, min(size, top) + 1):
                times, rest = comb(size, chosen), k + 1 - chosen
                if chosen < top:
                    more_ways[chosen:] += times * ways[:rest]
                    more_worth[chosen:] += times * worth[:rest]
                else:
                    more_ways[chosen:, 1:] += times * ways[:rest, :-1]
                    more_worth[chosen:, 1:] += times * (worth[:rest, :-1] + right * ways[:rest, :-1])
            ways, worth = more_ways, more_worth
        for unheard in range(min(silent, k - top) + 1):
            total += comb(silent, unheard) * float((worth[k - unheard, 1:] / np.arange(1, ties + 1)).sum())
    return total / comb(sum(size for size, _ in groups) + silent, k)
