"""What a tracker is told of a stage when it is done, from its artifact alone: run, summary, samples, files, links.

Floor 5. Every stage is a run of its own under its key, told once by whoever made it; the report's run is the cell's. A sweep's
page is a run too, told again when there is more on it. In the store's folder `.mirror`: cells/KEY.json (what the cells' runs
show), names (see `upft.lineage`), told/PROJECT/RUN (who was told what). Nothing here is needed by any stage, and nothing that
goes wrong here stops one. Knows no W&B (`upft.wandb_run` does).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from upft import answers, headlines, lineage, tracking, wandb_run
from upft.choices import TrackerKind
from upft.config import Config
from upft.console import Console
from upft.errors import ConfigError
from upft.hashing import canonical
from upft.lineage import FOLDER
from upft.machine import TrackerConfig
from upft.plan import Plan, Stage
from upft.specs import BranchSpec, ReportSpec, SampleSpec
from upft.store import MANIFEST, Store
from upft.wandb_run import Bundle, Card, Story

PAGE = ("report.html", "report.md", "results.json", "tables/*", "figures/*")
"""Files of a sweep's page."""
SMALL = 2 * 2**20
"""Files up to this many bytes are uploaded; of larger ones, and of weights, only the place is told."""
WEIGHTS = (".safetensors", ".arrow")
ROWS = 50
"""Samples in a run's table."""
SUMMARY = {"spec.json", "provenance.json", "ledger.json", "results.json", MANIFEST}
"""JSON files that are no summary of the stage's own."""
KINDS = {"train": "model", "sample": "dataset", "branch": "dataset", "build": "dataset", "pair": "dataset",
         "evaluate": "evaluation", "judge": "evaluation", "verify": "evaluation"}
"""What an artifact is to W&B; the others are named after their stage."""


def check(tracker: TrackerConfig) -> None:
    """Raise ConfigError, before anything is spent, where the tracker's package is not installed."""
    if tracker.kind is not TrackerKind.none and importlib.util.find_spec(tracker.kind.name) is None:
        raise ConfigError(f"tracker.kind={tracker.kind.name}: the package {tracker.kind.name} is not installed",
                          f"pip install {tracker.kind.name}, or set tracker=none")


def remember(store: Store, config: Config, cell: Plan, name: str | None = None, sweep: str | None = None) -> None:
    """Keep what the runs of a cell and its stages are to show and the stages do not know: the resolved configuration, its name
    in the sweep, what it calls its model and data."""
    if config.tracker.kind is not TrackerKind.wandb:
        return
    lineage.remember(store, config, cell)
    path = store.root / FOLDER / "cells" / f"{cell.report.key}.json"
    if name is None and path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": name, "sweep": sweep, "config": resolved(config)}), encoding="utf-8")


def resolved(config: Config) -> dict[str, Any]:
    """Every setting, enums by name; without what SLURM is told (its shell lines may hold secrets)."""
    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value

    found = plain(config)
    del found["compute"]["slurm"], found["tracker"], found["plan"]
    assert isinstance(found, dict)
    return found


def tell(stage: Stage, store: Store, tracker: TrackerConfig, console: Console) -> None:
    """Show a finished stage where it was not shown before. A failure is a warning."""
    provenance = store.path(stage.name, stage.key) / "provenance.json"
    _once(stage.key, stage.label, lambda: str(json.loads(provenance.read_text(encoding="utf-8"))["finished"]),
          lambda: story(stage, store), store, tracker, console)


def tell_page(sweep: str, command: str, cells: Mapping[str, Stage], page: Path, store: Store, tracker: TrackerConfig,
              console: Console) -> None:
    """Show the page on a sweep's cells where it was not shown before as it is. cells: their reports by their names. A failure
    is a warning."""
    _once(f"sweep-{sweep}", f"sweep {sweep}", lambda: hashlib.sha256((page / "results.json").read_bytes()).hexdigest(),
          lambda: page_story(sweep, command, cells, page, store), store, tracker, console)


def _once(run: str, label: str, state: Callable[[], str], told: Callable[[], Story], store: Store, tracker: TrackerConfig,
          console: Console) -> None:
    """Tell the story of a run unless it was told in this state."""
    if tracker.kind is not TrackerKind.wandb:
        return
    mark = store.root / FOLDER / "told" / f"{tracker.entity or 'default'}.{tracker.project}" / run
    try:
        now = state()
        if mark.is_file() and mark.read_text(encoding="utf-8") == now:
            return
        mark.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(mark.with_suffix(".lock"), timeout=0):
            if mark.is_file() and mark.read_text(encoding="utf-8") == now:  # meanwhile another process has
                return
            if wandb_run.publish(tracker, told(), wandb_run.home(), console):
                mark.write_text(now, encoding="utf-8")
    except Timeout:  # another process tells just now
        return
    except ConfigError:
        raise
    except Exception as error:  # whatever it is: the artifact is there
        console.warn(f"{label}: W&B was not told ({type(error).__name__}: {error})")


def story(stage: Stage, store: Store) -> Story:
    """What a stage's run shows."""
    folder = store.path(stage.name, stage.key)
    if isinstance(stage.spec, ReportSpec):
        results = _json(folder / "results.json")
        summary = headlines.of_cell(results)
        for name, found in results.get("analyses", {}).items():
            summary |= headlines.of_summary(name, found)
    else:
        summary = headlines.of_ledger(_json(folder / "ledger.json"))
        for path in sorted(set(folder.glob("*.json"))):
            if path.name not in SUMMARY:
                summary |= headlines.of_summary(path.stem, _json(path))
    columns, rows = _samples(stage, folder)
    used = {one.key: bundle(one, store) for one in stage.inputs.values()}
    return Story(card(stage, store), tuple(_lines(folder / tracking.FILE)), summary, columns, rows, bundle(stage, store),
                 [*lineage.origins(stage, store), *used.values()])


def page_story(sweep: str, command: str, cells: Mapping[str, Stage], page: Path, store: Store) -> Story:
    """What a sweep's run shows: its page, and a line a cell."""
    there = {name: one for name, one in cells.items() if store.has(one.name, one.key)}
    lines = [{"cell": name, "run": one.key} | _line(_json(store.path(one.name, one.key) / "results.json"))
             for name, one in there.items()]
    columns = tuple(dict.fromkeys(column for line in lines for column in line))
    files = {path.relative_to(page).as_posix(): path for pattern in PAGE for path in sorted(page.glob(pattern))}
    about = {"sweep": sweep, "command": command, "cells": {name: one.key for name, one in cells.items()}}
    tags = dict.fromkeys(str(line[name]) for name in ("model", "data", "method") for line in lines)
    return Story(Card(f"sweep-{sweep}", f"sweep {sweep}", "sweep", about, list(tags)), (),
                 {"cells": len(cells), "cells_without_report": len(cells) - len(there)}, columns,
                 [[line.get(column) for column in columns] for line in lines],
                 Bundle(f"sweep-{sweep}", "report", about, files, {}), [bundle(one, store) for one in there.values()], "cells")


def _line(results: Mapping[str, Any]) -> dict[str, Any]:
    """A cell in a sweep's table."""
    settings = ("model", "data", "method", "prefix_len", "ratio", "seed", "train_seed")
    return {name: results[name] for name in settings if name in results} | headlines.of_cell(results)


def card(stage: Stage, store: Store) -> Card:
    """Name, job type, tags and configuration of a stage's run; the report's are the cell's."""
    spec, inputs = stage.spec, {role: f"{one.name}-{one.key}" for role, one in sorted(stage.inputs.items())}
    if not isinstance(spec, ReportSpec):
        return lineage.card(stage, store, inputs)
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = _json(store.root / FOLDER / "cells" / f"{stage.key}.json")
    told = {"cell": known.get("name"), "sweep": known.get("sweep"), **known.get("config", canonical(spec)), "inputs": inputs}
    name = spec.title if not known.get("name") else f"{spec.title}, {known['name']}"
    return Card(stage.key, name, stage.name, told, [spec.model, spec.data, spec.method.name])


def live(stage: Stage, store: Store, tracker: TrackerConfig, console: Console) -> Card | None:
    """The card of a run that a stage shows while it goes on: the one it is told under afterwards. None where no stage asks for
    one; a failure is a warning."""
    if tracker.kind is not TrackerKind.wandb or stage.name != "train":
        return None
    try:
        return card(stage, store)
    except Exception as error:  # a mirror is not worth a run
        console.warn(f"{stage.label}: its W&B run has no name of its own ({type(error).__name__}: {error})")
        return None


def bundle(stage: Stage, store: Store) -> Bundle:
    """A stage's artifact: small files themselves, of the others the place."""
    folder = store.path(stage.name, stage.key)
    sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    small = {name for name, entry in sizes.items() if entry["bytes"] <= SMALL and not name.endswith(WEIGHTS)}
    return Bundle(f"{stage.name}-{stage.key}", KINDS.get(stage.name, stage.name),
                  {"stage": stage.name, "key": stage.key, "label": stage.label},
                  {name: folder / name for name in sizes if name in small},
                  {name: folder / name for name in sizes if name not in small})


def _samples(stage: Stage, folder: Path) -> tuple[tuple[str, ...], list[list[Any]]]:
    """(columns, rows): the first sample of each of the first questions, of stages that draw any."""
    if (folder / answers.FILE).is_file():
        columns: tuple[str, ...] = ("id", "question", "gold", "completion", "extracted", "right", "reason", "finish_reason",
                                    "tokens")
        return columns, [[row.get(name) for name in columns] for row in _firsts(folder / answers.FILE)]
    if not isinstance(stage.spec, (SampleSpec, BranchSpec)):
        return (), []
    from upft import models

    model = stage.spec.model
    tokenizer = models.load_tokenizer(models.resolve(model.source), model.trust_remote_code)
    asked = {row["id"]: row for row in islice(_lines(folder / "questions.jsonl"), ROWS)}

    def read(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    rows = []
    for row in _firsts(folder / "samples.jsonl"):
        question = asked[row["id"]]  # both files are in the order of the questions
        prompt = question["prompt_ids"]
        what = read(prompt[len(prompt) - question["prefix"]:]) if isinstance(stage.spec, BranchSpec) else row["kind"]
        rows.append([row["id"], question["text"], what, read(row["ids"]), row["finish_reason"], len(row["ids"])])
    named = "prefix" if isinstance(stage.spec, BranchSpec) else "kind"
    return ("id", "question", named, "completion", "finish_reason", "tokens"), rows


def _firsts(path: Path) -> Iterator[dict[str, Any]]:
    """The first line of each of the first questions; a question's lines follow each other."""
    return islice((next(rows) for _, rows in groupby(_lines(path), key=lambda row: row["id"])), ROWS)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)


def _json(path: Path) -> dict[str, Any]:
    """What a stage has written; empty where it has not."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    assert isinstance(found, dict)  # written by our own stages
    return found
