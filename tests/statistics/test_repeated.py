"""pass@k and maj@k against every subset listed one by one, and against probabilities known beforehand."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from upft.statistics import majority_at_k, majority_values, pass_at_k, pass_values


def listed_majority(votes: list[str | None], right: list[int], k: int) -> float:
    """Mean over all subsets of k samples, each counted by hand."""
    total, subsets = Fraction(0), list(combinations(range(len(votes)), k))
    for subset in subsets:
        counts = Counter(votes[i] for i in subset if votes[i] is not None)
        if not counts:
            continue
        tied = [answer for answer, n in counts.items() if n == max(counts.values())]
        for answer in tied:
            graded = [right[i] for i in range(len(votes)) if votes[i] == answer]
            total += Fraction(sum(graded), len(graded) * len(tied))
    return float(total / len(subsets))


@pytest.mark.parametrize("k", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(k: int) -> None:
    correct = [[1] * c + [0] * (8 - c) for c in range(9)]
    for value, row in zip(pass_values(correct, k), correct, strict=True):
        subsets = list(combinations(row, k))
        assert value == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(4, 1), (8, 3), (32, 16)])
def test_pass_at_k_is_unbiased(n: int, k: int) -> None:
    by_count = pass_values([[1] * c + [0] * (n - c) for c in range(n + 1)], k)
    for p in (0.0, 0.03, 0.4, 1.0):
        expected = float(stats.binom.pmf(np.arange(n + 1), n, p) @ by_count)
        assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-10)


@pytest.mark.parametrize("k", range(1, 8))
def test_majority_is_the_mean_over_all_subsets(k: int) -> None:
    rng = np.random.default_rng(k)
    votes: list[list[str | None]] = []
    for _ in range(40):
        votes.append([(None, "a", "b", "c", "d")[i] for i in rng.integers(0, 5, 7)])
    right = [[int(vote == "a") for vote in row] for row in votes]
    expected = [listed_majority(row, graded, k) for row, graded in zip(votes, right, strict=True)]
    assert 0.1 < np.mean(expected) < 0.9
    np.testing.assert_allclose(majority_values(votes, right, k), expected, atol=1e-12)


def test_two_right_forms_and_a_form_graded_both_ways() -> None:
    # "1/2" and "0.5" are votes of their own; "x" was accepted once of two times
    votes = [["1/2", "0.5", "7", "7"], ["x", "x", "7", None]]
    right = [[1, 1, 0, 0], [1, 0, 0, 0]]
    for k in range(1, 5):
        expected = [listed_majority(row, graded, k) for row, graded in zip(votes, right, strict=True)]
        np.testing.assert_allclose(majority_values(votes, right, k), expected, atol=1e-12)
    assert majority_values(votes, right, 4).tolist() == [0.0, 0.5]


def test_no_answer_never_wins() -> None:
    assert majority_values([[None, None, None, "5"]], [[0, 0, 0, 1]], 4).tolist() == [1.0]
    assert majority_values([[None, None, None, "5"]], [[0, 0, 0, 1]], 2).tolist() == [0.5]  # half of the pairs hold the 5
    assert majority_values([[None, None]], [[0, 0]], 2).tolist() == [0.0]


def test_ties_count_by_the_share_that_is_right() -> None:
    assert majority_values([["a", "b", "c"]], [[1, 0, 0]], 3).tolist() == [pytest.approx(1 / 3)]
    assert majority_values([["a", "a", "b", "b"]], [[1, 1, 0, 0]], 4).tolist() == [0.5]
    assert majority_values([["a", "b", "b"]], [[0, 1, 1]], 3).tolist() == [1.0]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_majority_of_k_is_unbiased(k: int) -> None:
    """The mean over all outcomes of 6 samples is the probability that k samples vote right."""
    chances = {"a": 0.5, "b": 0.3, None: 0.2}
    outcomes = list(product(chances, repeat=6))
    weights = np.array([math.prod(chances[v] for v in row) for row in outcomes])
    values = majority_values([list(row) for row in outcomes], [[int(v == "a") for v in row] for row in outcomes], k)
    truth = 0.0
    for row in product(chances, repeat=k):
        a, b = row.count("a"), row.count("b")
        truth += math.prod(chances[v] for v in row) * (1.0 if a > b else 0.5 if a == b > 0 else 0.0)
    assert float(weights @ values) == pytest.approx(truth, abs=1e-12)


def test_many_samples_are_counted_exactly() -> None:
    # 60 right and 40 wrong of 100, 51 drawn: right wins where at least 26 of the 51 are (hypergeometric)
    values = majority_values([["a"] * 60 + ["b"] * 40], [[1] * 60 + [0] * 40], 51)
    assert values[0] == pytest.approx(stats.hypergeom.sf(25, 100, 60, 51), abs=1e-12)


def test_estimates_hold_the_means_and_k_of_one_is_accuracy() -> None:
    rng = np.random.default_rng(0)
    correct = (rng.random((50, 8)) < rng.random((50, 1))).astype(int)
    votes = [["a" if right else "b" for right in row] for row in correct]
    for found, values in ((pass_at_k(correct, 4), pass_values(correct, 4)),
                          (majority_at_k(votes, correct, 4), majority_values(votes, correct, 4))):
        assert found.value == pytest.approx(values.mean())
        assert 0 <= found.low < found.value < found.high <= 1
    assert pass_at_k(correct, 1).value == majority_at_k(votes, correct, 1).value == pytest.approx(correct.mean())
    # every try of all samples is one answer a question: Wilson's interval of the share of solved questions
    solved = int((correct.sum(axis=1) > 0).sum())
    wilson = stats.binomtest(solved, 50).proportion_ci(method="wilson")
    assert (pass_at_k(correct, 8).low, pass_at_k(correct, 8).high) == (pytest.approx(wilson.low), pytest.approx(wilson.high))


@pytest.mark.parametrize("k", [0, 5])
def test_k_must_be_among_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} with 4 samples"):
        pass_at_k(np.ones((3, 4)), k)
    with pytest.raises(ValueError, match=f"k={k} with 4 samples"):
        majority_at_k([["a"] * 4] * 3, np.ones((3, 4)), k)


def test_votes_and_verdicts_must_agree_in_shape() -> None:
    with pytest.raises(ValueError, match="shape of correct"):
        majority_at_k([["a"] * 3] * 3, np.ones((3, 4)), 2)
