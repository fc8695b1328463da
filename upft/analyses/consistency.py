"""Prefix self-consistency: different prefixes a question, and traces that share one, against length and difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from upft.analyses import bands
from upft.diagnosis import Trace, beginnings
from upft.statistics.means import Array

ROWS = ("agreement", "distinct", "traces_a_prefix")


class Consistency:
    """Give it one question at a time; holds three numbers a question and length, whatever the number of traces.

    edges: shares of right traces at which the questions are parted into groups, each from its edge on up to the next.
    """

    def __init__(self, longest: int, edges: Sequence[float]) -> None:
        self._longest, self._edges = longest, tuple(edges)
        self._rows: list[Array] = []
        self._shares: list[float | None] = []
        self._traces: list[int] = []

    def add(self, traces: Sequence[Trace], right: float | None) -> None:
        """Two or more traces of one question, and the share of them that is right (None where nobody looked)."""
        self._rows.append(beginnings(traces, self._longest))
        self._shares.append(right)
        self._traces.append(len(traces))

    def found(self) -> dict[str, Any]:
        """Plain JSON. groups: all questions, then those of each difficulty: from, to (shares of right traces; null for all);
        questions; right, the mean share; known [t], how many questions are known there; and for agreement, distinct and
        traces_a_prefix the lists mean, low, high by t (`diagnosis.beginnings`). traces: a question has, at most.
        """
        groups = [self._group(list(range(len(self._rows))), None, None)]
        if self._edges and self._rows:
            ends = [0.0, *self._edges, 1.0]
            for number, (low, high) in enumerate(pairwise(ends)):
                last = number == len(ends) - 2
                chosen = [i for i, share in enumerate(self._shares) if share is not None and low <= share
                          and (share < high or last)]
                if chosen:
                    groups.append(self._group(chosen, low, high))
        return {"questions": len(self._rows), "traces": max(self._traces, default=0), "longest": self._longest,
                "edges": list(self._edges), "groups": groups}

    def _group(self, chosen: list[int], low: float | None, high: float | None) -> dict[str, Any]:
        shares = [share for i in chosen if (share := self._shares[i]) is not None]
        known = max((self._rows[i].shape[1] for i in chosen), default=0)
        n = max((self._traces[i] for i in chosen), default=1)
        out: dict[str, Any] = {"from": low, "to": high, "questions": len(chosen),
                               "right": float(np.mean(shares)) if shares else None, "t": list(range(1, known + 1))}
        for number, name in enumerate(ROWS):
            scale = 1.0 if name == "agreement" else float(n)  # both counts lie from 1/n to 1 of the traces
            values = bands.padded([self._rows[i][number] / scale for i in chosen], known)
            band = bands.scaled(bands.shares(values, np.inf), scale)
            out[name] = band if name == "agreement" else {**band, "low": [max(1.0, x) for x in band["low"]]}
            out["known"] = [int(k) for k in (~np.isnan(values)).sum(axis=0)]
        return out
