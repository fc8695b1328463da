"""What a method would have sampled had it sampled for itself: of a sampling that others share, and of a pilot beside it.

Floor 3: the artifacts of sampling in, counts out. Says the same whatever else was in the store when they were made, since it
counts the traces themselves and not who paid for them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft import prefix, selection
from upft.ledger import Sampling
from upft.shapes import Shape
from upft.traces import Sampled, read, told


@dataclass(frozen=True)
class Need:
    """Which traces a method asks for, as `specs.BuildSpec` has it."""

    traces: int
    cap: int | None
    ratio: float
    right: bool

    def tokens(self, question: Sampled, length: int, context: float) -> dict[int, int] | None:
        """Index -> tokens of the traces that it would have sampled of a question, prefixes of `length` tokens; None where it
        would not have asked it: the model's context has no room for the prefix."""
        whole = self.right or prefix.carries_trace(question.id, self.ratio)  # to be graded a trace has to be whole
        if not whole and len(question.prompt_ids) + length > context:
            return None
        return {t.index: len(t.ids) if whole else min(len(t.ids), length)
                for t in selection.needed(question.traces[:self.traces], self.cap, self.right)}


@dataclass(frozen=True)
class Pilot:
    """What a pilot sampled beside the sampling that follows it.

    prompt_tokens, sampled_tokens, flops: what it adds to what the method would have sampled anyway: of a trace that both
    need the longer one counts, and its prompt once (FLOPs are None where the model's size is not known). shared_tokens: those
    that it has in common with the sampling as it was drawn, which may have been for more than this method.
    """

    prompt_tokens: int
    sampled_tokens: int
    flops: float | None
    shared_tokens: int


def of_pilot(pilot: Path, samples: Path, need: Need, length: int, longest: int, shape: Shape | None) -> Pilot:
    """Read both samplings, a question at a time (held are the lengths of the pilot's traces), `samples` no further than to the
    last of the pilot's questions.

    length: of the method's prefixes; longest: of the pilot's, which needs every trace of a question it asks.
    """
    every = Need(traces=10**9, cap=None, ratio=need.ratio, right=need.right)
    room, main_room = context(told(pilot)), context(told(samples))
    looked: dict[str, tuple[int, array[int], array[int]]] = {}
    for question in read(pilot):
        mine = every.tokens(question, longest, room)
        drawn = array("q", (len(trace.ids) for trace in question.traces))
        looked[question.id] = len(question.prompt_ids), drawn, array("q", () if mine is None else mine.values())
    both, own, shared = Sampling(shape), Sampling(shape), 0
    for question in read(samples):
        if not looked:
            break
        if question.id not in looked:
            continue
        prompt, drawn, piloted = looked.pop(question.id)
        shared += sum(min(size, len(trace.ids)) for size, trace in zip(drawn, question.traces, strict=False))
        kept = need.tokens(question, length, main_room) or {}
        if kept:
            own.add(prompt, list(kept.values()))
        _add(both, prompt, {i: max(size, kept.get(i, 0)) for i, size in enumerate(piloted)} | {
            i: size for i, size in kept.items() if i >= len(piloted)})
    for prompt, _, piloted in looked.values():  # that the sampling has no room for
        _add(both, prompt, dict(enumerate(piloted)))
    return Pilot(both.prompt_tokens - own.prompt_tokens, both.sampled_tokens - own.sampled_tokens,
                 None if both.flops is None or own.flops is None else both.flops - own.flops, shared)


def _add(to: Sampling, prompt: int, sizes: Mapping[int, int]) -> None:
    if sizes:
        to.add(prompt, list(sizes.values()))


def context(summary: Mapping[str, Any]) -> float:
    """Of the engine, as samples.json tells it; an earlier version did not."""
    found = summary.get("context")
    return math.inf if found is None else float(found)
