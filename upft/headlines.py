"""Headline numbers of what a stage found, flat and named by their path: what a tracker shows beside a run.

Floor 3: JSON in, numbers out. Knows no file and no tracker; what the numbers mean is said where they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Value = float | int | str
COSTS = ("prompt_tokens", "sampled_tokens", "supervised_tokens", "forward_tokens", "flops", "seconds", "device_seconds",
         "peak_memory_bytes", "peak_device_bytes")


def of_cell(results: Mapping[str, Any]) -> dict[str, Value]:
    """Of results.json what one looks for first: accuracies (shares), paired differences with interval and p, costs."""
    found: dict[str, Value] = {}
    for task, entry in {**results["tasks"], **({"mean": results["mean"]} if results["mean"] else {})}.items():
        paired = entry["paired"]
        found |= {f"{task}/{side}": entry[side]["accuracy"]["value"] for side in ("base", "trained")}
        found |= {f"{task}/difference": paired["difference"], f"{task}/difference_low": paired["low"],
                  f"{task}/difference_high": paired["high"], f"{task}/p": paired["p_value"],
                  f"{task}/verdict": paired["verdict"]}
    for kind, ledger in results["totals"].items():
        found |= {f"cost/{kind}/{name}": ledger[name] for name in COSTS}
    found |= {f"tokens/{name}": count for name, count in results["tokens"].items()}
    return {name: value for name, value in found.items() if value is not None}


def of_ledger(ledger: Mapping[str, Any]) -> dict[str, Value]:
    """What a stage cost."""
    return {f"cost/{name}": value for name, value in ledger.items() if isinstance(value, (int, float)) and name in COSTS}


def of_summary(name: str, found: Mapping[str, Any]) -> dict[str, Value]:
    """Of a stage's summary, NAME.json: its numbers and words, and of an analysis' curves the values at some lengths."""
    return _leaves(found, name) | (dict(CURVES[name](name, found)) if name in CURVES else {})


def _leaves(value: Any, name: str) -> dict[str, Value]:
    """The leaves of nested JSON objects, named by their path; no lists."""
    if isinstance(value, Mapping):
        return {key: leaf for part, one in value.items() for key, leaf in _leaves(one, f"{name}/{part}").items()}
    return {name: value} if isinstance(value, (int, float, str)) else {}


Found = Iterator[tuple[str, Value]]


def _coverage(name: str, found: Mapping[str, Any]) -> Found:
    """What training moved at each length (`analyses.branching.coverage`), and the accuracies it is made of."""
    for place, t in enumerate(found["t"]):
        for part in ("change", "coverage", "accuracy"):
            paired = found[part][place]
            yield from _interval(f"{name}/t={t}/{part}", paired["difference"], paired["low"], paired["high"])
            yield f"{name}/t={t}/{part}_p", paired["p_value"]
            yield f"{name}/t={t}/{part}_verdict", paired["verdict"]
        for who, band in found["accuracy_of"].items():
            yield f"{name}/t={t}/{who}", band["mean"][place]


def _errors(name: str, found: Mapping[str, Any]) -> Found:
    """Outcomes of right and of wrong traces at each length (`analyses.branching.errors`)."""
    for place, t in enumerate(found["t"]):
        for part in ("right", "wrong", "difference"):
            yield from _at(f"{name}/t={t}/{part}", found[part], place)


def _consistency(name: str, found: Mapping[str, Any]) -> Found:
    """Of all questions together, at the lengths that are powers of two and at the last (`analyses.consistency.summary`)."""
    everything = found["groups"][0]
    lengths = everything["t"]
    for place, t in enumerate(lengths):
        if t & (t - 1) == 0 or t == lengths[-1]:
            for part in ("distinct", "traces_a_prefix", "agreement"):
                yield from _at(f"{name}/t={t}/{part}", everything[part], place)


CURVES: Mapping[str, Callable[[str, Mapping[str, Any]], Found]] = {
    "coverage": _coverage, "errors": _errors, "consistency": _consistency}
"""Analyses whose findings are lists by length; those of `kl` that are numbers tell enough."""


def _at(name: str, band: Mapping[str, Any], place: int) -> Found:
    return _interval(name, band["mean"][place], band["low"][place], band["high"][place])


def _interval(name: str, value: float, low: float, high: float) -> Found:
    yield from ((name, value), (f"{name}_low", low), (f"{name}_high", high))
