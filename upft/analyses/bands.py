"""A curve over questions with its 95% band, where some questions end before others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from upft import statistics
from upft.statistics.means import LEVEL, Array, mean_interval
from upft.statistics.several import seeds_amount


def shares(values: Array, tries: float) -> dict[str, list[float]]:
    """Mean, low and high at each t of values: [questions, t] from 0 to 1, NaN where a question is not known; lists [t].

    Interval: `statistics.means.mean_interval`; tries: independent tries behind a question's value.
    """
    found: list[tuple[float, float, float]] = []
    for column in values.T:
        known = column[~np.isnan(column)]
        mean, low, high = mean_interval(known, tries, np.inf)
        found.append((float(mean), float(low), float(high)))
    return _lists(found)


def amounts(values: Array) -> dict[str, list[float | None]]:
    """The same of numbers from 0 up without a bound, such as nats: mean ± t·sd/sqrt(questions) (Student's t), not below 0. One
    question has no interval: its low and high are None."""
    from scipy import stats

    found: list[tuple[float | None, ...]] = []
    for column in values.T:
        known = column[~np.isnan(column)]
        mean, n = float(known.mean()), len(known)
        if n < 2:
            found.append((mean, None, None))
            continue
        half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * float(known.std(ddof=1)) / n**0.5
        found.append((mean, max(0.0, mean - half), mean + half))
    return _lists(found)


def shares_over_seeds(values: Array) -> dict[str, list[float]]:
    """Mean, low and high at each t of values: [seeds, questions, t] from 0 to 1, by `statistics.over_seeds`."""
    found = [statistics.over_seeds(values[:, :, place]) for place in range(values.shape[2])]
    return _lists([(one.value, one.low, one.high) for one in found])


def amounts_over_seeds(values: Array) -> dict[str, list[float | None]]:
    """Mean, low and high at each t of values: [seeds, questions, t] from 0 up, NaN where a question is not known under a seed,
    which leaves it out there. Mean ± t·SE with question and seed as crossed random effects (`statistics.over_seeds`), not
    below 0. Ends before the first t at which fewer than 2 questions are known."""
    found: list[tuple[float | None, ...]] = []
    for place in range(values.shape[2]):
        known = values[:, ~np.isnan(values[:, :, place]).any(axis=0), place]
        if known.shape[1] < 2:
            break
        found.append(tuple(float(x) for x in seeds_amount(known)))
    return _lists(found)


def scaled(band: dict[str, list[float]], by: float) -> dict[str, list[float]]:
    """A band times a number."""
    return {name: [by * x for x in values] for name, values in band.items()}


def padded(rows: list[Array], longest: int) -> Array:
    """[questions, longest] of rows of which some are shorter, NaN behind their ends."""
    out = np.full((len(rows), longest), np.nan)
    for place, row in enumerate(rows):
        out[place, :len(row)] = row[:longest]
    return out


def _lists(found: Sequence[tuple[float | None, ...]]) -> dict[str, Any]:
    return {name: [row[i] for row in found] for i, name in enumerate(("mean", "low", "high"))}
