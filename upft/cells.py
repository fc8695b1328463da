"""Evaluated cells: graded answers found again, in the store, in a folder or in a file.

Floor 3. A cell is one model's answers to one or more tasks. Knows where answers lie and whether they make a matrix.
Refuses to grade and to draw a conclusion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upft import reading
from upft.errors import DataError, StoreError
from upft.store import MANIFEST, Artifact, Store

ANSWERS = "answers.jsonl"
SHORTEST = 6
"""Hex digits of a key that are enough to look it up."""
SIDES = ("base", "trained")
"""Roles of the evaluations that a report was made from."""
STAGES = ("evaluate", "judge", "verify")
"""Whose artifacts are graded answers: a model's, those a judge has looked at, those a verifier has chosen."""
FORMS = ("give a folder of an evaluate, judge, verify or report artifact, its key (6 hex digits are enough, see --store), or a "
         "JSONL file of graded answers with id, index and right")


@dataclass(frozen=True)
class Evaluated:
    """One model's answers to one task. task: None where nothing names it. settings: how the answers were got, as far as is
    known: protocol, temperature, max_tokens, judge (the model; "none": the rule alone has graded). rows: by question id, then
    index; every question has `samples` of them."""

    task: str | None
    where: str
    rows: Mapping[str, tuple[Mapping[str, Any], ...]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Answers a question."""
        return len(next(iter(self.rows.values())))

    @cached_property
    def voted(self) -> bool:
        """Whether every row has the field `vote`: its canonical answer, or null."""
        return all("vote" in row for answers in self.rows.values() for row in answers)

    def correct(self, ids: list[str]) -> NDArray[np.float64]:
        """[questions, samples] of 0 and 1, in the order of ids."""
        return np.array([[bool(row["right"]) for row in self.rows[i]] for i in ids], dtype=np.float64)

    def votes(self, ids: list[str]) -> list[list[str | None]]:
        """[questions][samples], in the order of ids; needs `voted`."""
        return [[None if row["vote"] is None else str(row["vote"]) for row in self.rows[i]] for i in ids]


@dataclass(frozen=True)
class Cell:
    """One model's tasks, in order. name: how the user pointed at it."""

    name: str
    tasks: tuple[Evaluated, ...]


def find(given: str, store: Path) -> list[Cell]:
    """The cells that a path or key stands for: one, or of a report two: the base model's and the trained one's.

    Raises StoreError for a name that leads nowhere or to more than one artifact, or to a corrupt one, and DataError for
    answers that cannot be read.
    """
    path = Path(given)
    if path.is_file():
        return [Cell(given, (read(path),))]
    if path.is_dir():
        return _folder(given, path, Store(store))
    if re.fullmatch(r"[0-9a-f]{6,}", given):
        artifact = _by_key(given, Store(store))
        if artifact.stage == "report":
            return _report(given, artifact, Store(store))
        return [Cell(given, (_evaluated(artifact.path),))]
    if re.fullmatch(r"[0-9a-f]{1,5}", given):
        raise StoreError(f"{given}: {len(given)} hex digits are too few for a key", f"give at least {SHORTEST} of them")
    raise StoreError(f"{given}: no such file, folder or key", FORMS)


def read(path: Path, task: str | None = None, settings: Mapping[str, Any] | None = None) -> Evaluated:
    """Graded answers of a JSONL file: rows with id, index and right (`true`/`false` or 1/0). Without an index rows of one
    id count as its samples in the order they come. Raises DataError, naming the line."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for number, line in reading.lines(path):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        row = reading.parsed(where, line, "one JSON object a line, in UTF-8")
        if not isinstance(row, dict) or "id" not in row or "right" not in row:
            lacking = [key for key in ("id", "right") if not isinstance(row, dict) or key not in row]
            raise DataError(f"{where} has no {' and no '.join(lacking)}",
                            "graded answers have id, index and right; grade the file first where they have none")
        if not isinstance(row["right"], (bool, int)) or row["right"] not in (0, 1):
            raise DataError(f"{where}: right={row['right']!r} is no verdict", "give true or false")
        answers = found.setdefault(str(row["id"]), {})
        index = row.get("index", len(answers))
        if not isinstance(index, int) or isinstance(index, bool):
            raise DataError(f"{where}: index={index!r} is no whole number", "count the samples of a question from 0")
        if index in answers:
            raise DataError(f"{where}: id {row['id']} has the index {index} twice",
                            "give every sample of a question an index of its own, and every question an id of its own")
        answers[index] = row
    if not found:
        raise DataError(f"{path} holds no answer", FORMS)
    counts = sorted({len(answers) for answers in found.values()})
    if len(counts) > 1:
        few, many = (next(i for i, a in found.items() if len(a) == n) for n in (counts[0], counts[-1]))
        raise DataError(f"{path}: id {few} has {counts[0]} answers, id {many} has {counts[-1]}",
                        "answer every question the same number of times")
    rows = {i: tuple(answers[k] for k in sorted(answers)) for i, answers in found.items()}
    return Evaluated(task, str(path), rows, settings or {})


def _folder(given: str, path: Path, store: Store) -> list[Cell]:
    whole = path.resolve()
    if (whole / ANSWERS).is_file():
        if (whole / MANIFEST).is_file():
            Store(whole.parent.parent).find(whole.parent.name, whole.name)  # raises where the two disagree
        return [Cell(given, (_evaluated(whole),))]
    if _json(whole / "spec.json").get("stage") == "report":
        beside = Store(whole.parent.parent)
        return _report(given, Artifact("report", whole.name, whole), beside if (beside.root / "evaluate").is_dir() else store)
    raise StoreError(f"{given} holds neither {ANSWERS} nor a report's spec.json", FORMS)


def _by_key(given: str, store: Store) -> Artifact:
    found = [(stage, path.name) for stage in (*STAGES, "report") for path in sorted((store.root / stage).glob(f"{given}*"))
             if path.is_dir() and re.fullmatch(r"[0-9a-f]+", path.name)]
    if len(found) > 1:
        raise StoreError(f"{given} begins {len(found)} keys: " + ", ".join("/".join(one) for one in found), "give more digits")
    artifact = store.find(*found[0]) if found else None
    if artifact is None:
        raise StoreError(f"{given}: no evaluation and no report in {store.root} has a key that begins so",
                         "choose another store with --store DIR; plan=true shows a cell's keys")
    return artifact


def _report(given: str, report: Artifact, store: Store) -> list[Cell]:
    """[base, trained] of a report, with its tasks in their order."""
    spec = _json(report.path / "spec.json")
    inputs, tasks = spec.get("inputs", {}), spec.get("spec", {}).get("tasks", [])
    cells = []
    for side in SIDES:
        evaluated = []
        for task in tasks:
            key = inputs.get(f"judged:{side}:{task}", inputs.get(f"{side}:{task}"))  # as the report itself has it
            # a key is the hash of its stage too, so no two stages share one
            artifact = next((found for stage in STAGES if (found := store.find(stage, str(key))) is not None), None)
            if artifact is None:
                raise StoreError(f"{given}: the report's evaluation {side}:{task} (key {key}) is not in {store.root}",
                                 "give the store it lies in with --store DIR, or run the cell again")
            evaluated.append(_evaluated(artifact.path, str(task)))
        if not evaluated:
            raise StoreError(f"{given}: the report names no task", "run the cell again")
        cells.append(Cell(f"{side} of {given}", tuple(evaluated)))
    return cells


def _evaluated(folder: Path, task: str | None = None) -> Evaluated:
    identity, scores = _json(folder / "spec.json"), _json(folder / "scores.json")
    spec, judge = identity.get("spec", {}), None
    if identity.get("stage") == "judge":
        source = spec["model"]["source"]
        spec, judge = {}, source.get("id", source.get("sha256", "")[:12])  # its spec tells of the judge's own replies
    elif "stage" in identity:
        judge = "none"
    known = {"protocol": scores.get("protocol", spec.get("protocol")),
             "temperature": scores.get("temperature", spec.get("sampling", {}).get("temperature")),
             "max_tokens": spec.get("max_tokens", scores.get("max_tokens")), "judge": judge}
    named = task or scores.get("task") or spec.get("task")
    return read(folder / ANSWERS, named, {key: value for key, value in known.items() if value is not None})


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise StoreError(f"{path} is not JSON: {error}", "set the artifact aside and run the same command again") from error
    return value if isinstance(value, dict) else {}
