"""The page on all cells of a sweep, `STORE/sweeps/ID`: what it ends with, here or as the last, small job of SLURM's.

Floor 7. The job waits until the cells' reports are over, however they ended, so that the figure is there in the morning though
nobody stayed; the page names the cells that have no report. Then it tells W&B what no other job has told.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from upft import mirror, redaction, sbatch, slurm
from upft.choices import TrackerKind
from upft.console import Console
from upft.errors import StoreError
from upft.machine import ResourcesConfig, SlurmConfig, TrackerConfig
from upft.plan import Stage
from upft.records import Record, Records, Sweep, read_machine
from upft.sharing import distinct
from upft.store import Store
from upft.submission import Cell


@dataclass(frozen=True)
class Closing:
    """What the job runs, through submitit. sweep: its id; machine: file of its settings."""

    store: str
    sweep: str
    machine: str

    def __call__(self) -> str:
        """Write the page; its place. Raises StoreError where no cell has a report."""
        records, settings = Records(Store(self.store)), read_machine(Path(self.machine))
        sweep, console = next((one for one in records.sweeps() if one.id == self.sweep), None), Console(settings.console)
        written = None
        if sweep is not None:
            cells = records.cells(sweep)
            tell(distinct(cell.plan for cell in cells), records.store, settings.tracker, console)
            written = finish(sweep, cells, records.store, settings.tracker, console)
        if written is None:
            raise StoreError(f"sweep {self.sweep}: no cell has a report", f"python -m upft.jobs --store {self.store} tells why")
        print(f"written: {written}", flush=True)
        return str(written)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Preempted: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def key(sweep: Sweep) -> str:
    """The job's record is kept under this."""
    return f"page-{sweep.id}"


def finish(sweep: Sweep, cells: Sequence[Cell], store: Store, tracker: TrackerConfig, console: Console) -> Path | None:
    """Write the page and show it to W&B; null where no cell has a report."""
    written = write(store, sweep)
    if written is not None:
        mirror.tell_page(sweep.id, command(sweep), {cell.name: cell.plan.report for cell in cells}, written.parent, store,
                         tracker, console)
    return written


def command(sweep: Sweep) -> str:
    """What makes its cells, as it is typed, without secrets."""
    return shlex.join(["python", *redaction.command(sweep.command[1:])])


def write(store: Store, sweep: Sweep) -> Path | None:
    """Write the page on the cells that have a report; null where there is none. One process at a time."""
    from upft import dossier

    there = {name: store.path("report", one) for name, one in sweep.cells.items() if store.has("report", one)}
    if not there:
        return None
    store.prepare()
    with FileLock(store.root / ".locks" / f"{key(sweep)}.lock"):
        return dossier.write(list(there.values()), store.root / "sweeps" / sweep.id, command(sweep),
                             [name for name in sweep.cells if name not in there])


def tell(stages: Iterable[Stage], store: Store, tracker: TrackerConfig, console: Console) -> None:
    """Show the stages that are in the store where nobody has yet: of those that were there before no job tells."""
    if tracker.kind is TrackerKind.none:
        return
    for stage in stages:
        if store.has(stage.name, stage.key):
            mirror.tell(stage, store, tracker, console)


def submit(sweep: Sweep, records: Records, settings: SlurmConfig, asked: ResourcesConfig, machine: Path,
           after: Sequence[str]) -> str:
    """Its job, after those jobs; an earlier one of the same sweep is taken back. asked: what a report asks for. Raises
    SlurmError."""
    earlier = records.under_way(key(sweep))
    name = f"upft-page-{machine.parent.name}"
    executor = sbatch.executor(machine.parent, name, asked, settings, 60, {
        "requeue": True, **settings.sbatch, "dependency": "afterany:" + ":".join(dict.fromkeys(after))})
    with sbatch.refusal("the sweep's page", f"its cells are submitted; afterwards python -m upft.report {sweep.id} writes it"):
        job = executor.submit(Closing(str(records.store.root), sweep.id, str(machine)))
    records.keep(Record(key(sweep), job.job_id, name, str(job.paths.stdout)))
    if earlier is not None:
        slurm.cancel([earlier.job])
    return job.job_id
