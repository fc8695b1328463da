"""The paired comparison of two evaluated cells.

A and B: a folder of an evaluate or report artifact, its key (or the first 6 digits or more) in the store, or a JSONL
file of graded answers with id, index and right. A report has two cells: REPORT alone compares the trained model with the
base model, two reports the trained models. Questions are paired by id.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import door

# Top floor, thin: arguments in, table out; needs no torch, and loads nothing before it has read its arguments.
if TYPE_CHECKING:
    from rich.table import Table

    from upft.cells import Cell, Evaluated
    from upft.console import Console

SHOWN = 1500
"""Characters of an answer that --show prints; of a longer one the end."""


def main(arguments: list[str] | None = None) -> None:
    """Read both cells, compare them, print the table. Exits with status 2 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m upft.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="what is compared with; a report alone: both sides")
    parser.add_argument("b", metavar="B", nargs="?", help="what is compared")
    parser.add_argument("--store", type=Path, default=Path("store"),
                        help="folder that keys are looked up in (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N questions that flipped, with both answers")
    parser.add_argument("--seed", type=int, default=0, help="of the random sign flips (default: %(default)s)")
    given = parser.parse_args(arguments)
    with door.one_message(status=2):
        from upft.console import Console

        _run(given, Console())


def _run(given: argparse.Namespace, console: Console) -> None:
    from upft import cells, comparison
    from upft.errors import DataError, StoreError

    first = cells.find(given.a, given.store)
    second = cells.find(given.b, given.store) if given.b is not None else []
    if given.b is None and len(first) == 1:
        raise DataError(f"{given.a} is one cell, there is nothing to compare it with",
                        "give a second one; only a report stands for two, the base and the trained model")
    a, b = (first[0], first[1]) if given.b is None else (first[-1], second[-1])
    found = comparison.compare(a, b, given.seed)
    for warning in found["warnings"]:
        console.warn(warning)
    console.say(_table(found))
    console.say(_flips(found))
    if given.show > 0:
        _show(found, a, b, given.show, console)
    if given.json is not None:
        try:
            given.json.write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise StoreError(f"--json {given.json} cannot be written: {error.strerror}", "give another file") from error


def _table(found: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    from upft.report import wording as w

    names = [f"{side} = {found[side.lower()]['name']}" for side in "AB"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title="\n".join(names), title_justify="left",
                  title_style="")
    table.add_column("", no_wrap=True)
    for name in ("questions x n", "A %", "B %", "B - A, points", "p", "detectable", "verdict"):
        narrow = name in ("A %", "B %", "B - A, points")  # what may take two lines on a narrow terminal
        table.add_column(name, justify="left" if name == "verdict" else "right", no_wrap=not narrow)
    for name, task in found["tasks"].items():
        a, b = task["samples"]["a"], task["samples"]["b"]
        for place, (measure, entry) in enumerate(task["measures"].items()):
            label = f"{name}, {measure}" if place == 0 else f"  {measure}"
            counts = f"{w.count(task['questions'])} x {a if a == b else f'{a} / {b}'}" if place == 0 else ""
            table.add_row(label, counts, *_numbers(entry))
    if found["macro"] is not None:
        table.add_section()
        macro = found["macro"]
        table.add_row(f"mean of {macro['tasks']} tasks", w.count(macro["questions"]), *_numbers(macro))
    tests = sorted({e["paired"]["test"] for t in found["tasks"].values() for e in t["measures"].values()}
                   | ({found["macro"]["paired"]["test"]} if found["macro"] is not None else set()))
    table.caption = (f"[ ]: 95% interval. p: {', '.join(tests)}.\n"
                     "detectable: the smallest true difference, in points, that such a comparison finds four times in five.")
    table.caption_justify = "left"
    return table


def _numbers(entry: Mapping[str, Any]) -> list[str]:
    from upft.report import wording as w

    pair = entry["paired"]
    sides = [f"{w.percent(e['value']).rstrip('%')} {w.interval(e['low'], e['high'])}" for e in (entry["a"], entry["b"])]
    difference = f"{w.signed(pair['difference'])} {w.interval(pair['low'], pair['high'])}"
    return [*sides, difference,
            w.p_value(pair["p_value"]).replace("p = ", "").replace("p ", ""), f"{100 * pair['smallest_detectable']:.1f}",
            pair["verdict"]]


def _flips(found: Mapping[str, Any]) -> str:
    lines = []
    for name, task in found["tasks"].items():
        same = task["questions"] - len(task["gained"]) - len(task["lost"])
        lines.append(f"{name}: {len(task['gained'])} questions better under B, {len(task['lost'])} worse, {same} alike")
    return "\n".join(lines)


def _show(found: Mapping[str, Any], a: Cell, b: Cell, count: int, console: Console) -> None:
    """Questions whose mean changed, most first, with the first answer of each side that shows it."""
    from rich.markup import escape

    by_where = {task.where: task for cell in (a, b) for task in cell.tasks}
    flips = []
    for name, one, other in zip(found["tasks"], _order(found, "a", by_where), _order(found, "b", by_where), strict=True):
        for i in (*found["tasks"][name]["gained"], *found["tasks"][name]["lost"]):
            change = _mean(other, i) - _mean(one, i)
            flips.append((-abs(change), name, i, change, one, other))
    for _, name, i, change, one, other in sorted(flips, key=lambda flip: flip[:3])[:count]:
        better = change > 0
        console.say(f"\n[bold]{escape(f'{name}, question {i}')}: {'better' if better else 'worse'} under B[/]", markup=True)
        row = one.rows[i][0]
        for field in ("question", "gold"):
            if row.get(field) is not None:
                console.say(f"{field}: {row[field]}")
        for side, task, right in (("A", one, not better), ("B", other, better)):
            shown = next((r for r in task.rows[i] if bool(r["right"]) == right), task.rows[i][0])
            hits = sum(bool(r["right"]) for r in task.rows[i])
            told = f"[bold]{side}[/] ({hits} of {task.samples} right; this one {'right' if shown['right'] else 'wrong'}"
            told += f", extracted {escape(str(shown['extracted']))})" if "extracted" in shown else ")"
            text = str(shown.get("completion", ""))
            console.say(told, markup=True)
            console.say(text if len(text) <= SHOWN else f"... {len(text) - SHOWN} characters ...{text[-SHOWN:]}")


def _order(found: Mapping[str, Any], side: str, by_where: Mapping[str, Evaluated]) -> list[Evaluated]:
    return [by_where[task["answers"][side]] for task in found["tasks"].values()]


def _mean(task: Evaluated, i: str) -> float:
    return sum(bool(row["right"]) for row in task.rows[i]) / task.samples
