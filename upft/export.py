"""`run.export=DIR`: the trained model of a finished cell, as a folder to hand on, with the full card.

Floor 6. A full training or a merged one gives DIR the model, with adapters in DIR/adapter; adapters that were
not merged are DIR itself. Written in a sibling and renamed, so that DIR is whole or not there; a folder
that holds anything else is never touched. Needs no torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from upft import card
from upft.config import Config
from upft.errors import StoreError
from upft.hashing import canonical, digest
from upft.ledger import Ledger
from upft.plan import Plan, Stage
from upft.report import wording
from upft.specs import EvaluateSpec, SampleSpec, TrainSpec
from upft.statistics import Estimate, Paired
from upft.store import Artifact, Store

MARK = "upft.json"
"""Says which cell a folder was exported from, and what was written."""


@dataclass(frozen=True)
class Target:
    """Where to export. done: this very cell's export is there, whole."""

    folder: Path
    done: bool


def look(config: Config, cell: Plan) -> Target | None:
    """Where the cell is to be exported to, None when nowhere. Before anything is spent.

    Raises StoreError for a folder that holds anything but this cell's own export, or cannot be written.
    """
    if config.run.export is None:
        return None
    folder = Path(config.run.export).absolute()
    what = f"run.export={config.run.export}"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{what} is a file", "give a folder that is empty or not there")
    if folder.is_dir() and any(folder.iterdir()):
        mark = _mark(folder)
        if mark.get("report") != cell.report.key:
            other = "holds the export of another cell" if mark else "is not empty"
            raise StoreError(f"{what} {other}", "give another folder, or move that one away")
        for name, size in mark["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise StoreError(f"{what} holds an export of this cell, but its {name} is missing or was changed",
                                 "move that folder away to have it written again")
        return Target(folder, done=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        probe = folder.with_name(f".{folder.name}.probe")
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise StoreError(f"{what} cannot be written: {error.strerror}", "give another folder") from error
    return Target(folder, done=False)


def write(target: Target, cell: Plan, artifacts: Mapping[str, Artifact], store: Store) -> None:
    """Copy the model with its full card; does nothing when it is there. Raises StoreError when it cannot be written."""
    if target.done:
        return
    folder, train = target.folder, cell.report.inputs["train"]
    trained = artifacts[train.key].path
    facts = _facts(cell, artifacts)
    parts = [name for name in ("model", "adapter") if (trained / name).is_dir()]
    with FileLock(store.root / ".locks" / f"export-{digest(str(folder))[:20]}.lock"):
        work = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(work, ignore_errors=True)  # left by an export that died: it held the lock, and we hold it now
        try:
            for place, name in enumerate(parts):
                inner = work if place == 0 else work / name
                for file in sorted(p for p in (trained / name).rglob("*") if p.is_file()):
                    copy = inner / file.relative_to(trained / name)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, copy)
                card.write(inner, facts)
            files = {str(p.relative_to(work)): p.stat().st_size for p in sorted(work.rglob("*"))
                     if p.is_file() and p.name != card.FILE}  # a card may be edited
            mark = {"report": cell.report.key, "train": train.key, "files": files}
            (work / MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
            if _mark(folder).get("report") != cell.report.key:  # else another process has just done the same
                work.rename(folder)
        except OSError as error:
            raise StoreError(f"run.export={folder} cannot be written: {error.strerror or error}",
                             "free some space or give another folder; the model itself is in the store") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _mark(folder: Path) -> dict[str, Any]:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) and isinstance(mark.get("files"), dict) else {}


def _facts(cell: Plan, artifacts: Mapping[str, Artifact]) -> card.Facts:
    """What the training told, and what is known now that the cell is finished."""
    build, train = cell.report.inputs["rows"], cell.report.inputs["train"]
    sample = build.inputs["samples"]  # not a pilot's
    assert isinstance(train.spec, TrainSpec)
    assert isinstance(sample.spec, SampleSpec)
    results = artifacts[cell.report.key].json("results.json")
    measured = [stage for stage in cell.stages if stage is not cell.report]
    return replace(
        card.of_training(train.spec, artifacts[build.key].path, artifacts[train.key].path),
        name=results["model"], data=sample.spec.questions,
        scores=tuple(_score(stage, results["generator"] or results["tasks"]) for role, stage in cell.report.inputs.items()
                     if role.startswith(("trained:", "generator:")) and isinstance(stage.spec, EvaluateSpec)),
        costs=tuple((stage.label, Ledger.read(artifacts[stage.key].path)) for stage in measured),
        specs={stage.label: canonical(stage.spec) for stage in measured})


def _score(stage: Stage, results: Mapping[str, Any]) -> card.Score:
    spec = stage.spec
    assert isinstance(spec, EvaluateSpec)
    entry = results[spec.task]
    p = entry["paired"]
    base, trained = (Estimate(a["value"], a["low"], a["high"])
                     for a in (entry["base"]["accuracy"], entry["trained"]["accuracy"]))
    return card.Score(spec, int(entry["questions"]), base, trained,
                      Paired(p["difference"], p["low"], p["high"], p["p_value"], p["test"], p["verdict"]),
                      wording.accepted(entry))
