"""What settings cost, and what share of other methods' that is.

Pure: numbers that the cells' results hold.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upft.report.settings import Case, Setting

COSTS = ("sampled", "sampled_with_prompts", "trained", "trained_with_prompts", "flops", "training_seconds", "gpu_hours",
         "peak_memory_bytes", "peak_device_bytes")
"""What a setting costs; each is the mean over its cells, None where not known."""
AGAINST = ("RFT", "SFT")
"""Methods whose costs the others are given as a share of."""


def cost(cases: Sequence[Case]) -> dict[str, float | None]:
    """Means over the cells. flops: sampling that the method needs alone, and training; gpu_hours: of all stages that make the
    model, shared sampling in full; training_seconds: grading, building and training."""
    out: dict[str, float | None] = {}
    rows = [_costs(case.results) for case in cases]
    for name in COSTS:
        values = [row[name] for row in rows]
        known = [value for value in values if value is not None]
        out[name] = plain.fmean(known) if len(known) == len(values) else None
    return out


def _costs(told: Mapping[str, Any]) -> dict[str, float | None]:
    c, making = told["comparison"], told["totals"]["making"]
    flops = None if c["sampling_flops"] is None else c["sampling_flops"] + c["training_flops"]
    return {**{name: c[name] for name in ("sampled", "sampled_with_prompts", "trained", "trained_with_prompts")},
            "flops": flops, "training_seconds": c["seconds"],
            "gpu_hours": making["device_seconds"] / 3600 if making["device_seconds"] else None,
            "peak_memory_bytes": making["peak_memory_bytes"],
            "peak_device_bytes": making["peak_device_bytes"] or None}


def shares(one: Setting, every: Sequence[Setting]) -> dict[str, dict[str, float]]:
    """Method of AGAINST -> cost -> share of that method's, over the seeds both have, on the same model and data. Left out
    where there is no such cell, or more than one setting of it."""
    out: dict[str, dict[str, float]] = {}
    for method in AGAINST:
        others = [s for s in every if (s.model, s.data, s.method) == (one.model, one.data, method)]
        if len(others) != 1:
            continue
        common = set(one.seeds) & set(others[0].seeds)
        if not common:
            continue
        mine, theirs = (cost([case for case in s.cases if case.seeds in common]) for s in (one, others[0]))
        found = {}
        for name in COSTS:
            a, b = mine[name], theirs[name]
            if a is not None and b:
                found[name] = a / b
        out[method] = found
    return out
