"""Methods over several seeds: how far each moves accuracy, with intervals, and what share of RFT's tokens it takes.

    python run.py -m sweep=tiny_methods seed=0,1,2,3,4 run.store=study
    python run.py -m sweep=tiny_methods_length seed=0,1,2,3,4 run.store=study
    python run.py -m sweep=tiny_methods_ratio seed=0,1,2,3,4 run.store=study
    python bench/methods.py study

Reads the reports of a store and the answers they are made from. Cells that differ in their seed only are one line. Two
intervals: over questions (the seeds' answers to a question are averaged: what is sure about these trainings on other questions)
and over questions and seeds (`statistics.paired_over_seeds`: what is sure about other trainings on other questions), to which
the verdict belongs where there is more than one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upft import statistics
from upft.report import wording as w


@dataclass(frozen=True)
class Cell:
    """One report: its settings, its costs, and the graded answers of base and trained model, [questions, samples]."""

    method: str
    prefix_len: int | None
    ratio: float
    seed: int
    costs: Mapping[str, Any]
    ids: tuple[str, ...]
    base: np.ndarray
    trained: np.ndarray


def cells(store: Path, task: str) -> list[Cell]:
    """Every report of the store that has the task."""
    found = []
    for file in sorted(store.glob("report/*/results.json")):
        told, inputs = json.loads(file.read_text()), json.loads((file.parent / "spec.json").read_text())["inputs"]
        if task not in told["tasks"]:
            continue
        sides = [answers(store, inputs[f"{side}:{task}"]) for side in ("base", "trained")]
        if list(sides[0]) != list(sides[1]):
            raise SystemExit(f"{file}: base and trained model answered other questions")
        found.append(Cell(told["method"], told["prefix_len"], told["ratio"], told["seed"], told["comparison"], tuple(sides[0]),
                          *(np.array(list(side.values()), dtype=float) for side in sides)))
    return found


def answers(store: Path, key: str) -> dict[str, list[bool]]:
    """Right or wrong, by question."""
    [file] = [path for stage in ("evaluate", "verify") if (path := store / stage / key / "answers.jsonl").is_file()]
    right: dict[str, list[bool]] = {}
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            right.setdefault(row["id"], []).append(bool(row["right"]))
    return dict(sorted(right.items()))


def line(group: Sequence[Cell], rft: Sequence[Cell]) -> list[str]:
    """The cells of one method and setting, as a row of the table."""
    one = group[0]
    assert len({cell.ids for cell in group}) == 1, "the seeds were asked other questions"
    base, trained = (np.concatenate([getattr(c, side) for c in group], axis=1) for side in ("base", "trained"))
    paired = statistics.paired(base, trained)
    over_questions = w.interval(paired.low, paired.high)
    both = w.NONE
    if len(group) > 1:
        found = statistics.paired_over_seeds(*([getattr(c, side).mean(axis=1) for c in group] for side in ("base", "trained")))
        both, paired = w.interval(found.low, found.high), found
    shares = [w.NONE if not rft else w.percent(mean(group, key) / mean(rft, key)) for key in ("sampled", "trained")]
    return [one.method, w.NONE if one.prefix_len is None else str(one.prefix_len), f"{one.ratio:g}", str(len(group)),
            w.points(float(base.mean())), w.points(float(trained.mean())),
            f"{w.signed(paired.difference)} {over_questions}", both,
            f"{paired.verdict}, {w.p_value(paired.p_value)}", *shares]


def mean(group: Sequence[Cell], key: str) -> float:
    """Of a cost over the seeds."""
    return float(np.mean([cell.costs[key] for cell in group]))


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("store", type=Path)
    arguments.add_argument("--task", default="arithmetic")
    given = arguments.parse_args()
    groups: dict[tuple[str, float, int], list[Cell]] = {}
    for cell in cells(given.store, given.task):
        groups.setdefault((cell.method, cell.ratio, cell.prefix_len or 0), []).append(cell)
    if not groups:
        raise SystemExit(f"no report on {given.task} in {given.store}/report: run the sweeps first (see --help)")
    rft = next((group for (method, *_), group in groups.items() if method == "RFT"), [])
    header = ["method", "t", "p", "seeds", "base %", "trained %", "difference, points (over questions)",
              "over questions and seeds", "verdict", "sampled, of RFT's", "trained, of RFT's"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for _, group in sorted(groups.items()):
        print(f"| {' | '.join(line(sorted(group, key=lambda c: c.seed), rft))} |")


if __name__ == "__main__":
    main()
