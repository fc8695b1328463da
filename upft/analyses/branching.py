"""What becomes of prefixes when they are continued: where errors begin, and what training moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upft import statistics
from upft.analyses import bands
from upft.statistics.means import LEVEL, Array

RESAMPLES = 9999
"""Of the bootstrap over questions."""


@dataclass(frozen=True)
class Point:
    """One trace cut at one length. right: whether the whole trace is (None where nobody looked); ended: it was over by then;
    outcome: share of its continuations that end right."""

    question: str
    trace: int
    t: int
    right: bool | None
    ended: bool
    outcome: float


def means(points: Sequence[Point], lengths: Sequence[int]) -> dict[str, Array]:
    """Question -> mean outcome over its traces at each length: [lengths]. Every trace must have every length."""
    place = {t: i for i, t in enumerate(lengths)}
    sums: dict[str, Array] = {}
    counts: dict[str, Array] = {}
    for point in points:
        total = sums.setdefault(point.question, np.zeros(len(lengths)))
        count = counts.setdefault(point.question, np.zeros(len(lengths)))
        total[place[point.t]] += point.outcome
        count[place[point.t]] += 1
    return {question: total / counts[question] for question, total in sums.items()}


def errors(points: Sequence[Point], continuations: int, margin: float, seed: int) -> dict[str, Any]:
    """Where errors begin, of traces of questions that have right and wrong ones.

    With a question's mean outcome over its right traces cut at t, R_q(t), and over its wrong ones, W_q(t): right and wrong are
    the means over questions of R_q and W_q, difference that of R_q - W_q. critical: the first t of those asked for at which
    the difference is at least `margin`; low, high: the 2.5% and 97.5% points of it over bootstrap resamples of the questions
    (Efron 1979, doi:10.1214/aos/1176344552), null where the difference does not come to it within the lengths; reached: share
    of the resamples in which it does. ended: share of the traces over by t. Raises ValueError without a question.
    """
    lengths = sorted({point.t for point in points})
    sides = {side: [p for p in points if p.right is side] for side in (True, False)}
    by_question = {side: means(these, lengths) for side, these in sides.items()}
    questions = [q for q in by_question[True] if q in by_question[False]]
    if not questions:
        raise ValueError("no question has both right and wrong traces")
    right, wrong = (np.array([by_question[side][q] for q in questions]) for side in (True, False))
    paired = [statistics.paired_values(wrong[:, i], right[:, i], seed) for i in range(len(lengths))]
    value, low, high, reached = critical(right - wrong, lengths, margin, seed)
    return {
        "questions": len(questions), "t": lengths, "continuations": continuations, "margin": margin,
        "traces": {name: len({(p.question, p.trace) for p in sides[side]})
                   for name, side in (("right", True), ("wrong", False))},
        "right": bands.shares(right, continuations), "wrong": bands.shares(wrong, continuations),
        "difference": {"mean": [p.difference for p in paired], "low": [p.low for p in paired], "high": [p.high for p in paired],
                       "p_value": [p.p_value for p in paired], "verdict": [p.verdict for p in paired]},
        "ended": {name: [float(np.mean([p.ended for p in sides[side] if p.t == t])) for t in lengths]
                  for name, side in (("right", True), ("wrong", False))},
        "critical": {"t": value, "low": low, "high": high, "reached": reached},
    }


def critical(differences: Array, lengths: Sequence[int], margin: float,
             seed: int) -> tuple[int | None, int | None, int | None, float]:
    """(first length at which the mean of differences: [questions, lengths] is at least `margin`, low, high, share of the
    bootstrap resamples in which one is); see `errors`."""
    questions = len(differences)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(questions, np.full(questions, 1 / questions), RESAMPLES)  # how often each question is drawn

    def first(curves: Array) -> Array:
        over = curves >= margin - 1e-12
        return np.where(over.any(axis=-1), over.argmax(axis=-1), len(lengths))

    def length(place: float) -> int | None:
        return None if place >= len(lengths) else lengths[int(place)]

    places = np.sort(first(counts @ differences / questions))
    low, high = places[int(LEVEL / 2 * RESAMPLES)], places[int((1 - LEVEL / 2) * RESAMPLES)]
    found = first(differences.mean(axis=0)[None])[0]
    return length(found), length(low), length(high), float((places < len(lengths)).mean())


def coverage(cells: Mapping[tuple[str, str], Sequence[Point]], continuations: int, seed: int) -> dict[str, Any]:
    """What training moved. cells: (who proposed the prefix, who continued it), each `base` or `trained` -> points.

    With p and q the probabilities with which base and trained model propose a prefix x, a(x) and b(x) those with which they
    continue it to a right answer, and A(i, j) the accuracy of i's prefixes continued by j, such as A(base, trained) = sum p b:
    the change A(trained, trained) - A(base, base) is, without a rest (Kitagawa 1955, doi:10.1080/01621459.1955.10501299),

        coverage  sum (q - p)(a + b)/2 = [A(trained, base) - A(base, base) + A(trained, trained) - A(base, trained)] / 2
        accuracy  sum (b - a)(p + q)/2 = [A(base, trained) - A(base, base) + A(trained, trained) - A(trained, base)] / 2

    Each A is a mean over drawn prefixes, so nothing is assumed of prefixes that were not drawn. Intervals and tests: paired
    over questions (`statistics.paired_values`). Raises ValueError where the cells tell of different questions.
    """
    lengths = sorted({point.t for points in cells.values() for point in points})
    by_question = {cell: means(points, lengths) for cell, points in cells.items()}
    questions = sorted(by_question["base", "base"])
    if any(sorted(found) != questions for found in by_question.values()) or not questions:
        raise ValueError("the cells tell of different questions")
    value = {cell: np.array([found[q] for q in questions]) for cell, found in by_question.items()}
    bb, bt, tb, tt = (value[i, j] for i in ("base", "trained") for j in ("base", "trained"))
    out: dict[str, Any] = {"questions": len(questions), "continuations": continuations, "t": lengths}
    out["accuracy_of"] = {f"{i} by {j}": bands.shares(value[i, j], continuations) for i, j in value}
    for name, before, after in (("change", bb, tt), ("coverage", (bb + bt) / 2, (tb + tt) / 2),
                                ("accuracy", (bb + tb) / 2, (bt + tt) / 2)):
        out[name] = [dataclasses.asdict(statistics.paired_values(before[:, i], after[:, i], seed)) for i in range(len(lengths))]
    return out
