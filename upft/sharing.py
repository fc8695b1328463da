"""What stages have in common: equal ones once, and samplings whose samples another one holds.

Floor 2, beside the plan: no torch, no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from upft.hashing import canonical, digest
from upft.plan import VERSIONS, Plan, Stage
from upft.specs import BranchSpec, EvaluateSpec, SampleSpec

DRAWN = {SampleSpec: ("sample", ("model", "trained", "prompt", "sampling")), EvaluateSpec: ("evaluate", ("model", "prompt",
         "sampling")), BranchSpec: ("branch", ("model", "trained", "sampling"))}
"""Stages that draw completions, and what of their specs a completion follows from beside its prompt."""


def relatives(spec: SampleSpec | EvaluateSpec | BranchSpec) -> dict[str, Any]:
    """What the identities of two samplings (or evaluations, of the same training) must agree in for the one to hold samples
    of the other: a prompt's `index`-th completion follows from the model, the settings and the seed alone."""
    stage, names = DRAWN[type(spec)]
    return {"stage": stage, "version": VERSIONS[stage], "spec": {name: canonical(getattr(spec, name)) for name in names}}


def distinct(plans: Iterable[Plan]) -> list[Stage]:
    """The stages of several cells, equal ones once, each after those it needs; a sampling that holds another's samples comes
    before it (`covered`)."""
    seen: dict[str, Stage] = {}
    for one in plans:
        for stage in one.stages:
            seen.setdefault(stage.key, stage)
    held = covered(seen.values())
    order: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for upstream in (*stage.inputs.values(), *([held[stage.key]] if stage.key in held else [])):
            visit(upstream)
        order.setdefault(stage.key, seen.get(stage.key, stage))

    for stage in seen.values():
        visit(stage)
    return list(order.values())


def covered(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Samplings (by key) all of whose samples one other sampling of the same set holds, and that one. Their order is the same
    to it.

    Run after it, they draw nothing: a cell's own sampling then only says what its method would have cost alone. Where
    several hold them it is the largest. One that waits for them, as a sampling proper does for the pilot that finds its
    length, holds none: nothing waits for itself by way of what is held (`_waits`).
    """
    families: dict[str, list[tuple[Stage, SampleSpec]]] = {}  # of one model, prompt, seed: few, however many cells there are
    for stage in sorted(stages, key=lambda one: one.key):
        if isinstance(stage.spec, SampleSpec):
            families.setdefault(digest(relatives(stage.spec)), []).append((stage, stage.spec))
    held: dict[str, Stage] = {}
    for family in families.values():
        # The largest first, so that the dearest one to draw twice finds one that holds it.
        ranked = sorted(family, key=lambda one: -sum(holds(one[1], spec) for _, spec in family))
        for small, spec in ranked:
            large = next((one for one, other in ranked if one is not small and holds(other, spec)
                          and not _waits(one, small.key, held)), None)
            if large is not None:
                held[small.key] = large
    return held


def _waits(stage: Stage, key: str, held: Mapping[str, Stage]) -> bool:
    """Whether a stage needs the one of that key, or comes after it because of what is held, however many lie between."""
    seen, rest = set(), [stage]
    while rest:
        one = rest.pop()
        if one.key == key:
            return True
        if one.key not in seen:
            seen.add(one.key)
            rest += [*one.inputs.values(), *([held[one.key]] if one.key in held else [])]
    return False


def holds(large: SampleSpec, small: SampleSpec) -> bool:
    """Whether every sample of `small` is one of `large`, or the beginning of one."""
    if relatives(large) != relatives(small) or replace(large.questions, limit=None) != replace(small.questions, limit=None):
        return False
    limit, wanted = large.questions.limit, small.questions.limit
    enough = limit is None or (wanted is not None and wanted <= limit)
    # A question that only `large` samples whole gives prefixes too; one that neither does must have prefixes as long.
    prefixes = large.trace_ratio == 1 or small.trace_ratio == 1 or (
        large.max_tokens is not None and small.max_tokens is not None and large.max_tokens >= small.max_tokens)
    longest = small.trace_max_tokens if small.max_tokens is None else max(small.max_tokens, small.trace_max_tokens)
    return (enough and prefixes and large.n >= small.n and large.trace_ratio >= small.trace_ratio
            and large.trace_max_tokens >= longest and (large.logprobs or not small.logprobs))
