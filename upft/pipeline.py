"""Walks a plan: an artifact that is in the store is a hit, else its stage runs.

Floor 6. Stages are imported only when one has to run, so a run whose every stage is a hit needs no torch.
Everything cheap that can be wrong is looked at before the first stage spends anything.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from upft import export, mirror, origins, provenance, shards
from upft.config import Config
from upft.console import Console
from upft.errors import DataError, StoreError
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import Plan, Stage, plan
from upft.shards import Job, Shard
from upft.sharing import DRAWN, relatives
from upft.specs import BranchSpec, EvaluateSpec, JudgeSpec, ReportSpec, SampleSpec
from upft.store import PARTIAL, RESUME, Artifact, Corrupt, Store
from upft.submission import closure

if TYPE_CHECKING:
    from upft.sampler import EnginePool
    from upft.stages import Host

MARK = {True: "[green]done[/]", False: "[cyan]hit[/] "}


def main(config: Config, console: Console | None = None, sources: tuple[Stage, ...] = (), command: str = "") -> Path | None:
    """Run one cell and return its report's folder; with config.plan only show it (None). sources: samplings of other cells
    that hold all that one of this cell's would draw, to run first. command: what makes the cell, as it is typed."""
    console = console or Console(config.run.console)
    cell = plan(config)
    store = Store(config.run.store)
    if config.plan:
        from upft import preview

        preview.show(config, cell, store, console)
        return None
    target = export.look(config, cell)
    store.prepare()
    store.note_command(cell.report.key, command)
    mirror.remember(store, config, cell)
    earlier = {stage.key: stage for source in sources for stage in closure(source).stages}
    whole = Plan(tuple((earlier | {stage.key: stage for stage in cell.stages}).values()))
    artifacts = walk(whole, store, config.compute, config.tracker, console, repair=config.run.repair)
    report = artifacts[cell.report.key]
    from upft.report.console import summary_table

    console.say()
    console.say(summary_table(report.json("results.json")))
    console.say(f"report: {shown(report.path / 'report.html')}")
    if target is not None:
        export.write(target, cell, artifacts, store)
        console.say(f"model: {shown(target.folder)}{' (exported before)' if target.done else ''}")
    return report.path


def walk(cell: Plan, store: Store, compute: ComputeConfig, tracker: TrackerConfig, console: Console,
         repair: bool = False) -> dict[str, Artifact]:
    """Artifact of every stage by key, built where missing. Raises the stage's own error; what is finished stays."""
    mirror.check(tracker)
    present = {stage.key: look(stage, store, console, repair) for stage in cell.stages}
    missing = [stage for stage in cell.stages if present[stage.key] is None]
    console.say(f"{len(cell.stages)} stages, {len(missing)} to run, store {shown(store.root)}")
    if not missing:
        for stage in cell.stages:
            _tell(console, stage, built=False)
            mirror.tell(stage, store, tracker, console)
        return {key: artifact for key, artifact in present.items() if artifact is not None}
    console.say("  plan " + " > ".join(f"{stage.label}{'' if stage in missing else ' (hit)'}" for stage in cell.stages))
    preflight(missing)
    from upft.sampler import EnginePool

    artifacts: dict[str, Artifact] = {}
    with EnginePool(compute) as engines:
        for stage in cell.stages:
            inputs = {role: artifacts[upstream.key].path for role, upstream in stage.inputs.items()}
            artifacts[stage.key] = _build(stage, inputs, store, compute, tracker, console, engines)
    return artifacts


def alone(job: Job, store: Store, compute: ComputeConfig, tracker: TrackerConfig, console: Console,
          on_begin: Callable[[], object] = lambda: None) -> Artifact:
    """One stage, or a share of one, by itself; the stages it needs must be in the store. Raises StoreError where one is not.
    `on_begin` is called when the work begins."""
    mirror.check(tracker)
    whole = shards.whole(job)
    found = look(whole, store, console, repair=False)
    if found is not None:
        _tell(console, whole, built=False)
        mirror.tell(whole, store, tracker, console)
        return found
    inputs = _inputs(whole, store)
    preflight([whole])
    from upft.sampler import EnginePool

    with EnginePool(compute) as engines:
        return _build(job, inputs, store, compute, tracker, console, engines, on_begin)


def _build(job: Job, inputs: Mapping[str, Path], store: Store, compute: ComputeConfig, tracker: TrackerConfig,
           console: Console, engines: EnginePool, on_begin: Callable[[], object] = lambda: None) -> Artifact:
    """The job's artifact, from the store or made; a stage's shards go when it has taken them up."""
    stage, began = shards.whole(job), time.monotonic()

    def make(out: Path) -> None:
        origins.check(stage.spec)  # a job may have waited for days
        on_begin()
        host = replace(_host(stage, store, compute, tracker, console, engines),
                       share=job.share if isinstance(job, Shard) else None)
        try:
            _run(stage, inputs, out, host)
        finally:
            _check_again(stage, out)

    artifact, built = store.build(job.name, job.key, job.identity, make, on_wait=partial(_waiting, console, job),
                                  command=_command(stage, store))
    _tell(console, job, built, time.monotonic() - began)
    if store.path(stage.name, stage.key).is_dir():  # also where a shard comes after the stage: nobody would take it up
        for folder in _shards(stage, store):
            store.remove(shards.ROOM, folder.name.removesuffix(PARTIAL))
    if not isinstance(job, Shard):
        mirror.tell(stage, store, tracker, console)
    return artifact


def _check_again(stage: Stage, out: Path) -> None:
    """Raise DataError where an input has changed while the stage ran; what it made may then be of either content."""
    try:
        origins.check(stage.spec)
    except DataError:
        shutil.rmtree(out / RESUME, ignore_errors=True)
        raise


def _host(stage: Stage, store: Store, compute: ComputeConfig, tracker: TrackerConfig, console: Console,
          engines: EnginePool) -> Host:
    """What a stage runs on, and what of it has been drawn before."""
    from upft.stages import Host

    whole = []
    for folder in _shards(stage, store):
        if folder.suffix == PARTIAL:
            continue
        try:
            found = store.find(shards.ROOM, folder.name)
        except Corrupt as error:
            if (kept := store.set_aside(shards.ROOM, folder.name)) is not None:  # else another process has just done so
                console.warn(f"{error.what}; set aside as {kept}, drawing it again")
            continue
        if found is not None:
            whole.append(found.path)
    return Host(compute, tracker, console, engines, partial(_related, store), shards=whole,
                command=_command(stage, store) or provenance.command(), shown=mirror.live(stage, store, tracker, console))


def _command(stage: Stage, store: Store) -> str | None:
    """What makes a whole cell, where it is noted: its report's own command may be a job's, or a sweep's."""
    return store.command(stage.key) if isinstance(stage.spec, ReportSpec) else None


def _shards(stage: Stage, store: Store) -> list[Path]:
    """Folders of a stage's shards, finished or not."""
    return sorted((store.root / shards.ROOM).glob(f"{stage.key}-*")) if stage.name in shards.CUT else []


def beside(stage: Stage, store: Store, compute: ComputeConfig, tracker: TrackerConfig, console: Console) -> None:
    """Help another process with the stage whose lock it holds: this one only computes."""
    from upft.sampler import EnginePool

    with EnginePool(compute) as engines:
        _run(stage, _inputs(stage, store), store.unfinished(stage.name, stage.key),
             _host(stage, store, compute, tracker, console, engines))


def _inputs(stage: Stage, store: Store) -> dict[str, Path]:
    """The folders upstream by role."""
    found = {}
    for role, one in stage.inputs.items():
        artifact = store.find(one.name, one.key)
        if artifact is None:
            raise StoreError(f"{stage.label} needs {one.label}, and {one.name}/{one.key} is not in {store.root}",
                             "run that stage first, or submit the sweep again with its command")
        found[role] = artifact.path
    return found


def look(stage: Stage, store: Store, console: Console, repair: bool) -> Artifact | None:
    """The stage's artifact if it is whole. A corrupt one is set aside when `repair`, else raised."""
    try:
        found = store.find(stage.name, stage.key)
    except Corrupt as error:
        if not repair:
            raise
        if (kept := store.set_aside(stage.name, stage.key)) is not None:  # else another process has just done so
            console.warn(f"{error.what}; set aside as {kept}, building it again")
        return None
    if found is not None:
        store.tidy(found)
    return found


def preflight(missing: list[Stage]) -> None:
    """Read every question file and render a prompt for each stage that will run, before anything is spent.

    Raises DataError or ModelError exactly as the stage would, only hours earlier.
    """
    for stage in missing:
        origins.check(stage.spec)
    from upft import datasets

    # Before anything that needs torch, whose import takes seconds. Training questions may be many: the stage that samples
    # renders them all before it starts an engine, here it is one.
    firsts = {}
    for stage in missing:
        if isinstance(stage.spec, (SampleSpec, EvaluateSpec)):
            questions = iter(datasets.Stream(stage.spec.questions))
            firsts[stage.key] = next(questions, None)
            deque(questions, maxlen=0)

    from upft import evaluation, judging, models
    from upft.prompts import Prompter
    from upft.sampler import resolve_sampling

    for stage in missing:
        spec = stage.spec
        if isinstance(spec, JudgeSpec):
            judging.check(spec)
        if not isinstance(spec, (SampleSpec, EvaluateSpec)):
            continue
        source = models.resolve(spec.model.source)
        tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
        prompter = Prompter(tokenizer, spec.prompt)
        if isinstance(spec, EvaluateSpec):  # a task is small: render it whole
            evaluation.check(spec, prompter, resolve_sampling(spec.sampling, source, tokenizer), source)
            continue
        first = firsts[stage.key]
        assert first is not None  # a set without questions is refused
        prompter.ids(first.text)


def _related(store: Store, spec: SampleSpec | EvaluateSpec | BranchSpec, inputs: Mapping[str, Path]) -> list[Path]:
    """Artifacts that may hold what a stage would sample: of the same spec but for its questions, and the same training."""
    training = inputs["model"].name if "model" in inputs else None
    found = store.related(DRAWN[type(spec)][0], relatives(spec))
    return [artifact.path for artifact in found if artifact.json("spec.json")["inputs"].get("model") == training]


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)


def _waiting(console: Console, stage: Job, who: str) -> None:
    console.say(f"  {stage.label}: {who} is building it, waiting")


def _run(stage: Stage, inputs: Mapping[str, Path], out: Path, host: object) -> None:
    importlib.import_module(f"upft.stages.{stage.name}").run(stage.spec, inputs, out, host)


def _tell(console: Console, stage: Job, built: bool, seconds: float = 0.0) -> None:
    console.say(f"  {MARK[built]} {escape(f'{stage.label:<28}')} {stage.name}/{stage.key}"
                + (f"  {seconds:.1f} s" if built else ""), markup=True)
