"""Sweeps: every cell of a multirun at once, as jobs that wait for each other.

Floor 7, on submitit. Cells become distinct stages (`upft.submission`); a stage is submitted once, equal shapes as an array.
The arrays are held until each job has been told which jobs it waits for. The same command again submits only what is missing.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from upft import closing, door, local, mirror, multirun, pipeline, provenance, sbatch, slurm
from upft.attempt import Attempt
from upft.board import Board, show_plan
from upft.choices import Accelerator
from upft.config import Config
from upft.console import Console
from upft.errors import ConfigError, SlurmError, SweepError
from upft.hashing import digest
from upft.machine import ComputeConfig, ResourcesConfig, SlurmConfig, TrackerConfig
from upft.plan import Stage, plan
from upft.records import Machine, Record, Records, State, Sweep, now
from upft.shards import CUT, Job
from upft.sharing import covered, distinct
from upft.store import Store
from upft.submission import ON_GPU, Cell, Group, Work, alike, arrange, cut

if TYPE_CHECKING:
    from hydra.types import HydraContext

POLL_S = 10.0
"""Seconds between two looks at the queue with compute.wait=true."""


def one(config: Config) -> None:
    """What run.py hands over: a single cell."""
    door.speak(config.run.console)
    if config.compute.slurm is None:
        pipeline.main(config)
    else:
        launch([config], [Cell("the cell", plan(config), provenance.command())], Console(config.run.console))


def sweep(context: HydraContext, master: DictConfig, overrides: Sequence[Sequence[str]], to_slurm: bool) -> None:
    """What Hydra's -m hands over. Raises before anything starts if a cell cannot hold."""
    configs = multirun.configs(context, master, overrides)
    if to_slurm:
        configs = [with_slurm(config) for config in configs]
    named = master.hydra.runtime.choices.get("sweep")
    if named is not None:
        configs = [replace(one, tracker=replace(one.tracker, tags=[*one.tracker.tags, named])) for one in configs]
    door.speak(configs[0].run.console)
    launch(configs, multirun.cells(configs, overrides), Console(configs[0].run.console))


def with_slurm(config: Config) -> Config:
    """compute.slurm with the defaults where hydra/launcher=slurm was chosen without compute=slurm."""
    if config.compute.slurm is not None:
        return config
    settings = SlurmConfig(gpu=ResourcesConfig(), cpu=ResourcesConfig())
    return replace(config, compute=replace(config.compute, slurm=settings))


def launch(configs: Sequence[Config], cells: Sequence[Cell], console: Console) -> None:
    """Run or submit planned cells. Raises SweepError where cells failed and somebody waited for them."""
    first = configs[0]
    if first.plan and len(cells) > 1:
        show_plan(cells, Store(first.run.store), console, partial(shard_count, first.compute))
        return
    sweep_id = digest(sorted(cell.plan.report.key for cell in cells))[:8]
    configs = [one if one.tracker.group is not None else
               replace(one, tracker=replace(one.tracker, group=f"sweep-{sweep_id}")) for one in configs]
    first = configs[0]
    if not first.plan:
        for root in {config.run.store for config in configs}:
            Store(root).prepare()  # before anything is written there
        for config, cell in zip(configs, cells, strict=True):
            mirror.remember(Store(config.run.store), config, cell.plan, cell.name if len(cells) > 1 else None, sweep_id)
    told = Sweep(sweep_id, [sys.executable, *sys.argv], str(Path.cwd()), now(), "", {c.name: c.plan.report.key for c in cells})
    if first.plan or (first.compute.slurm is None and first.compute.parallel == 1):
        one_store = len({config.run.store for config in configs}) == 1
        if not first.plan and one_store:  # so that its id selects its cells from the start
            keep(told, Records(Store(first.run.store)), distinct(cell.plan for cell in cells),
                 Machine(first.compute, first.tracker, console.style))
        held = covered(distinct(cell.plan for cell in cells))
        for config, cell in zip(configs, cells, strict=True):
            sources = {held[stage.key].key: held[stage.key] for stage in cell.plan.stages if stage.key in held}
            pipeline.main(config, console, tuple(sources.values()), cell.command)
        if not first.plan and one_store:
            page(told, cells, Store(first.run.store), first.tracker, console)
        return
    for name in ("compute", "tracker", "run"):
        odd = next((i for i, config in enumerate(configs) if getattr(config, name) != getattr(first, name)), None)
        if odd is not None:
            raise ConfigError(f"cell {cells[odd].name}: {name} is not that of the first cell",
                              f"sweep over science settings; give {name} once for all cells")
    if first.run.export is not None:
        raise ConfigError(f"run.export={first.run.export}: jobs do not export",
                          "when they are done, run the cell's own command without SLURM: all is there, it only exports")
    store = Store(first.run.store)
    for cell in cells:
        store.note_command(cell.plan.report.key, cell.command)
    if first.run.repair:
        for stage in distinct(cell.plan for cell in cells):
            pipeline.look(stage, store, console, repair=True)
    go(told, cells, store, first.compute, first.tracker, console)


def keep(sweep: Sweep, records: Records, stages: Sequence[Stage], machine: Machine) -> Path:
    """Note a sweep for `python -m upft.jobs` and `.report`, before it begins. The file of its machine settings, in a folder of
    this submission's own."""
    records.describe(stages)
    path = records.root / "submitted" / f"{sweep.id}-{uuid.uuid4().hex[:8]}" / "machine.json"
    records.keep_machine(path, machine)
    records.keep_sweep(replace(sweep, machine=str(path)))
    return path


def go(sweep: Sweep, cells: Sequence[Cell], store: Store, compute: ComputeConfig, tracker: TrackerConfig,
       console: Console) -> None:
    """Submit (or run here) what is missing of these cells."""
    mirror.check(tracker)
    records = Records(store)
    stages = distinct(cell.plan for cell in cells)
    into = partial(shard_count, compute)
    parts = [part for lot in cut(stages, into).values() for part in lot]
    standings = records.standings([*stages, *parts])
    by = {state: {key for key, one in standings.items() if one.state is state} for state in State}
    work = arrange(cells, there=by[State.done], under_way=by[State.queued] | by[State.running],
                   refused=set() if compute.retry else by[State.failed], shape=lambda job: shape(job, compute), into=into)
    machine = keep(sweep, records, stages, Machine(compute, tracker, console.style))
    board = Board(console, store.root, sweep, cells, work)
    if compute.slurm is None:
        local.run(work, records, compute, machine, board)
    else:
        jobs = {key: one.record.job for key, one in standings.items()
                if one.record is not None and one.state in (State.queued, State.running)}
        made = submit(work, records, compute, compute.slurm, machine, jobs)
        jobs |= made
        board.table(standings, jobs)
        reports = {cell.plan.report.key for cell in cells}
        if len(cells) > 1 and reports & set(made):
            after = [made[key].partition("_")[0] if key in made else jobs[key] for key in sorted(reports) if key in jobs]
            asked = resources("report", compute, compute.slurm)
            board.closes(closing.submit(sweep, records, compute.slurm, asked, machine, after))
        if compute.wait:
            _wait(work, records, board)
    if compute.slurm is None or len(cells) == 1 or not work.todo:  # else the last job does
        closing.tell(stages, store, tracker, console)
    standings = records.standings(work.jobs)
    lacking = [cell.name for cell in cells if standings[cell.plan.report.key].state is not State.done]
    if compute.slurm is None or compute.wait or not lacking:
        page(sweep, cells, store, tracker, console)
    if (compute.slurm is None or compute.wait) and lacking:
        board.failures(standings)
        raise SweepError(f"{len(lacking)} of {len(cells)} cells have no report: {'; '.join(lacking[:5])}"
                         + (" and others" if len(lacking) > 5 else ""),
                         f"python -m upft.jobs --store {store.root} tells why; the same command with compute.retry=true "
                         "tries again what has failed")


def page(sweep: Sweep, cells: Sequence[Cell], store: Store, tracker: TrackerConfig, console: Console) -> None:
    """Write the report on the cells of a sweep that have one into STORE/sweeps/ID; none on a single cell."""
    if len(cells) > 1 and (written := closing.finish(sweep, cells, store, tracker, console)) is not None:
        console.say(f"all {len(cells)} cells: {pipeline.shown(written)}")


def shard_count(compute: ComputeConfig, stage: Stage) -> int:
    """Jobs that a stage's completions are drawn by: one where there are no jobs."""
    jobs = compute.slurm is not None or compute.parallel > 1
    return getattr(compute.shards, stage.name) if jobs and stage.name in CUT else 1


def shape(job: Job, compute: ComputeConfig) -> Hashable:
    """What must be equal in the jobs of one array."""
    return alike(job), nodes(job, compute)


def nodes(job: Job, compute: ComputeConfig) -> int:
    """Nodes a job spans: only training spans several."""
    return compute.nodes if job.name == "train" else 1


def resources(name: str, compute: ComputeConfig, settings: SlurmConfig, gathers: bool = False) -> ResourcesConfig:
    """What a stage asks for, nulls filled in. gathers: its shards have drawn all it needs, so it is one of those on CPUs."""
    uses = name in ON_GPU and not gathers
    kind, own = settings.gpu if uses else settings.cpu, ResourcesConfig() if gathers else settings.stages.get(
        name, ResourcesConfig())
    found = ResourcesConfig(**{field: getattr(kind, field) if getattr(own, field) is None else getattr(own, field)
                               for field in ("partition", "gpus", "cpus", "mem_gb", "minutes")})
    if uses and found.gpus is None:
        found.gpus = 0 if compute.accelerator is Accelerator.cpu else compute.devices
    return found


def submit(work: Work, records: Records, compute: ComputeConfig, settings: SlurmConfig, machine: Path,
           jobs: Mapping[str, str]) -> dict[str, str]:
    """Job of each submitted stage, by key. jobs: of the stages that are under way. What was submitted is cancelled if
    anything goes wrong before all of it is."""
    if not slurm.here():
        raise SlurmError("compute=slurm: there is no sbatch on this machine",
                         "start it on a cluster's login node, or use compute=local compute.parallel=N")
    made: dict[str, str] = {}
    heads: list[str] = []
    records.forget(work.todo)
    try:
        for group in work.groups:
            waits = any(work.after[one.key] or work.behind[one.key] for one in group.jobs)
            ids = _submit(group, records, compute, settings, machine, held=waits)
            made |= {one.key: job for one, (job, _) in zip(group.jobs, ids, strict=True)}
            heads.append(ids[0][0].partition("_")[0])
            for one, (job, log) in zip(group.jobs, ids, strict=True):
                records.keep(Record(one.key, job, _name(group, machine), log))
        every = {**jobs, **made}
        after, behind = ({job: [every[needed] for needed in waits[key]] for key, job in made.items()}
                         for waits in (work.after, work.behind))
        held = {job.partition("_")[0] for job in made.values() if after[job] or behind[job]}
        if held:
            slurm.depend(after, behind, [head for head in heads if head in held])
    except BaseException:
        with suppress(SlurmError):
            slurm.cancel(heads)
        raise
    return made


def _submit(group: Group, records: Records, compute: ComputeConfig, settings: SlurmConfig, machine: Path,
            held: bool) -> list[tuple[str, str]]:
    """(job, log) of each of a group."""
    asked = resources(group.stage, compute, settings, group.gathers)
    count = nodes(group.jobs[0], compute)
    tasks = compute.devices if group.name == "train" and count * compute.devices > 1 and count > 1 else 1
    more = {"requeue": True, "kill-on-invalid-dep": "yes", **settings.sbatch, **({"hold": True} if held else {})}
    executor = sbatch.executor(machine.parent, _name(group, machine), asked, settings, 60 * 24, more, nodes=count,
                               ntasks_per_node=tasks, gpus_per_node=asked.gpus or None, array_parallelism=settings.array,
                               srun_args=["--kill-on-bad-exit=1"])
    work = [Attempt(str(records.store.root), one.key, str(machine), compute.retries, settings.patience_s)
            for one in group.jobs]
    with sbatch.refusal(group.name, "mend compute.slurm (partition, gpus, mem_gb, minutes, sbatch); sinfo shows what there is"):
        jobs = executor.submit_array(work)
    return [(job.job_id, str(job.paths.stdout)) for job in jobs]


def _name(group: Group, machine: Path) -> str:
    """A job's name, of this submission alone: an id that another cluster has given before is not taken for it."""
    return f"upft-{group.name}-{machine.parent.name}"


def _wait(work: Work, records: Records, board: Board) -> None:
    """Until no job of these is left."""
    while True:
        standings = records.standings(work.jobs)
        board.progress(standings)
        if not any(one.state in (State.queued, State.running) for one in standings.values()):
            return
        time.sleep(POLL_S)
