"""What a person sees of a sweep: the table of its stages, how far it is, what has failed and why.

Floor 7. Told by those who run or submit; knows no SLURM.
"""

from __future__ import annotations

import shlex
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from upft.console import Console
from upft.plan import Stage
from upft.records import Standing, State, Sweep
from upft.shards import Job, Shard, whole
from upft.sharing import covered, distinct
from upft.store import Store
from upft.submission import Cell, Work, arrange

MOST_ROWS = 80
"""Stages that the table names one by one; more are put together by their name."""
LAST_LINES = 12
"""Of a failed stage's log."""
MOST_COSTED = 300
"""Missing stages up to which plan=true counts tokens."""
EFFECTIVE_FLOPS = 4e14
"""FLOP/s that GPU-hours are reckoned with."""
COLOUR = {State.done: "cyan", State.running: "green", State.queued: "yellow", State.failed: "red", State.missing: "default"}


class Board:
    """One sweep's. Several threads may tell it things."""

    def __init__(self, console: Console, store: Path, sweep: Sweep, cells: Sequence[Cell], work: Work) -> None:
        self.console, self.store, self.sweep, self.cells, self.work = console, store, sweep, cells, work
        self._lock, self._done, self._shown = threading.Lock(), 0, ""
        todo = len(work.todo)
        console.say(f"sweep {sweep.id}: {len(cells)} cells, {len(work.stages)} distinct stages, "
                    f"{len(work.stages) - len(work.missing)} in the store, "
                    f"{len(work.missing - work.todo - set(work.blocked))} under way, {len(work.missing & work.todo)} to be made"
                    + (f" by {todo} jobs" if todo > len(work.missing & work.todo) else "")
                    + (f", {len(work.missing & set(work.blocked))} left out behind a stage that has failed" if work.blocked
                       else ""))

    def table(self, before: Mapping[str, Standing], jobs: Mapping[str, str]) -> None:
        """Stage, cells served, job, what it waits for, and whether it is a hit or was submitted."""
        shown = [job for job in self.work.jobs if not isinstance(job, Shard) or job.key in jobs]
        rows = [(job.label, job.key, self.work.served[whole(job).key], jobs.get(job.key, ""),
                 [jobs[key] for waits in (self.work.after, self.work.behind) for key in waits.get(job.key, ()) if key in jobs],
                 self._word(job, before)) for job in shown]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("stage", "key", "cells", "job", "depends on", "state"):
            table.add_column(column, no_wrap=True, justify="right" if column == "cells" else "left")
        if len(rows) <= MOST_ROWS:
            for label, key, cells, job, after, word in rows:
                table.add_row(escape(label), key, str(cells), job, _short(after), word)
        else:
            lots: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
            for (_, _, _, job, after, word), one in zip(rows, shown, strict=True):
                lots.setdefault((one.name, word), []).append((job, after))
            for (name, word), lot in lots.items():
                table.add_row(f"{name} x{len(lot)}", "", "", _short(_heads(job for job, _ in lot if job)),
                              _short(_heads(one for _, after in lot for one in after)), word)
        self.console.say(table, markup=True)
        self.console.say(f"python -m upft.jobs list {self.sweep.id} --store {self.store}   shows how far it is")

    def closes(self, job: str) -> None:
        """The job that writes the page on all cells."""
        self.console.say(f"job {job} writes {self.store}/sweeps/{self.sweep.id}/report.html when all their reports are over")

    def _word(self, job: Job, before: Mapping[str, Standing]) -> str:
        if job.key in self.work.todo:
            return "submitted"
        if job.key in self.work.blocked:
            own = self.work.blocked[job.key] == job.key
            return "[red]failed[/]: compute.retry=true tries again" if own else "waits for a failed stage"
        state = before[job.key].state
        return "[cyan]hit[/]" if state is State.done else f"{state.value} already"

    def began(self, job: Job) -> None:
        """A job has started here."""
        with self._lock:
            self.console.say(f"  [green]began[/]  {escape(f'{job.label:<32}')} {job.name}/{job.key}", markup=True)

    def ended(self, job: Job, done: bool) -> None:
        """And is over."""
        with self._lock:
            self._done += 1
            word = "[green]done[/]  " if done else "[red]failed[/]"
            self.console.say(f"  {word} {escape(f'{job.label:<32}')} {job.name}/{job.key}  "
                             f"{self._done}/{len(self.work.todo)}", markup=True)

    def elsewhere(self, jobs: Iterable[str]) -> None:
        """Some of the stages are made by jobs of SLURM's."""
        names = sorted(jobs)
        self.console.say(f"  jobs of SLURM's make what is under way, waiting for them: {_short(names)} "
                         "(python -m upft.jobs cancel ends them)")

    def ending(self, count: int) -> None:
        """Told to stop while this many jobs run here."""
        self.console.say(f"  stopping {count} jobs; a training writes a checkpoint first (once more: at once)")

    def progress(self, standings: Mapping[str, Standing]) -> None:
        """A line, where it differs from the last one."""
        counts = Counter(standings[stage.key].state for stage in self.work.stages)
        reports = sum(standings[cell.plan.report.key].state is State.done for cell in self.cells)
        line = f"  {reports}/{len(self.cells)} cells done; stages: " + ", ".join(
            f"{counts[state]} {state.value}" for state in State if counts[state])
        if line != self._shown:
            self._shown = line
            self.console.say(line)

    def failures(self, standings: Mapping[str, Standing]) -> None:
        """Each failed stage: why, the end of its log, the command that repeats it, the cells that need it."""
        tell_failures(self.console, self.cells, standings, self.work.jobs)


def show_plan(cells: Sequence[Cell], store: Store, console: Console, into: Callable[[Stage], int]) -> None:
    """What a sweep would come to: distinct stages by name, which are there, by how many jobs the missing ones would be made
    (into: see `arrange`), and bounds on what they cost."""
    stages = distinct(cell.plan for cell in cells)
    there = {stage.key for stage in stages if store.path(stage.name, stage.key).is_dir()}
    work, held = arrange(cells, there, into=into), covered(stages)
    costed, jobs = len(work.missing) <= MOST_COSTED, Counter(whole(job).name for job in work.jobs if job.key in work.todo)
    costs: dict[str, tuple[int, int, float]] = {}
    if costed:
        from upft import preview

        owner = {stage.key: cell.plan for cell in cells for stage in cell.plan.stages}
        for stage in stages:
            if stage.key in work.todo and stage.key not in held:
                one = preview.estimate(stage, owner[stage.key])
                costs[stage.key] = one.prompt_tokens, one.new_tokens, one.flops
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for column in ("distinct", "in the store", "jobs", "prompt tokens", "new tokens <=", "FLOPs <=", "GPU-hours"):
        table.add_column(column, justify="right", no_wrap=True)
    total = [0.0, 0.0, 0.0]
    for name in dict.fromkeys(stage.name for stage in stages):
        keys = [stage.key for stage in stages if stage.name == name]
        sums = [sum(costs[key][i] for key in keys if key in costs) for i in range(3)]
        total = [a + b for a, b in zip(total, sums, strict=True)]
        table.add_row(name, str(len(keys)), str(sum(key in there for key in keys)), str(jobs[name]), *_costs(sums))
    table.add_row("together", str(len(stages)), str(len(there)), str(len(work.todo)), *_costs(total))
    console.say(f"{len(cells)} cells")
    console.say(table)
    if held:
        larger = len({one.key for one in held.values()})
        console.say(f"{len(held)} of the samplings draw nothing: "
                    + ("a larger one, made first, holds" if larger == 1 else f"{larger} larger ones, made first, hold")
                    + " their samples")
    if costed:
        console.say(f"GPU-hours: FLOPs at {EFFECTIVE_FLOPS:.0e} a second (40% of what an H100 is built for in bf16); sampling "
                    "takes longer")
    else:
        console.say(f"more than {MOST_COSTED} stages to be made: their tokens are not counted (plan=true without -m counts one "
                    "cell's)")


def _costs(sums: Sequence[float]) -> list[str]:
    prompt, new, flops = sums
    return [f"{prompt:,.0f}" if prompt else "", f"{new:,.0f}" if new else "", f"{flops:.2g}" if flops else "",
            f"{flops / EFFECTIVE_FLOPS / 3600:.2g}" if flops else ""]


def tell_failures(console: Console, cells: Sequence[Cell], standings: Mapping[str, Standing], jobs: Sequence[Job]) -> None:
    """See Board.failures."""
    for job in jobs:
        one = standings[job.key]
        if one.state is not State.failed or one.record is None:
            continue
        needed = [cell.name for cell in cells if any(other.key == whole(job).key for other in cell.plan.stages)]
        console.say(f"[red]failed[/] {escape(job.label)} {job.name}/{job.key}: {escape(one.reason)}; needed by "
                    f"{len(needed)} of {len(cells)} cells: {escape('; '.join(needed[:3]))}{' ...' if len(needed) > 3 else ''}",
                    markup=True)
        for line in tail(Path(one.record.log), LAST_LINES):
            console.say(f"    {line}")
        console.say(f"  log {one.record.log}")
        console.say(f"  again: {repeat(one.record.log, job.key)}")


def repeat(log: str, key: str) -> str:
    """The command that runs a stage here and now."""
    folder = Path(log).parent
    return shlex.join([sys.executable, "-m", "upft.stage", str(folder.parent.parent.parent), key, "--machine",
                       str(folder / "machine.json")])


def tail(file: Path, lines: int) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - 64 * 1024))
            return stream.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def _heads(jobs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def _short(jobs: Sequence[str]) -> str:
    return ", ".join(jobs[:4]) + (f" and {len(jobs) - 4} more" if len(jobs) > 4 else "")
