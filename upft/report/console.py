"""results.json -> the table a run ends with. Knows rich and nothing that computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from upft.report import wording as w


def summary_table(results: Mapping[str, Any]) -> Table:
    """Base beside trained: accuracy, difference, and what the training took."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("base", justify="right", no_wrap=True)
    table.add_column(str(results["method"]), justify="right", no_wrap=True)
    for task, entry in results["tasks"].items():
        table.add_row(f"{task}, {w.count(entry['questions'])} questions",
                      *_sides(entry["base"]["accuracy"], entry["trained"]["accuracy"]))
        table.add_row(f"  {w.asked(entry)}")
        p = entry["paired"]
        table.add_row("  paired difference, points", "", f"{w.signed(p['difference'])} {w.interval(p['low'], p['high'])}")
        table.add_row("  verdict", "", f"{p['verdict']}, {w.p_value(p['p_value'])}")
        for more in entry["several"]:
            table.add_row(f"  {more['measure']}", *_sides(more["base"], more["trained"]))
    if results["mean"] is not None:
        mean, p = results["mean"], results["mean"]["paired"]
        table.add_section()
        table.add_row(f"mean of {len(results['tasks'])} tasks",
                      *_sides(mean["base"]["accuracy"], mean["trained"]["accuracy"]))
        table.add_row("  paired difference, points", "", f"{w.signed(p['difference'])} {w.interval(p['low'], p['high'])}")
        table.add_row("  verdict", "", f"{p['verdict']}, {w.p_value(p['p_value'])}")
    tokens, making = results["tokens"], results["totals"]["making"]
    table.add_section()
    for label, value in (
        ("mean trained length, tokens", w.mean(results["training"]["mean_trained_length"])),
        ("tokens sampled", w.count(tokens["sampled"])),
        ("tokens trained", w.count(tokens["trained"])),
        ("time to sample, build and train", w.seconds(making["seconds"])),
        ("peak memory", w.memory(making["peak_memory_bytes"])),
    ):
        table.add_row(label, w.NONE, value)
    if making["peak_device_bytes"]:
        table.add_row("peak GPU memory", w.NONE, w.memory(making["peak_device_bytes"]))
    return table


def _sides(base: Mapping[str, float], trained: Mapping[str, float]) -> list[str]:
    return [f"{w.percent(a['value'])} {w.interval(a['low'], a['high'])}" for a in (base, trained)]
