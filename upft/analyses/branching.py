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


@dataclass(frozen=True)
class Sides:
    """One question that has right and wrong traces. right, wrong: mean outcome over its traces of that side by length:
    [lengths]; traces: how many of each side; ended: how many of them were over by each length: [2, lengths]."""

    question: str
    right: Array
    wrong: Array
    traces: tuple[int, int]
    ended: Array

    def told(self) -> dict[str, Any]:
        """As a line of values.jsonl."""
        return {"question": self.question, "right": self.right.tolist(), "wrong": self.wrong.tolist(),
                "traces": list(self.traces), "ended": self.ended.tolist()}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Sides:
        """From a line of values.jsonl."""
        return cls(str(line["question"]), np.array(line["right"]), np.array(line["wrong"]), tuple(line["traces"]),
                   np.array(line["ended"]))


def sides(points: Sequence[Point]) -> list[Sides]:
    """The questions that have right and wrong traces, by question. Raises ValueError without one."""
    lengths = sorted({point.t for point in points})
    these: dict[str, dict[bool, list[Point]]] = {}
    for point in points:
        these.setdefault(point.question, {}).setdefault(bool(point.right), []).append(point)
    found = []
    for question, both in these.items():
        if len(both) == 2:
            values = [means(both[side], lengths)[question] for side in (True, False)]
            traces = len({p.trace for p in both[True]}), len({p.trace for p in both[False]})
            ended = np.array([[sum(p.ended for p in both[side] if p.t == t) for t in lengths] for side in (True, False)])
            found.append(Sides(question, values[0], values[1], traces, ended))
    if not found:
        raise ValueError("no question has both right and wrong traces")
    return found


def errors(found: Sequence[Sides], lengths: Sequence[int], continuations: int, margin: float, seed: int) -> dict[str, Any]:
    """Where errors begin, of questions that have right and wrong traces.

    With a question's mean outcome over its right traces cut at t, R_q(t), and over its wrong ones, W_q(t): right and wrong are
    the means over questions of R_q and W_q, difference that of R_q - W_q. critical: the first t of those asked for at which
    the difference is at least `margin`; low, high: the 2.5% and 97.5% points of it over bootstrap resamples of the questions
    (Efron 1979, doi:10.1214/aos/1176344552), null where the difference does not come to it within the lengths; reached: share
    of the resamples in which it does. ended: share of the traces over by t.
    """
    right, wrong = np.array([one.right for one in found]), np.array([one.wrong for one in found])
    paired = [statistics.paired_values(wrong[:, i], right[:, i], seed) for i in range(len(lengths))]
    value, low, high, reached = critical(right - wrong, lengths, margin, seed)
    traces, ended = np.sum([one.traces for one in found], axis=0), np.sum([one.ended for one in found], axis=0)
    return {
        "questions": len(found), "t": list(lengths), "continuations": continuations, "margin": margin,
        "traces": {"right": int(traces[0]), "wrong": int(traces[1])},
        "right": bands.shares(right, continuations), "wrong": bands.shares(wrong, continuations),
        "difference": {"mean": [p.difference for p in paired], "low": [p.low for p in paired], "high": [p.high for p in paired],
                       "p_value": [p.p_value for p in paired], "verdict": [p.verdict for p in paired]},
        "ended": {name: [float(x) for x in ended[side] / traces[side]] for side, name in enumerate(("right", "wrong"))},
        "critical": {"t": value, "low": low, "high": high, "reached": reached},
    }


def together(seeds: Sequence[Sequence[Sides]]) -> list[Sides]:
    """Traces of one model under several seeds as one: of each question the means over the seeds that have it."""
    found: dict[str, list[Sides]] = {}
    for one in (one for some in seeds for one in some):
        found.setdefault(one.question, []).append(one)
    return [Sides(question, np.mean([one.right for one in some], axis=0), np.mean([one.wrong for one in some], axis=0),
                  (sum(one.traces[0] for one in some), sum(one.traces[1] for one in some)),
                  np.sum([one.ended for one in some], axis=0)) for question, some in found.items()]


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


MODELS = ("base", "trained")
CELLS = tuple((i, j) for i in MODELS for j in MODELS)
"""(who proposed a prefix, who continued it)."""


@dataclass(frozen=True)
class Solved:
    """One question. by: cell of CELLS -> mean outcome of its prefixes by length: [lengths]."""

    question: str
    by: Mapping[tuple[str, str], Array]

    def told(self) -> dict[str, Any]:
        """As a line of values.jsonl."""
        return {"question": self.question, **{f"{i} by {j}": self.by[i, j].tolist() for i, j in CELLS}}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Solved:
        """From a line of values.jsonl."""
        return cls(str(line["question"]), {(i, j): np.array(line[f"{i} by {j}"]) for i, j in CELLS})


def solved(cells: Mapping[tuple[str, str], Sequence[Point]]) -> list[Solved]:
    """The questions of the four cells, in order. Raises ValueError where the cells tell of different questions."""
    lengths = sorted({point.t for points in cells.values() for point in points})
    by_question = {cell: means(points, lengths) for cell, points in cells.items()}
    questions = sorted(by_question["base", "base"])
    if any(sorted(found) != questions for found in by_question.values()) or not questions:
        raise ValueError("the cells tell of different questions")
    return [Solved(q, {cell: found[q] for cell, found in by_question.items()}) for q in questions]


def mean(trainings: Sequence[Sequence[Solved]]) -> Sequence[Solved]:
    """Several trainings on the same samples as one. Raises ValueError where they tell of different questions."""
    if len(trainings) == 1:
        return trainings[0]
    if len({tuple(one.question for one in some) for some in trainings}) > 1:
        raise ValueError("the trainings tell of different questions")
    return [Solved(same[0].question, {cell: np.mean([one.by[cell] for one in same], axis=0) for cell in CELLS})
            for same in zip(*trainings, strict=True)]


def coverage(seeds: Sequence[Sequence[Solved]], lengths: Sequence[int], continuations: int, seed: int) -> dict[str, Any]:
    """What training moved; seeds: of one training, or of trainings under several seeds, the same questions each.

    With p and q the probabilities with which base and trained model propose a prefix x, a(x) and b(x) those with which they
    continue it to a right answer, and A(i, j) the accuracy of i's prefixes continued by j, such as A(base, trained) = sum p b:
    the change A(trained, trained) - A(base, base) is, without a rest (Kitagawa 1955, doi:10.1080/01621459.1955.10501299),

        coverage  sum (q - p)(a + b)/2 = [A(trained, base) - A(base, base) + A(trained, trained) - A(base, trained)] / 2
        accuracy  sum (b - a)(p + q)/2 = [A(base, trained) - A(base, base) + A(trained, trained) - A(trained, base)] / 2

    Each A is a mean over drawn prefixes, so nothing is assumed of prefixes that were not drawn. Intervals and tests: paired
    over questions (`statistics.paired_values`); with several seeds over questions and seeds, crossed random effects
    (`statistics.paired_over_seeds`). moved: questions whose part is not zero; where none is, low and high say no more than how
    many could be otherwise and still not show, were each to move by all of its accuracy. Raises ValueError where the seeds tell
    of different questions.
    """
    questions = [one.question for one in seeds[0]]
    if any([one.question for one in some] != questions for some in seeds) or not questions:
        raise ValueError("the seeds tell of different questions")
    # [seeds, questions, lengths]
    value = {cell: np.array([[one.by[cell] for one in some] for some in seeds]) for cell in CELLS}
    bb, bt, tb, tt = (value[cell] for cell in CELLS)
    out: dict[str, Any] = {"questions": len(questions), "continuations": continuations, "t": list(lengths)}
    out["accuracy_of"] = {f"{i} by {j}": bands.shares(value[i, j][0], continuations) if len(seeds) == 1 else
                          bands.shares_over_seeds(value[i, j]) for i, j in CELLS}
    for name, before, after in (("change", bb, tt), ("coverage", (bb + bt) / 2, (tb + tt) / 2),
                                ("accuracy", (bb + tb) / 2, (bt + tt) / 2)):
        moved = (np.abs(after - before) > 1e-12).any(axis=0).sum(axis=0)
        found = [statistics.paired_values(before[0, :, i], after[0, :, i], seed) if len(seeds) == 1 else
                 statistics.paired_over_seeds(before[:, :, i], after[:, :, i]) for i in range(len(lengths))]
        out[name] = [dataclasses.asdict(one) | {"moved": int(n)} for one, n in zip(found, moved, strict=True)]
    return out
