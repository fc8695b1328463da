"""More than one task, more than one training seed.

Tasks are fixed: another run has the same ones, and only their questions could have been others. Seeds are drawn, as
questions are: another run would have others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from upft.statistics.means import LEVEL, Array, Estimate, wilson
from upft.statistics.pairs import Paired, difference_interval, sign_flips, verdict

NOTHING = 1e-15
"""Variances up to this are rounding."""


def macro(tasks: Sequence[Estimate]) -> Estimate:
    """Mean of the tasks' values, each task counting alike, with its 95% interval.

    The distances from value to end of independent intervals add up in squares, each side for itself (MOVER: Zou and Donner
    2008, doi:10.1002/sim.3095): low = mean - sqrt(Σ (value - low)²)/tasks, and high likewise. So a small task keeps the
    skewed interval it has alone. Raises ValueError without a task.
    """
    ends = np.array([[task.value, task.low, task.high] for task in tasks])
    if not ends.size:
        raise ValueError("a mean over no task: give at least one")
    value, low, high = macro_interval(ends[:, 0], ends[:, 1], ends[:, 2])
    return Estimate(float(value), max(0.0, float(low)), min(1.0, float(high)))


def macro_interval(values: Array, lows: Array, highs: Array) -> tuple[Array, Array, Array]:
    """(mean, low, high) over the first axis, the tasks, of the ends of independent intervals."""
    tasks, mean = len(values), values.mean(axis=0)
    below, above = (np.sqrt(((values - ends) ** 2).sum(axis=0)) / tasks for ends in (lows, highs))
    return mean, mean - below, mean + above


def paired_macro(before: Sequence[ArrayLike], after: Sequence[ArrayLike], seed: int = 0) -> Paired:
    """Difference of two macro means; `before` and `after` hold the values: [questions] of each task in turn.

    Interval: as `macro`, of the tasks' paired intervals. Test: sign flips of the per-question differences, each weighted by
    1/(tasks x questions of its task), so that the statistic is the difference of the means; tasks are strata.
    Raises ValueError when tasks or questions differ in number.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"a has {len(before)} tasks, b {len(after)}: give the same ones, at least one")
    differences = []
    for place, (a, b) in enumerate(zip(before, after, strict=True)):
        first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if first.ndim != 1 or first.shape != second.shape or not first.size:
            raise ValueError(f"task {place}: values have shapes {first.shape} and {second.shape}: give the same questions")
        differences.append(second - first)
    ends = np.array([difference_interval(one) for one in differences])
    mean, low, high = (float(x) for x in macro_interval(ends[:, 0], ends[:, 1], ends[:, 2]))
    weighted = np.concatenate([one / (len(differences) * len(one)) for one in differences])
    largest = float(np.abs(weighted).max())
    p_value = float(sign_flips(weighted / largest, seed)) if largest > 0 else 1.0
    return Paired(mean, max(-1.0, low), min(1.0, high), p_value, "stratified sign-flip permutation",
                  verdict(mean, low, high, p_value))


def over_seeds(values: ArrayLike) -> Estimate:
    """Mean of values: [seeds, questions], the same questions under several training seeds, with a 95% interval that counts
    both: it covers the mean over the population of questions and of seeds.

    Question and seed are crossed random effects, value = mean + question + seed + rest (Cornfield and Tukey 1956,
    doi:10.1214/aoms/1177728067; Brennan 2001, Generalizability Theory): effects that are independent, of one variance each.
    The variance of the mean is estimated from the mean squares, Satterthwaite's degrees of freedom (1946,
    doi:10.2307/3002019) give Student's quantile, and the interval is Wilson's at the effective number of answers, as for an
    accuracy. A seed that is better on all questions widens it as it should; two seeds say very little about the
    next one, and the interval shows that. Raises ValueError unless there are at least 2 seeds and 2 questions.
    """
    value, low, high = seeds_interval(_seeds(values))
    return Estimate(float(value), float(low), float(high))


def paired_over_seeds(a: ArrayLike, b: ArrayLike) -> Paired:
    """b minus a over common seeds and questions: a, b: [seeds, questions], both in the same order.

    The model of `over_seeds` on the differences: mean ± t·SE, and Student's test of the mean against zero with the same SE and
    degrees of freedom. Seeds are paired: give runs under the same seeds in the same order. Raises ValueError when shapes
    differ or there are not at least 2 seeds and 2 questions.
    """
    first, second = _seeds(a), _seeds(b)
    if first.shape != second.shape:
        raise ValueError(f"a is {first.shape}, b {second.shape}: give the same seeds and questions")
    mean, low, high, p_value = (float(x) for x in seeds_difference(second - first))
    return Paired(mean, low, high, p_value, "t, crossed random effects", verdict(mean, low, high, p_value))


def macro_over_seeds(tasks: Sequence[ArrayLike]) -> Estimate:
    """Mean of the tasks' means under several seeds: each task [seeds, questions], all under the same seeds. The model of
    `over_seeds`, with `seeds_macro`'s variance and Wilson's interval; of one task it is `over_seeds`."""
    from scipy import stats

    matrices = [_seeds(task) for task in tasks]
    mean, variance, freedom = seeds_macro(matrices)
    most = float(sum(matrix.size for matrix in matrices))
    p = np.clip(np.array(mean), 0.0, 1.0)
    if variance <= 1e-18:
        n, quantile = most / len(matrices[0]), float(stats.norm.ppf(1 - LEVEL / 2))
    else:
        n, quantile = min(float(p * (1 - p) / variance), most), float(stats.t.ppf(1 - LEVEL / 2, freedom))
    low, high = wilson(p, np.array(n), quantile)
    return Estimate(float(p), min(max(float(low), 0.0), float(p)), max(min(float(high), 1.0), float(p)))


def paired_macro_over_seeds(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> Paired:
    """b minus a of the tasks' mean over common seeds and questions: each task [seeds, questions], all under the same seeds.
    `paired_over_seeds` of one task. Raises ValueError where tasks, seeds or questions differ in number."""
    from scipy import stats

    first, second = [_seeds(task) for task in a], [_seeds(task) for task in b]
    if [task.shape for task in first] != [task.shape for task in second]:
        raise ValueError("a and b have other tasks, seeds or questions: give the same ones")
    mean, variance, freedom = seeds_macro([y - x for x, y in zip(first, second, strict=True)])
    error = float(np.sqrt(max(variance, 1e-18)))
    flat = variance <= 1e-18
    questions = sum(task.shape[1] for task in first)
    half = 1 - (LEVEL / 2) ** (1 / questions) if flat else float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p_value = 1.0 if flat else float(2 * stats.t.sf(abs(mean) / error, freedom))
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return Paired(mean, low, high, p_value, "t, crossed random effects", verdict(mean, low, high, p_value))


def detectable_over_seeds(a: Sequence[ArrayLike], b: Sequence[ArrayLike], power: float = 0.8) -> float:
    """Smallest true difference that a repetition of `paired_macro_over_seeds` would find with probability `power`, testing at
    5%: (t₀.₉₇₅ + t_power)·SE with its SE and degrees of freedom, as `smallest_detectable` has it of one seed. So few seeds
    find large differences only."""
    from scipy import stats

    pair = paired_macro_over_seeds(a, b)
    _, variance, freedom = seeds_macro([_seeds(y) - _seeds(x) for x, y in zip(a, b, strict=True)])
    t, more = (float(stats.t.ppf(place, freedom)) for place in (1 - LEVEL / 2, power))
    half = (pair.high - pair.low) / 2 if variance <= 1e-18 else t * float(np.sqrt(variance))
    return min(1.0, half * (1 + more / t))


def seeds_macro(tasks: Sequence[Array]) -> tuple[float, float, float]:
    """(mean, variance of the mean, degrees of freedom) of the mean over tasks, each [seeds, questions] under the same seeds.

    A seed moves all tasks at once, so its part is taken from the seeds' means over the tasks; questions are drawn for each
    task by itself, so theirs add up. Parts and degrees of freedom as in `_crossed`. Raises ValueError without a task or
    where tasks have other numbers of seeds.
    """
    if not tasks or len({len(task) for task in tasks}) != 1:
        raise ValueError(f"{len(tasks)} tasks with {sorted({len(task) for task in tasks})} seeds: give each the same seeds")
    seeds = len(tasks[0])
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_questions = of_rest = weight = of_rest_weight = 0.0
    for task in tasks:
        questions, mean = task.shape[1], task.mean()
        q = seeds * float(task.mean(axis=0).var(ddof=1))
        left = task - task.mean(axis=0) - task.mean(axis=1)[:, None] + mean
        e = float((left**2).sum()) / ((seeds - 1) * (questions - 1))
        scale = seeds * questions * len(tasks) ** 2
        of_rest += e / scale
        of_rest_weight += e**2 / ((seeds - 1) * (questions - 1)) / scale**2
        if q > e:
            of_questions += (q - e) / scale
            weight += (q**2 / (questions - 1) + e**2 / ((seeds - 1) * (questions - 1))) / scale**2
    total = of_seeds + of_questions
    weight += of_seeds**2 / (seeds - 1)
    if total <= NOTHING:
        total, weight = of_rest, of_rest_weight
    most = float(sum(task.size for task in tasks) - 1)
    return float(by_seed.mean()), total, float(np.clip(total**2 / max(weight, 1e-300), float(seeds - 1), most))


def seeds_interval(values: Array) -> tuple[Array, Array, Array]:
    """(mean, low, high) of values: [..., seeds, questions] from 0 to 1."""
    from scipy import stats

    seeds, questions = values.shape[-2:]
    mean, variance, freedom = _crossed(values)
    p = np.clip(mean, 0.0, 1.0)
    flat = variance <= 1e-18
    n = np.where(flat, float(questions), np.minimum(p * (1 - p) / np.maximum(variance, 1e-18), float(questions * seeds)))
    low, high = wilson(p, n, np.where(flat, stats.norm.ppf(1 - LEVEL / 2), stats.t.ppf(1 - LEVEL / 2, freedom)))
    return p, np.minimum(np.maximum(low, 0.0), p), np.maximum(np.minimum(high, 1.0), p)


def seeds_difference(differences: Array) -> tuple[Array, Array, Array, Array]:
    """(mean, low, high, p-value) of differences: [..., seeds, questions] from -1 to 1."""
    from scipy import stats

    questions = differences.shape[-1]
    mean, variance, freedom = _crossed(differences)
    flat, error = variance <= 1e-18, np.sqrt(np.maximum(variance, 1e-18))
    half = np.where(flat, 1 - (LEVEL / 2) ** (1 / questions), stats.t.ppf(1 - LEVEL / 2, freedom) * error)
    p_value = np.where(flat, 1.0, 2 * stats.t.sf(np.abs(mean) / error, freedom))
    return mean, np.maximum(-1.0, mean - half), np.minimum(1.0, mean + half), p_value


def seeds_amount(values: Array) -> tuple[Array, Array, Array]:
    """(mean, low, high) of values: [..., seeds, questions] from 0 up without a bound: mean ± t·SE of the model of
    `over_seeds`, not below 0."""
    from scipy import stats

    mean, variance, freedom = _crossed(values)
    half = stats.t.ppf(1 - LEVEL / 2, freedom) * np.sqrt(variance)
    return mean, np.maximum(0.0, mean - half), mean + half


def _crossed(values: Array) -> tuple[Array, Array, Array]:
    """(mean, variance of the mean, degrees of freedom) of values: [..., seeds, questions].

    With mean squares Q of questions, S of seeds, E of what is left, the variance is (S + Q - E)/(seeds x questions); the part
    of the questions, Q - E, is not taken below zero. Where nothing would be left of it, because the seeds' means are equal by
    chance, it is E, which it holds even where neither seeds nor questions have an effect. Degrees of freedom are at least those
    of the seeds: no part has fewer.
    """
    seeds, questions = values.shape[-2:]
    mean = values.mean(axis=(-2, -1))
    by_question, by_seed = values.mean(axis=-2), values.mean(axis=-1)
    q = seeds * by_question.var(axis=-1, ddof=1)
    s = questions * by_seed.var(axis=-1, ddof=1)
    left = values - by_question[..., None, :] - by_seed[..., :, None] + mean[..., None, None]
    e = (left**2).sum(axis=(-2, -1)) / ((seeds - 1) * (questions - 1))
    total, of_rest = s + np.maximum(q - e, 0.0), e**2 / ((seeds - 1) * (questions - 1))
    of_questions = np.where(q > e, q**2 / (questions - 1) + of_rest, 0.0)
    nothing = total <= NOTHING
    weight = np.where(nothing, of_rest, s**2 / (seeds - 1) + of_questions)
    total = np.where(nothing, e, total)
    freedom = np.clip(total**2 / np.maximum(weight, 1e-300), float(seeds - 1), float(seeds * questions - 1))
    return mean, total / (seeds * questions), freedom


def _seeds(values: ArrayLike) -> Array:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or min(matrix.shape) < 2:
        raise ValueError(f"values have shape {matrix.shape}: give [seeds, questions], at least 2 of each")
    return matrix
