"""A curve over questions with its 95% band, where some questions end before others."""

from __future__ import annotations

from typing import Any

import numpy as np

from upft.statistics.means import LEVEL, Array, mean_interval


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


def amounts(values: Array) -> dict[str, list[float]]:
    """The same of numbers from 0 up without a bound, such as nats: mean ± t·sd/sqrt(questions) (Student's t), not below 0."""
    from scipy import stats

    found = []
    for column in values.T:
        known = column[~np.isnan(column)]
        mean, n = float(known.mean()), len(known)
        half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * float(known.std(ddof=1)) / n**0.5 if n > 1 else mean
        found.append((mean, max(0.0, mean - half), mean + half))
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


def _lists(found: list[tuple[float, float, float]]) -> dict[str, Any]:
    return {name: [row[i] for row in found] for i, name in enumerate(("mean", "low", "high"))}
