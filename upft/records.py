"""What is known of a sweep's jobs: small JSON files below `STORE/.jobs`, beside the artifacts and none of them.

Floor 6. A stage is done when its artifact is in the store, whatever SLURM says; it is under way when the job of its record
is in the queue under the name it was submitted with; it has failed when its job said so or is gone after it had begun.

    stages/KEY.json      the stage (`upft.blueprint`)
    records/KEY.json     its last job
    attempts/KEY.json    what that job says of itself
    sweeps/ID.json       cells, the command that submits them, the machine
    submitted/ID/        submitit's files and the logs of one submission
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from upft import blueprint, redaction, slurm
from upft.choices import Style
from upft.errors import StoreError
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import Stage
from upft.shards import Job, Shard, split, whole
from upft.slurm import Queued
from upft.store import Store
from upft.submission import Cell, closure


@dataclass(frozen=True)
class Record:
    """A stage's last submission. job: SLURM's id, or `local`; name: the job's; log: file of its output."""

    key: str
    job: str
    name: str
    log: str


@dataclass(frozen=True)
class Note:
    """What a job says of the stage it runs. state: running, stopped, done or failed; job: see Record; reason: of a failure."""

    state: str
    job: str
    host: str
    attempt: int = 1
    reason: str = ""


@dataclass(frozen=True)
class Sweep:
    """One command's cells. cells: names, and the keys of their reports; cancelled: whether it was given up since it was
    submitted."""

    id: str
    command: list[str]
    folder: str
    submitted: str
    machine: str
    cells: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False


@dataclass(frozen=True)
class Machine:
    """The settings a submission runs with."""

    compute: ComputeConfig
    tracker: TrackerConfig
    console: Style = Style.auto


class State(Enum):
    """Where a stage stands."""

    done = "done"
    running = "running"
    queued = "queued"
    failed = "failed"
    missing = "missing"


@dataclass(frozen=True)
class Standing:
    """A stage's state, its record where there is one, and a word on it."""

    state: State
    record: Record | None = None
    reason: str = ""


class Records:
    """The files of one store."""

    def __init__(self, store: Store) -> None:
        self.store, self.root = store, store.root / ".jobs"

    def job(self, key: str) -> Job:
        """What a submitted job makes, by its key."""
        stage, share = split(key)
        return self.stage(stage) if share is None else Shard(self.stage(stage), share)

    def shards(self, stages: Iterable[Stage]) -> list[Shard]:
        """The submitted shards of stages that are not done."""
        missing = {stage.key: stage for stage in stages if not self.store.has(stage.name, stage.key)}
        found = [split(path.stem) for path in (self.root / "records").glob("*-*of*.json")]
        return [Shard(missing[key], share) for key, share in sorted(found, key=lambda one: (one[0], str(one[1])))
                if key in missing and share is not None]

    def stage(self, key: str, known: dict[str, Stage] | None = None) -> Stage:
        """A stage that was submitted once."""
        return blueprint.read(self.root / "stages", key, known)

    def describe(self, stages: Iterable[Stage]) -> None:
        """Keep what the jobs will read."""
        for stage in stages:
            blueprint.write(self.root / "stages", stage)

    def forget(self, keys: Iterable[str]) -> None:
        """What former jobs said, before new ones are submitted."""
        for key in keys:
            (self.root / "attempts" / f"{key}.json").unlink(missing_ok=True)

    def keep(self, record: Record) -> None:
        """A stage's new job."""
        self._save(f"records/{record.key}.json", record)

    def note(self, key: str, note: Note) -> None:
        """What its job says."""
        self._save(f"attempts/{key}.json", note)

    def record(self, key: str) -> Record | None:
        """A stage's last job."""
        return self._load(f"records/{key}.json", Record)

    def under_way(self, key: str) -> Record | None:
        """A job of that record which SLURM has in its queue."""
        record = self.record(key)
        if record is None or record.job == LOCAL or not slurm.here():
            return None
        job = slurm.queue().get(record.job)
        return record if job is not None and job.name == record.name else None

    def said(self, key: str) -> Note | None:
        """What its last job said last."""
        return self._load(f"attempts/{key}.json", Note)

    def keep_sweep(self, sweep: Sweep) -> None:
        """A sweep under its id; its command without secrets."""
        self._save(f"sweeps/{sweep.id}.json", replace(sweep, command=redaction.command(sweep.command)))

    def keep_machine(self, path: Path, machine: Machine) -> None:
        """The settings of a submission."""
        blueprint.save(path, blueprint.plain(machine))

    def sweeps(self) -> list[Sweep]:
        """All of them, the last one submitted last."""
        found = [self._load(f"sweeps/{path.name}", Sweep) for path in (self.root / "sweeps").glob("*.json")]
        return sorted((sweep for sweep in found if sweep is not None), key=lambda sweep: sweep.submitted)

    def cells(self, sweep: Sweep) -> list[Cell]:
        """A sweep's cells as they were planned."""
        known: dict[str, Stage] = {}
        return [Cell(name, closure(self.stage(key, known))) for name, key in sweep.cells.items()]

    def standings(self, jobs: Iterable[Job], queue: Mapping[str, Queued] | None = None) -> dict[str, Standing]:
        """Where each stage or shard stands, by key. queue: what SLURM has; asked once where any record needs it."""
        found: dict[str, Standing] = {}
        for job in jobs:
            record = self.record(job.key)
            if self._there(job):
                found[job.key] = Standing(State.done, record)
                continue
            if record is not None and record.job != LOCAL and queue is None:
                queue = slurm.queue() if slurm.here() else {}
            one = self._standing(job.key, record, queue or {})
            if one.state in (State.failed, State.missing) and self._there(job):  # made between the two looks
                one = Standing(State.done, record)
            found[job.key] = one
        return found

    def _there(self, job: Job) -> bool:
        """Whether there is nothing left to do. Shards go when their stage has taken them up."""
        return any(self.store.has(one.name, one.key) for one in (job, whole(job)))

    def _standing(self, key: str, record: Record | None, queue: Mapping[str, Queued]) -> Standing:
        if record is None:
            return Standing(State.missing)
        job = queue.get(record.job)
        if job is not None and job.name == record.name:
            return Standing(State.queued if job.waits else State.running, record, job.reason if job.waits else "")
        said = self.said(key)
        if said is None or said.job != record.job:
            return Standing(State.missing, record, "its job was cancelled before it began")
        if said.state == "running" and record.job == LOCAL:  # another command's, perhaps: the artifact's lock tells them apart
            return Standing(State.missing, record)
        if said.state == "running":
            return Standing(State.failed, record, f"its job ended without a word (attempt {said.attempt} on {said.host})")
        return Standing(State.failed if said.state == "failed" else State.missing, record, said.reason)

    def _save(self, name: str, value: Any) -> None:
        blueprint.save(self.root / name, blueprint.plain(value))

    def _load(self, name: str, kind: Any) -> Any:
        try:
            return blueprint.typed(kind, json.loads((self.root / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{self.root / name} cannot be read: {error}",
                             "remove it; the sweep's command makes it anew") from error


LOCAL = "local"
"""Stands for a job's id where a stage runs without SLURM."""


def read_machine(path: Path) -> Machine:
    """The settings of a submission. Raises StoreError."""
    try:
        machine = blueprint.typed(Machine, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path} cannot be read: {error}", "submit the sweep again with its command") from error
    assert isinstance(machine, Machine)
    return machine


def now() -> str:
    """The time, to the second, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
