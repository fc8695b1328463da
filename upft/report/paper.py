"""The paper's own figures (paper.json, which names its source), to stand beside ours. Data, and the way to look it up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("paper.json")
LABELS = {"prefix_len": "t", "ratio": "p", "training_questions": "training questions", "epochs": "epochs",
          "lr": "learning rate", "adapters": "adapters", "questions": "test questions", "protocol": "how it was asked"}
"""What a cell can do otherwise than the paper, as a reader takes it."""
NEAR = 0.02
"""Numbers of training questions that differ by a smaller share are the same: duplicates and long ones are left out."""


@dataclass(frozen=True)
class Published:
    """One line of a table of the paper. accuracy: task -> share from 0 to 1; mean: over its four tasks; length: mean trained
    tokens a question; sampled, trained: tokens; prefix_len, ratio: of UPFT, None where it is not on record; questions: those
    trained on. data is None for a base model."""

    model: str
    data: str | None
    method: str
    accuracy: dict[str, float]
    mean: float
    length: float | None = None
    sampled: float | None = None
    trained: float | None = None
    prefix_len: int | None = None
    ratio: float | None = None
    questions: int | None = None


@cache
def told() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def line(table: str, model: str, data: str | None, method: str) -> Published | None:
    """The paper's line for that cell in its table `unsupervised` or `supervised`; None where it has none."""
    columns, tasks, settings = told()[table]["columns"], told()["tasks"], told()["settings"]
    for values in told()[table]["rows"]:
        row = dict(zip(columns, values, strict=True))
        if (row["model"], row["data"], row["method"]) == (model, data, method):
            tokens = {name: None if row.get(name) is None else 1e6 * row[name] for name in ("sampled", "trained")}
            cut = method.startswith("UPFT")
            return Published(model, data, method, {task: row[task] / 100 for task in tasks}, row["mean"] / 100,
                             row.get("length"), **tokens, prefix_len=settings["prefix_len"].get(model) if cut else None,
                             ratio=settings["ratio"] if cut else None,
                             questions=settings["training_questions"].get(data))
    return None


def unlike(published: Published, ours: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was done otherwise: name (of LABELS) -> {ours, paper}; `questions` has that by task.

    ours: what LABELS names of the training, None where it is not known. asked: task -> questions, samples, temperature,
    protocol. Only what both know is compared.
    """
    settings = told()["settings"]
    theirs = {"prefix_len": published.prefix_len, "ratio": published.ratio, "training_questions": published.questions,
              "epochs": settings["epochs"].get(published.data), "lr": settings["lr"], "adapters": settings["adapters"]}
    found: dict[str, Any] = {name: {"ours": ours[name], "paper": value} for name, value in theirs.items()
                             if value is not None and ours.get(name) is not None and not _same(name, ours[name], value)}
    counts = {task: {"ours": one["questions"], "paper": told()["questions"][task]} for task, one in asked.items()
              if task in told()["questions"] and one["questions"] != told()["questions"][task]}
    if counts:
        found["questions"] = counts
    protocol = {"protocol": told()["protocol"], "samples": 1, "temperature": 0.0}
    other = {task: {"ours": mine, "paper": protocol} for task, one in asked.items() if task in told()["questions"]
             if (mine := {name: one[name] for name in protocol}) != protocol}
    if other:
        found["protocol"] = other
    return found


def _same(name: str, ours: Any, paper: Any) -> bool:
    if name == "training_questions":
        return bool(abs(ours - paper) <= NEAR * paper)
    return bool(ours == paper)
