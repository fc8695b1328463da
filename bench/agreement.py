"""Whether the contestants computed the same: the losses of each step, and how far they may part.

Knows losses and tolerances; no speed and no memory.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from contestants import Task
from entries import Entry, Scores, score
from rich.console import Console

from upft import prefix
from upft.prefix import Row

TOLERANCE = {"fp32": 1e-4, "bf16_mixed": 1e-2, "bf16_stochastic": 2e-2, "bf16": 2e-2}
"""How far a contestant's loss of a step may lie from that of the reference, as a share of it. bf16 has 8 bits, so two
orders of the same sums part by some 0.1%, and weights kept in bf16 part further with each step. Other rows, a mask off
by one token or another reduction part by more."""
UNTRAINED = 5e-3
"""The same for the loss of the first step in bf16, before any weight has moved."""
LEG_STEPS, LEG_ROWS = 3, 16
"""The leg in fp32: steps, and rows of a step."""


@dataclass(frozen=True)
class Leg:
    """A contestant's losses of the leg, and how far the worst lies from the first contestant's in fp32."""

    name: str
    precision: str
    losses: list[float]
    tokens_per_s: float
    apart: float
    complaint: str | None


def in_fp32(task: Task, entries: list[Entry], rows: list[Row], console: Console) -> list[Leg]:
    """A few small steps of each contestant in fp32, which must agree closely; then ours in bf16_stochastic with them.

    PyTorch's AdamW on bf16 weights, which the peers have in the timed run, loses most updates at the rates of
    fine-tuning, so losses of later steps cannot agree there: what the contestants compute is compared here.
    Raises measure.WorkerError.
    """
    few = rows[:LEG_STEPS * LEG_ROWS]
    file = Path(task.rows).with_name("leg.arrow")
    prefix.write_rows(file, few)
    small = dataclasses.replace(task, rows=str(file), batch_size=LEG_ROWS)
    ours = [(e, "bf16_stochastic") for e in entries if e.contestant == "upft"][:1]
    lines: list[Leg] = []
    for entry, precision in [*((e, "fp32") for e in entries if e.name != "plain_grouped"), *ours]:
        settings = dataclasses.replace(entry.settings, micro_batch_rows=min(entry.settings.micro_batch_rows, LEG_ROWS))
        scores = score(dataclasses.replace(entry, settings=settings), dataclasses.replace(small, precision=precision), few, 1,
                       task.threads)
        losses = scores.losses
        apart = difference(losses, lines[0].losses if lines else losses)
        allowed = TOLERANCE[precision]
        first = lines[0].name if lines else entry.name
        lines.append(Leg(entry.name, precision, losses, scores.tokens_per_s, apart, None if apart <= allowed else
                         f"{entry.name} in {precision} and {first} in fp32 are {apart:.3%} apart, allowed {allowed:.2%}"))
        console.print(f"  {entry.name} in {precision}: losses " + ", ".join(f"{x:.5f}" for x in losses)
                      + f"; {scores.tokens_per_s:.1f} tokens/s")
    return lines


def judge(scores: dict[str, Scores], reference: str, precision: str) -> list[str]:
    """What does not agree in the timed run. In bf16_stochastic `upft` and its peers round differently, so between them
    only the first step counts (`in_fp32` has the rest)."""
    complaints = []
    for name, s in scores.items():
        other = scores[reference].losses
        unlike = precision == "bf16_stochastic" and (name == "upft") != (reference == "upft")
        for what, apart, allowed in (("first step", difference(s.losses[:1], other[:1]), min(UNTRAINED, TOLERANCE[precision])),
                                     ("any step", difference(s.losses, other), TOLERANCE[precision])):
            if apart > allowed and not (unlike and what == "any step"):
                complaints.append(f"{what}: {name} and {reference} are {apart:.3%} apart, allowed {allowed:.2%}")
    return complaints


def difference(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of any step; infinite where a loss is not a number."""
    apart = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    return max(x if math.isfinite(x) else math.inf for x in apart)
