"""Which of a question's traces become rows, and which become pairs: the one thing in which methods differ.

Floor 3: ids and verdicts in, traces out. Knows no tokenizer, no file and no loss. Sources: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """One sampled trace of a question. right: whether it ends in the gold answer, None where nobody looked; whole: sampled
    to its end, or to the limit of whole traces; ended: it ended by itself."""

    index: int
    ids: tuple[int, ...]
    ended: bool
    whole: bool
    right: bool | None = None


def first(traces: Sequence[Trace], cap: int | None) -> list[Trace]:
    """The first `cap` traces whatever they come to (UPFT, SFT); null = all."""
    return list(traces[:cap])


def needed(traces: Sequence[Trace], cap: int | None, right: bool) -> list[Trace]:
    """The traces that a method must sample: all that it looks for right ones among, else only those that become rows. The
    paper counts so: 0.2M tokens for UPFT on 12,000 questions are one prefix a question, 36.9M for RFT all 16 traces."""
    return list(traces) if right else first(traces, cap)


def right_ones(traces: Sequence[Trace], cap: int | None, row: Callable[[Trace], Sequence[int]]) -> list[Trace]:
    """The first `cap` different right traces (RFT, UPFT with the label filter); null = all. Two are the same where `row`
    gives the same ids for both: those that training would see."""
    return different((t for t in traces if t.right), row)[:cap]


def pairs(traces: Sequence[Trace], cap: int | None) -> list[tuple[Trace, Trace]]:
    """(right, wrong) traces, each trace once, balanced: as many as the smaller side has different ones, at most `cap`
    (null = no limit). The n-th right one stands beside the n-th wrong one (V-STaR)."""
    def whole(t: Trace) -> Sequence[int]:
        return t.ids

    good = different((t for t in traces if t.right), whole)
    bad = different((t for t in traces if t.right is False), whole)
    return list(zip(good, bad, strict=False))[:cap]


def different(traces: Iterable[Trace], row: Callable[[Trace], Sequence[int]]) -> list[Trace]:
    """Traces in order without those whose row was there before."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for trace in traces:
        ids = tuple(row(trace))
        if ids not in seen:
            seen.add(ids)
            kept.append(trace)
    return kept
