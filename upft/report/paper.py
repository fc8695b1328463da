"""The paper's own figures (paper.json, which names its source), to stand beside ours. Data, and the way to look it up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("paper.json")


@dataclass(frozen=True)
class Published:
    """One line of a table of the paper. accuracy: task -> share from 0 to 1; mean: over its four tasks; length: mean trained
    tokens a question; sampled, trained: tokens. data is None for a base model."""

    model: str
    data: str | None
    method: str
    accuracy: dict[str, float]
    mean: float
    length: float | None = None
    sampled: float | None = None
    trained: float | None = None


@cache
def told() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def line(table: str, model: str, data: str | None, method: str) -> Published | None:
    """The paper's line for that cell in its table `unsupervised` or `supervised`; None where it has none."""
    columns, tasks = told()[table]["columns"], told()["tasks"]
    for values in told()[table]["rows"]:
        row = dict(zip(columns, values, strict=True))
        if (row["model"], row["data"], row["method"]) == (model, data, method):
            tokens = {name: None if row.get(name) is None else 1e6 * row[name] for name in ("sampled", "trained")}
            return Published(model, data, method, {task: row[task] / 100 for task in tasks}, row["mean"] / 100,
                             row.get("length"), **tokens)
    return None
