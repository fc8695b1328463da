"""`python -m upft.stage STORE KEY [--machine FILE]`: one stage of a submitted sweep, or a share of one, by its key.

Top floor, thin. The stage and those it needs are read from STORE/.jobs/stages, the machine's settings from FILE. It ends with
status 2 where a person has to mend something, so that nobody tries again by itself, and with 75 where it was told to stop
and goes on when it is started again. Started by srun as several tasks
it is one rank of a training: the first one works with the store, the others only help it.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from upft import door, notice
from upft.errors import ConfigError, Stopped, TrainError

if TYPE_CHECKING:
    from upft.plan import Stage
    from upft.records import Machine
    from upft.store import Store

FIRST_RANK_S = 1800
"""How long a rank waits for the first one to begin."""


def main(arguments: list[str] | None = None) -> None:
    """Read the stage, run it."""
    parser = argparse.ArgumentParser(prog="python -m upft.stage", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of artifacts")
    parser.add_argument("key", metavar="KEY", help="a stage's key, as python -m upft.jobs shows it")
    parser.add_argument("--machine", type=Path, metavar="FILE", help="settings of the machine (default: the last submission's)")
    given = parser.parse_args(arguments)
    notice.end_with_starter()
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM tells every process of the job; submitit, above, sees to it
    with door.one_message():
        try:
            run(given.store, given.key, given.machine)
        except Stopped as error:
            print(error.what, file=sys.stderr, flush=True)
            os._exit(notice.STOPPED)  # see `ranks`: gloo's threads may abort an orderly end


def run(root: Path, key: str, machine_file: Path | None) -> None:
    """Build one artifact. Raises the stage's own error."""
    from upft import pipeline, ranks, slurm
    from upft.console import Console
    from upft.records import Records, read_machine
    from upft.shards import whole
    from upft.store import Store

    store = Store(root)
    records = Records(store)
    job = records.job(key)
    record = records.record(key)
    if machine_file is None:
        if record is None:
            raise ConfigError(f"{key} was never submitted from {store.root}", "name the machine's settings with --machine FILE")
        machine_file = Path(record.log).parent / "machine.json"
    machine = read_machine(machine_file)
    door.speak(machine.console)
    store.prepare()
    tasks = ranks.planned(machine.compute) if job.name == "train" else 1
    started = slurm.task()
    joined = tasks > 1 and started is not None and started[1] == tasks
    if started is not None and joined:
        _join()
        if started[0] != 0:
            help_first(whole(job), store, machine)
            return
        _token(store, key).parent.mkdir(parents=True, exist_ok=True)
    pipeline.alone(job, store, machine.compute, machine.tracker, Console(machine.console),
                   on_begin=lambda: _token(store, key).touch() if joined else None)


def help_first(stage: Stage, store: Store, machine: Machine) -> None:
    """A rank that is not the first: wait for it to hold the artifact's lock, then train with it."""
    from upft import pipeline
    from upft.console import Console

    token, until = _token(store, stage.key), time.monotonic() + FIRST_RANK_S
    while not token.exists():
        if store.find(stage.name, stage.key) is not None:
            return
        if time.monotonic() > until:
            raise TrainError(f"rank {os.environ['SLURM_PROCID']}: the first rank has not begun within {FIRST_RANK_S} s",
                             "see the first task's log")
        time.sleep(0.5)
    pipeline.beside(stage, store, machine.compute, machine.tracker, Console(quiet=True))


def _token(store: Store, key: str) -> Path:
    """Says that the first rank of this start of this job works in the artifact's folder."""
    start = f"{os.environ.get('SLURM_JOB_ID', 'local')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return store.root / ".jobs" / "ranks" / f"{key}.{start}"


def _join() -> None:
    """SLURM's variables in the words that torch and Lightning read."""
    own = os.environ
    if "MASTER_ADDR" not in own:
        own["MASTER_ADDR"] = first_node(own.get("SLURM_STEP_NODELIST") or own["SLURM_JOB_NODELIST"])
    own.setdefault("MASTER_PORT", str(10_000 + int(own["SLURM_JOB_ID"]) % 20_000))
    own.update(LOCAL_RANK=own["SLURM_LOCALID"], NODE_RANK=own["SLURM_NODEID"], RANK=own["SLURM_PROCID"],
               WORLD_SIZE=own["SLURM_NTASKS"])


def first_node(nodes: str) -> str:
    """The first of SLURM's list of nodes: `gpu[03-05,9],login1` -> `gpu03`."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    assert found is not None  # everything is optional
    return "".join(part or "" for part in found.groups())


if __name__ == "__main__":
    main()
