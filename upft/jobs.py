"""The jobs of sweeps: what is queued, running, done and failed.

list [SWEEP]     every sweep of the store, or one with its stages; the end of a failed stage's log and how to repeat it
logs KEY         the output of a stage's last job
cancel [SWEEP]   end the jobs of a sweep, but for those that another one, not cancelled, needs; what is finished stays
retry [SWEEP]    submit what is missing again, also what has failed
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from upft import door

# Top floor, thin: arguments in, tables out.
if TYPE_CHECKING:
    from upft.console import Console
    from upft.plan import Stage
    from upft.records import Records, Sweep
    from upft.shards import Job


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, do it. Exits with status 2 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m upft.jobs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="list", choices=["list", "logs", "cancel", "retry"])
    parser.add_argument("which", nargs="?", metavar="SWEEP|KEY",
                        help="a sweep's id (default: the last one); a stage's key for logs")
    parser.add_argument("--store", type=Path, default=Path("store"), help="the folder of artifacts (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=40, help="of a log (default: %(default)s)")
    given = parser.parse_args(arguments)
    with door.one_message(status=2):
        from upft.console import Console
        from upft.records import Records
        from upft.store import Store

        console, records = Console(), Records(Store(given.store))
        match given.what:
            case "list":
                sweeps_table(records, console) if given.which is None else show(records, _sweep(records, given.which), console)
            case "logs":
                logs(records, given.which, given.lines)
            case "cancel":
                cancel(records, _sweep(records, given.which), console)
            case "retry":
                retry(records, _sweep(records, given.which))


def sweeps_table(records: Records, console: Console) -> None:
    """A line a sweep; the last one in full."""
    from rich.table import Table

    from upft.records import State

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("sweep", "submitted", "cells done", *(state.value for state in State)):
        table.add_column(column, no_wrap=True)
    sweeps = records.sweeps()
    for sweep in sweeps:
        cells = records.cells(sweep)
        standings = records.standings({s.key: s for cell in cells for s in cell.plan.stages}.values())
        counts = Counter(one.state for one in standings.values())
        done = sum(standings[cell.plan.report.key].state is State.done for cell in cells)
        table.add_row(sweep.id, sweep.submitted, f"{done}/{len(cells)}", *(str(counts[state] or "") for state in State))
    console.say(table if sweeps else f"no sweep was submitted from {records.store.root}")
    if sweeps:
        show(records, sweeps[-1], console)


def show(records: Records, sweep: Sweep, console: Console) -> None:
    """A sweep's stages, and of the failed ones the reason."""
    import shlex

    from rich.markup import escape
    from rich.table import Table

    from upft import closing
    from upft.board import COLOUR, tell_failures

    cells = records.cells(sweep)
    stages = list({stage.key: stage for cell in cells for stage in cell.plan.stages}.values())
    jobs: list[Job] = [*stages, *records.shards(stages)]
    standings = records.standings(jobs)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "key", "job", "state", ""):
        table.add_column(column, no_wrap=True)
    for job in jobs:
        one = standings[job.key]
        table.add_row(escape(job.label), job.key, one.record.job if one.record else "",
                      f"[{COLOUR[one.state]}]{one.state.value}[/]", escape(one.reason))
    state = ", cancelled" if sweep.cancelled else ""
    console.say(f"\nsweep {sweep.id}{state}, from {sweep.folder}: {shlex.join(sweep.command)}")
    console.say(table, markup=True)
    if len(cells) > 1:
        last, written = records.under_way(closing.key(sweep)), records.store.root / "sweeps" / sweep.id / "report.html"
        console.say(f"all cells: {written if written.is_file() else 'no page yet'}"
                    + (f"; job {last.job} writes it when their reports are over" if last is not None else ""))
    tell_failures(console, cells, standings, jobs)


def logs(records: Records, key: str | None, lines: int) -> None:
    """The end of a stage's log, as it is."""
    from upft.board import tail
    from upft.errors import StoreError

    record = records.record(key) if key is not None else None
    if record is None:
        raise StoreError(f"{key}: no stage with this key was submitted from {records.store.root}",
                         "python -m upft.jobs list SWEEP shows the keys")
    sys.stdout.write("".join(f"{line}\n" for line in tail(Path(record.log), lines)))


def cancel(records: Records, sweep: Sweep, console: Console) -> None:
    """Give a sweep up: end its jobs, but for those of cells that another sweep is still after, and say which one that is."""
    from upft import closing, slurm
    from upft.records import State
    from upft.shards import whole

    needed = {key: other.id for other in records.sweeps() if other.id != sweep.id for key in _needs(records, other)}
    stages = {stage.key: stage for cell in records.cells(sweep) for stage in cell.plan.stages}
    made: list[Job] = [*stages.values(), *records.shards(stages.values())]
    live = {whole(one).key: set[str]() for one in made}
    standings = records.standings(made)
    for one in made:
        record = standings[one.key].record
        if record is not None and standings[one.key].state in (State.queued, State.running):
            live[whole(one).key].add(record.job)
    jobs = [job for key, own in live.items() if key not in needed for job in own]
    last = records.under_way(closing.key(sweep))
    if last is not None:
        jobs.append(last.job)
    if jobs:
        slurm.cancel(jobs)
    records.keep_sweep(replace(sweep, cancelled=True))
    kept = {key: own for key, own in live.items() if key in needed and own}
    console.say(f"sweep {sweep.id}: {len(jobs)} jobs cancelled" + (
        f"; {sum(map(len, kept.values()))} stay, for they are also those of "
        f"{', '.join(sorted({needed[key] for key in kept}))}: python -m upft.jobs cancel SWEEP" if kept else ""))


def _needs(records: Records, sweep: Sweep) -> set[str]:
    """Keys of the stages that a sweep is after: of its cells without a report, unless it was cancelled."""
    from upft.errors import StoreError
    from upft.submission import closure

    found: set[str] = set()
    known: dict[str, Stage] = {}
    for report in () if sweep.cancelled else sweep.cells.values():
        if not records.store.has("report", report):
            with suppress(StoreError):  # the code has changed since: its jobs refuse to run as well
                found |= {stage.key for stage in closure(records.stage(report, known)).stages}
    return found


def retry(records: Records, sweep: Sweep) -> None:
    """Submit again."""
    from upft import launcher
    from upft.console import Console
    from upft.records import now, read_machine

    machine = read_machine(Path(sweep.machine))
    launcher.go(replace(sweep, submitted=now(), cancelled=False), records.cells(sweep), records.store,
                replace(machine.compute, retry=True), machine.tracker, Console(machine.console))


def _sweep(records: Records, which: str | None) -> Sweep:
    from upft.errors import StoreError

    sweeps = records.sweeps()
    found = sweeps[-1:] if which is None else [sweep for sweep in sweeps if sweep.id.startswith(which)]
    if len(found) != 1:
        raise StoreError(f"{which or 'no sweep'}: {'several sweeps have' if found else 'no sweep has'} an id that begins so",
                         "known: " + ", ".join(sweep.id for sweep in sweeps) if sweeps else "give its store with --store DIR")
    return found[0]


if __name__ == "__main__":
    main()
