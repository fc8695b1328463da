"""Prefix self-consistency: different prefixes a question, and traces that share one, against length and difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from upft.analyses import bands
from upft.diagnosis import Trace, beginnings
from upft.statistics.means import Array

ROWS = ("agreement", "distinct", "traces_a_prefix")


@dataclass(frozen=True)
class Counted:
    """One question. traces: how many, two or more; right: share of them that is, None where nobody looked; counts: ROWS by the
    lengths that are known there, [3, known] (`diagnosis.beginnings`)."""

    question: str
    traces: int
    right: float | None
    counts: Array

    @classmethod
    def of(cls, question: str, traces: Sequence[Trace], right: float | None, longest: int) -> Counted:
        """Count the first 1 to `longest` tokens of a question's traces."""
        return cls(question, len(traces), right, beginnings(traces, longest))

    def told(self) -> dict[str, Any]:
        """As a line of values.jsonl."""
        return {"question": self.question, "traces": self.traces, "right": self.right,
                **{name: [float(x) for x in row] for name, row in zip(ROWS, self.counts, strict=True)}}

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Counted:
        """From a line of values.jsonl."""
        return cls(str(line["question"]), int(line["traces"]), line["right"], np.array([line[name] for name in ROWS]))


def summary(counted: Sequence[Counted], longest: int, edges: Sequence[float]) -> dict[str, Any]:
    """Plain JSON. groups: all questions, then those of each difficulty: from, to (shares of right traces; null for all);
    questions; right, the mean share; known [t], how many questions are known there; alike [t], whether all of them have as many
    different prefixes; and for agreement, distinct and traces_a_prefix the lists mean, low, high by t. traces: the most of any
    question. edges: shares of right traces at which the questions are parted into groups, each from its edge on up to the next.
    """
    groups = [_group(counted, None, None)]
    if edges and counted:
        ends = [0.0, *edges, 1.0]
        for number, (low, high) in enumerate(pairwise(ends)):
            last = number == len(ends) - 2
            chosen = [one for one in counted if one.right is not None and low <= one.right and (one.right < high or last)]
            if chosen:
                groups.append(_group(chosen, low, high))
    return {"questions": len(counted), "traces": max((one.traces for one in counted), default=0), "longest": longest,
            "edges": list(edges), "groups": groups}


def together(seeds: Sequence[Sequence[Counted]]) -> list[Counted]:
    """Samplings of one model under several seeds as one: of each question the means over the seeds that have it, up to the
    shortest length known. Raises ValueError where a question was sampled differently often: counts of 16 traces are not those
    of 1000."""
    found: dict[str, list[Counted]] = {}
    for one in (one for counted in seeds for one in counted):
        found.setdefault(one.question, []).append(one)
    if any(len({one.traces for one in some}) > 1 for some in found.values()):
        raise ValueError("the seeds have different numbers of traces a question")
    return [Counted(question, some[0].traces, _mean([one.right for one in some]),
                    np.mean([one.counts[:, :min(one.counts.shape[1] for one in some)] for one in some], axis=0))
            for question, some in found.items()]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _group(chosen: Sequence[Counted], low: float | None, high: float | None) -> dict[str, Any]:
    shares = [one.right for one in chosen if one.right is not None]
    known = max((one.counts.shape[1] for one in chosen), default=0)
    n = max((one.traces for one in chosen), default=1)
    out: dict[str, Any] = {"from": low, "to": high, "questions": len(chosen),
                           "right": float(np.mean(shares)) if shares else None, "t": list(range(1, known + 1))}
    for number, name in enumerate(ROWS):
        scale = 1.0 if name == "agreement" else float(n)  # both counts lie from 1/n to 1 of the traces
        values = bands.padded([one.counts[number] / scale for one in chosen], known)
        band = bands.scaled(bands.shares(values, np.inf), scale)
        out[name] = band if name == "agreement" else {**band, "low": [max(1.0, x) for x in band["low"]]}
        out["known"] = [int(k) for k in (~np.isnan(values)).sum(axis=0)]
        if name == "distinct":
            out["alike"] = [bool(np.ptp(column[~np.isnan(column)]) < 1e-12) for column in values.T]
    return out
