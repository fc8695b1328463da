"""What settings cost, and what share of other methods' that is.

Pure: numbers that the cells' results hold.
"""

from __future__ import annotations

import statistics as plain
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upft.report.settings import Case, Setting

COSTS = ("sampled", "sampled_with_prompts", "trained", "trained_with_prompts", "flops", "sampling_seconds", "training_seconds",
         "gpu_hours", "peak_memory_bytes", "peak_device_bytes")
"""What a setting costs; each is the mean over its cells, None where not known."""
AGAINST = ("RFT", "SFT")
"""Methods whose costs the others are given as a share of."""


def cost(cases: Sequence[Case]) -> dict[str, float | None]:
    """Means over the cells. flops: sampling that the method needs alone, and training; sampling_seconds: the same sampling
    (`methods.sampling_alone`); training_seconds: grading, building and training; gpu_hours: of both; the peaks: of the stages
    as they ran."""
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
    sampling = c["sampling_device_seconds"]
    device_seconds = None if sampling is None else sampling + c["device_seconds"]
    return {**{name: c[name] for name in ("sampled", "sampled_with_prompts", "trained", "trained_with_prompts")},
            "flops": flops, "sampling_seconds": c["sampling_seconds"], "training_seconds": c["seconds"],
            "gpu_hours": device_seconds / 3600 if device_seconds else None,
            "peak_memory_bytes": making["peak_memory_bytes"],
            "peak_device_bytes": making["peak_device_bytes"] or None}


def estimated(setting: Setting) -> frozenset[str]:
    """Which of its costs follow from a sampling that drew more, or fewer, tokens than the method needs."""
    whole = all(case.results["comparison"]["sampling_share"] in (1, None) for case in setting.cases)
    return frozenset(name for name in ("sampling_seconds", "gpu_hours") if not whole and setting.cost[name] is not None)


def rivals(one: Setting, every: Sequence[Setting]) -> dict[str, Setting]:
    """Method of AGAINST -> its setting on the same model and data. Left out where there is none, or several that were trained
    differently (`ambiguous`), or no seed that both have. Several that one training went into cost the same: of these the one
    that was asked alike, or has the most seeds in common."""
    found = {}
    for method in AGAINST:
        others = [s for s in _same(one.model, one.data, method, every) if set(one.seeds) & set(s.seeds)]
        if others and not ambiguous(one.model, one.data, method, every):
            found[method] = max(others, key=lambda s: (s is one, len(set(one.seeds) & set(s.seeds)), s.asked == one.asked))
    return found


def ambiguous(model: str, data: str, method: str, every: Sequence[Setting]) -> bool:
    """Whether a method has several settings on a model and data that are not one training, evaluated in several ways."""
    trainings = [{case.seeds: case.stages["train"] for case in s.cases} for s in _same(model, data, method, every)]
    return any(not set(one) & set(other) or any(one[seed] != other[seed] for seed in set(one) & set(other))
               for place, one in enumerate(trainings) for other in trainings[:place])


def _same(model: str, data: str, method: str, every: Sequence[Setting]) -> list[Setting]:
    return [s for s in every if (s.model, s.data, s.method) == (model, data, method)]


def shares(one: Setting, every: Sequence[Setting]) -> dict[str, dict[str, float]]:
    """Method of AGAINST -> cost -> share of that method's (`rivals`), over the seeds both have."""
    out: dict[str, dict[str, float]] = {}
    for method, other in rivals(one, every).items():
        common = set(one.seeds) & set(other.seeds)
        mine, theirs = (cost([case for case in s.cases if case.seeds in common]) for s in (one, other))
        found = {}
        for name in COSTS:
            a, b = mine[name], theirs[name]
            if a is not None and b:
                found[name] = a / b
        out[method] = found
    return out
