"""Two evaluated cells -> the paired comparison of every task they share, as plain JSON.

Floor 3: answers in, numbers out; every number of the table and of `--json` is computed here. Knows no text but warnings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upft import statistics
from upft.cells import Cell, Evaluated
from upft.errors import DataError

Values = NDArray[np.float64]


def compare(a: Cell, b: Cell, seed: int = 0) -> dict[str, Any]:
    """b against a: tasks (by name), the macro mean where there is more than one, warnings.

    Tasks are paired by name; where each side has one task, or a side has answers without a name, by their question ids.
    Raises DataError when the cells share no task, or the answers to one share no question.
    """
    tasks: dict[str, Any] = {}
    warnings: list[str] = []
    values: list[tuple[Values, Values]] = []
    pairs = _pairs(a, b)
    for name, one, other in pairs:
        tasks[name], means, more = _task(name, one, other, seed)
        values.append(means)
        warnings += more
    for cell, place in ((a, 1), (b, 2)):
        used = [id(pair[place]) for pair in pairs]
        lonely = [task.task or task.where for task in cell.tasks if id(task) not in used]
        if lonely:
            warnings.append(f"{cell.name}: {', '.join(lonely)} left out, the other side has no such task")
    return {"a": _side(a), "b": _side(b), "tasks": tasks, "macro": _macro(tasks, values, seed) if len(tasks) > 1 else None,
            "warnings": warnings}


def _side(cell: Cell) -> dict[str, Any]:
    return {"name": cell.name, "answers": [task.where for task in cell.tasks]}


def _pairs(a: Cell, b: Cell) -> list[tuple[str, Evaluated, Evaluated]]:
    if len(a.tasks) == len(b.tasks) == 1:
        one, other = a.tasks[0], b.tasks[0]
        return [(one.task or other.task or "answers", one, other)]
    pairs = []
    for one in a.tasks:
        for other in b.tasks:
            nameless = one.task is None or other.task is None
            if one.task == other.task if not nameless else set(one.rows) & set(other.rows):
                pairs.append((one.task or other.task or "answers", one, other))
    if not pairs:
        names = [", ".join(task.task or task.where for task in cell.tasks) for cell in (a, b)]
        raise DataError(f"{a.name} and {b.name} share no task: {names[0]} and {names[1]}",
                        "compare cells that were evaluated on the same task")
    return pairs


def _task(name: str, one: Evaluated, other: Evaluated, seed: int) -> tuple[dict[str, Any], tuple[Values, Values], list[str]]:
    ids = [i for i in one.rows if i in other.rows]
    if not ids:
        raise DataError(f"task {name}: {one.where} ({len(one.rows)} questions) and {other.where} ({len(other.rows)}) have no "
                        "question id in common", "compare answers to the same questions, with the same ids")
    correct = one.correct(ids), other.correct(ids)
    means = correct[0].mean(axis=1), correct[1].mean(axis=1)
    k = min(one.samples, other.samples)
    measures = {"accuracy": _measure(statistics.accuracy(correct[0]), statistics.accuracy(correct[1]), means, seed)}
    if k > 1:
        if one.voted and other.voted:
            left_votes, right_votes = one.votes(ids), other.votes(ids)
            measures[f"maj@{k}"] = _measure(
                statistics.majority_at_k(left_votes, correct[0], k), statistics.majority_at_k(right_votes, correct[1], k),
                (statistics.majority_values(left_votes, correct[0], k), statistics.majority_values(right_votes, correct[1], k)),
                seed)
        measures[f"pass@{k}"] = _measure(
            statistics.pass_at_k(correct[0], k), statistics.pass_at_k(correct[1], k),
            (statistics.pass_values(correct[0], k), statistics.pass_values(correct[1], k)), seed)
    change = means[1] - means[0]
    gained, lost = ([i for i, x in zip(ids, sign * change, strict=True) if x > 1e-9] for sign in (1, -1))
    left = len(one.rows) - len(ids), len(other.rows) - len(ids)
    found = {"questions": len(ids), "left_out": {"a": left[0], "b": left[1]}, "samples": {"a": one.samples, "b": other.samples},
             "answers": {"a": one.where, "b": other.where},
             "settings": {"a": dict(one.settings), "b": dict(other.settings)}, "measures": measures,
             "gained": gained, "lost": lost}
    return found, means, _warnings(name, one, other, left)


def _measure(a: statistics.Estimate, b: statistics.Estimate, values: tuple[Values, Values], seed: int) -> dict[str, Any]:
    pair = statistics.paired_values(*values, seed)
    detectable = statistics.smallest_detectable((pair.high - pair.low) / 2, len(values[0]))
    return {"a": dataclasses.asdict(a), "b": dataclasses.asdict(b),
            "paired": {**dataclasses.asdict(pair), "smallest_detectable": detectable}}


def _macro(tasks: Mapping[str, Any], values: list[tuple[Values, Values]], seed: int) -> dict[str, Any]:
    """The mean over tasks of their accuracies."""
    pair = statistics.paired_macro([before for before, _ in values], [after for _, after in values], seed)
    sides = {side: dataclasses.asdict(statistics.macro(
        [statistics.Estimate(**task["measures"]["accuracy"][side]) for task in tasks.values()])) for side in ("a", "b")}
    questions = sum(len(before) for before, _ in values)
    detectable = statistics.smallest_detectable((pair.high - pair.low) / 2, questions)
    return {"tasks": len(tasks), "questions": questions, **sides,
            "paired": {**dataclasses.asdict(pair), "smallest_detectable": detectable}}


def _warnings(name: str, one: Evaluated, other: Evaluated, left: tuple[int, int]) -> list[str]:
    told = []
    if None not in (one.task, other.task) and one.task != other.task:
        told.append(f"A answers the task {one.task}, B {other.task}: their questions are paired by id all the same")
    if any(left):
        told.append(f"{name}: {left[0]} questions of A and {left[1]} of B are not in the other and left out")
    for key in sorted({*one.settings, *other.settings}):
        before, after = one.settings.get(key), other.settings.get(key)
        if before is not None and after is not None and before != after:
            told.append(f"{name}: A was evaluated with {key}={before}, B with {after}: the difference may be theirs")
    if one.samples != other.samples:
        told.append(f"{name}: A has n={one.samples} samples a question, B n={other.samples}: fair for accuracy (a mean), "
                    f"maj@k and pass@k are taken at k={min(one.samples, other.samples)} of each")
    return told
