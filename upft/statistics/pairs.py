"""Two models on the same questions: difference, interval, p-value, verdict.

A pair of answers to one question is compared with itself, so that what makes a question hard for both cancels out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upft.statistics.means import LEVEL, Array, question_means

FLIPS = 9999
"""Random sign flips of the permutation test; where up to 13 questions differ all of them are taken instead."""
EXACT = 13
"""Most differing questions for which all 2^n sign flips are taken."""

GAIN, LOSS, NOISE = "gain", "loss", "inside noise"


@dataclass(frozen=True)
class Paired:
    """b minus a on the same questions, as a share from -1 to 1, with its 95% interval. test: how p_value was
    found. verdict: `gain` or `loss` where the interval leaves zero out and p_value < 0.05, else `inside noise`."""

    difference: float
    low: float
    high: float
    p_value: float
    test: str
    verdict: str


def paired(a: ArrayLike, b: ArrayLike, seed: int = 0) -> Paired:
    """b minus a, question by question, of two accuracies (avg@k); `a` and `b` hold the same questions in the same order,
    [questions, samples], and may hold different numbers of samples. As `paired_values` of the questions' means."""
    return paired_values(question_means(a)[0], question_means(b)[0], seed)


def paired_values(before: ArrayLike, after: ArrayLike, seed: int = 0) -> Paired:
    """after minus before of values: [questions] from 0 to 1, such as the questions' means, `pass_values` or `majority_values`.

    Interval: mean ± t·sd/sqrt(questions) of the per-question differences (Student's t, questions - 1 degrees of
    freedom). Where no difference varies there is no sd; then ± 1 - 0.025^(1/questions), the largest share of
    questions that could differ otherwise and still not show (Clopper and Pearson 1934). Test: where every value is 0 or 1
    McNemar's mid-P test on the questions answered right by one side alone (Fagerland, Lydersen and Laake 2013,
    doi:10.1186/1471-2288-13-91); else sign flips of the per-question differences (Fisher's randomisation), mid-P too, all
    of them where up to 13 questions differ, else 9999 random ones drawn from `seed`.
    Raises ValueError when the numbers of questions differ.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or second.ndim != 1 or not first.size or not second.size:
        raise ValueError(f"values have shapes {first.shape} and {second.shape}: give [questions], not 0 of them")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} questions, b {len(second)}: a paired test needs the same ones")
    differences = second - first
    mean, low, high = (float(x) for x in difference_interval(differences))
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        test, p_value = "mid-P McNemar", float(mcnemar(differences))
    else:
        changed = int((np.abs(differences) > 1e-12).sum())
        test = f"sign-flip permutation ({'exact' if changed <= EXACT else f'{FLIPS} flips'})"
        p_value = float(sign_flips(differences, seed))
    return Paired(mean, low, high, p_value, test, verdict(mean, low, high, p_value))


def verdict(mean: float, low: float, high: float, p_value: float) -> str:
    """`gain` or `loss` where interval and test agree that there is one, else `inside noise`."""
    clear = (low > 0 or high < 0) and p_value < LEVEL
    return NOISE if not clear else GAIN if mean > 0 else LOSS


def smallest_detectable(half_width: float, questions: int, power: float = 0.8) -> float:
    """Smallest true difference that a repetition would find with probability `power`, testing at 5%.

    half_width: that of the paired interval, t₀.₉₇₅·SE. The answer is (t₀.₉₇₅ + t_power)·SE, Student's quantiles
    at questions - 1 degrees of freedom (the usual power formula; Miller 2024, arXiv:2411.00640, gives it for evaluations).
    """
    from scipy import stats

    if questions < 2:
        return 1.0
    t = float(stats.t.ppf(1 - LEVEL / 2, questions - 1))
    return min(1.0, half_width * (1 + float(stats.t.ppf(power, questions - 1)) / t))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values for that many tests at once, in the same order: that any of them is below 0.05 although nothing changed happens
    5% of the time at most, however the tests depend on each other (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    found, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = largest
    return found


def difference_interval(differences: Array) -> tuple[Array, Array, Array]:
    """(mean, low, high) over the last axis of differences: [..., questions]."""
    from scipy import stats

    questions, mean = differences.shape[-1], differences.mean(axis=-1)
    spread = differences.std(axis=-1, ddof=1) if questions > 1 else np.zeros_like(mean)
    student = float(stats.t.ppf(1 - LEVEL / 2, max(questions - 1, 1)))
    half = np.where(spread > 1e-9, student * spread / np.sqrt(questions), 1 - (LEVEL / 2) ** (1 / questions))
    return mean, np.maximum(-1.0, mean - half), np.minimum(1.0, mean + half)


def mcnemar(differences: Array) -> Array:
    """Two-sided mid-P values of differences: [..., questions] of -1, 0 and 1.

    Of the questions that changed sides each way is as likely as the other. mid-P counts half of the results that are as
    extreme as the one found, which takes back most of the caution of the exact test.
    """
    from scipy import stats

    won, lost = (differences > 0.5).sum(axis=-1), (differences < -0.5).sum(axis=-1)
    few, changed = np.minimum(won, lost), won + lost
    half = stats.binom.pmf(few, changed, 0.5) / 2
    tail = np.where(won == lost, 1 - half, 2 * (stats.binom.cdf(few, changed, 0.5) - half))
    return np.asarray(np.where(changed > 0, tail, 1.0), dtype=np.float64)


def sign_flips(differences: Array, seed: int) -> Array:
    """Two-sided mid-P values of the mean of differences: [..., questions] when each may as well have had the other sign.

    Valid where the differences are symmetric about zero when nothing changed, as they are when both models answer each
    question alike; else in the limit of many questions. Where each is -1, 0 or 1 this is `mcnemar`.
    """
    rows = differences.reshape(-1, differences.shape[-1])
    found = np.ones(len(rows))
    counts = (np.abs(rows) > 1e-12).sum(axis=1)
    for place in np.flatnonzero((counts > 0) & (counts <= EXACT)):
        row = rows[place][np.abs(rows[place]) > 1e-12]
        sums = np.array([[0.0]])
        for value in row:
            sums = np.concatenate([sums + value, sums - value])
        greater, equal = _beyond(sums, np.array([row.sum()]))
        found[place] = (greater[0] + equal[0] / 2) / len(sums)
    many = np.flatnonzero(counts > EXACT)
    if len(many):
        signs, values = _signs(seed, rows.shape[1]), rows[many].T
        greater, equal = np.zeros(len(many)), np.zeros(len(many))
        for start in range(0, FLIPS, 1000):
            more = _beyond(signs[start:start + 1000].astype(np.float64) @ values, values.sum(axis=0))
            greater, equal = greater + more[0], equal + more[1]
        found[many] = (greater + (equal + 1) / 2) / (FLIPS + 1)  # what was found is one of the flips
    return np.asarray(found.reshape(differences.shape[:-1]), dtype=np.float64)


@lru_cache(maxsize=4)
def _signs(seed: int, questions: int) -> NDArray[np.int8]:
    """[flips, questions] of -1 and 1."""
    return (2 * np.random.default_rng(seed).integers(0, 2, (FLIPS, questions), dtype=np.int8) - 1).astype(np.int8)


def _beyond(sums: Array, found: Array) -> tuple[Array, Array]:
    """How many sums: [flips, rows] lie further from zero than found: [rows], and how many as far."""
    gap = np.abs(sums) - np.abs(found)
    equal = (np.abs(gap) < 1e-9).sum(axis=0)
    return (gap >= 1e-9).sum(axis=0).astype(np.float64), equal.astype(np.float64)
