"""The interval of a mean over questions: one for accuracy, pass@k and maj@k alike.

Knows one model on one task. Every function of arrays takes leading axes, so that thousands of simulated experiments are
one call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05
"""Two-sided error rate of intervals and tests."""
FLAT = 1e-18
"""A variance below this is rounding: equal means can differ in their last bit."""

CARRYING = 10
"""Questions that must carry a variance before it is believed to be smaller than that of independent tries."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A share from 0 to 1 with its 95% interval."""

    value: float
    low: float
    high: float


def accuracy(correct: ArrayLike) -> Estimate:
    """Accuracy (avg@k with k samples a question) with the interval of `mean_interval`.

    One sample a question: Wilson's score interval. Raises ValueError unless correct is [questions, samples].
    """
    means, samples = question_means(correct)
    return estimate(means, samples, samples)


def estimate(values: Array, groups: float, most: float) -> Estimate:
    """Mean of values: [questions] with its 95% interval; groups and most as in `mean_interval`."""
    value, low, high = mean_interval(values, groups, most)
    return Estimate(float(value), float(low), float(high))


def mean_interval(values: Array, groups: float, most: float) -> tuple[Array, Array, Array]:
    """(mean, low, high) over the last axis of values: [..., questions], each from 0 to 1.

    groups: into how many independent tries of the thing measured a question's samples fall (samples for an accuracy,
    samples/k for pass@k). most: how many independent answers a question can at most stand for; infinite where that is
    not known.

    The ends lie between two intervals, w = (1 - 1/groups)^4 of the way from the first to the second:

    - Wilson's at the effective number of answers (Wilson 1927, doi:10.1080/01621459.1927.10502953): with p the mean,
      (p + c²/2n ± c·sqrt(p(1-p)/n + c²/4n²)) / (1 + c²/n), c = 1.96, n = p(1-p)/SE² (Kish's design effect; Korn and Graubard
      1998, Survey Methodology 24), SE² = var(values, ddof 1)/questions (a mean of clusters; Miller 2024, arXiv:2411.00640).
      n is at most questions x most, and where few questions carry the variance, (Σd²)²/Σd⁴ < 10 of them with d a value's
      distance from p, at most questions x groups. With most = 1 the values are 0 and 1 and n = questions.
    - Student's t corrected for the skewness of the values by Hall's cubic (Hall 1992, doi:10.1111/j.2517-6161.1992.tb01866.x).

    Wilson's is right for one try, whose variance is p(1-p); of many tries the values are nearly continuous, and where a few
    questions are unlike the rest only the skewness shows it. Where all values are equal they say nothing of how they vary, and
    Wilson's with n = questions stands alone. The weight was chosen by simulation (docs/statistics.md).
    """
    from scipy import stats

    questions = values.shape[-1]
    p = values.mean(axis=-1)
    normal = float(stats.norm.ppf(1 - LEVEL / 2))
    variance = values.var(axis=-1, ddof=1) if questions > 1 else np.zeros_like(p)
    flat = variance <= FLAT
    weight = np.where(flat, 0.0, (1 - 1 / max(groups, 1.0)) ** 4)
    n = np.full_like(p, float(questions))
    if most > 1:
        square = (values - p[..., None]) ** 2
        carrying = square.sum(axis=-1) ** 2 / np.maximum((square**2).sum(axis=-1), FLAT**2)
        bound = questions * np.minimum(most, groups * np.maximum(carrying / CARRYING, 1.0))
        n = np.where(flat, n, np.minimum(p * (1 - p) * questions / np.maximum(variance, FLAT), bound))
    low, high = wilson(p, n, normal)
    if questions > 1 and groups > 1:
        skewed_low, skewed_high = _hall(values, float(stats.t.ppf(1 - LEVEL / 2, questions - 1)))
        low, high = low + weight * (skewed_low - low), high + weight * (skewed_high - high)
    return p, np.minimum(np.maximum(low, 0.0), p), np.maximum(np.minimum(high, 1.0), p)


def wilson(p: Array, n: Array, c: ArrayLike) -> tuple[Array, Array]:
    """Ends of Wilson's score interval of a share p of n answers at the quantile c."""
    c = np.asarray(c, dtype=np.float64)
    centre = (p + c * c / (2 * n)) / (1 + c * c / n)
    half = c / (1 + c * c / n) * np.sqrt(np.maximum(p * (1 - p), 0.0) / n + c * c / (4 * n * n))
    return centre - half, centre + half


def _hall(values: Array, c: float) -> tuple[Array, Array]:
    """Ends of the interval from Hall's transformation of the t statistic.

    With t = (mean - truth)/s, s the standard deviation (ddof 0) and g the skewness, h(t) = t + g·t²/3 + g²·t³/27 + g/(6n) has
    lost its first-order skewness; it is monotone, and h(t)·sqrt(n) is held between ± c.
    """
    n = values.shape[-1]
    mean, s = values.mean(axis=-1), np.sqrt(np.maximum(values.var(axis=-1), FLAT))
    skew = ((values - mean[..., None]) ** 3).mean(axis=-1) / s**3
    a = skew / 3
    small = np.abs(a) < 1e-6  # h is then the identity

    def inverse(x: float) -> Array:
        y = x / np.sqrt(n) - skew / (6 * n)
        return np.where(small, y, (np.cbrt(1 + 3 * a * y) - 1) / np.where(small, 1.0, a))

    c *= float(np.sqrt(n / (n - 1)))
    return mean - s * inverse(c), mean - s * inverse(-c)


def question_means(correct: ArrayLike) -> tuple[Array, int]:
    """(mean of each question: [questions], samples a question). Raises ValueError for another shape."""
    matrix = np.asarray(correct, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"correct has shape {matrix.shape}: give [questions, samples], neither of them 0")
    return matrix.mean(axis=1), matrix.shape[1]
