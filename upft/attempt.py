"""One job of a sweep: `python -m upft.stage` in a process of its own, tried again when it breaks down.

Floor 6. What SLURM starts is this, through submitit, which sends the job back to the queue when its time is up or
others need the machine; what was on disk by then the next start goes on from. Without SLURM `upft.local` calls it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import upft
from upft.records import LOCAL, Note, Records
from upft.store import Store

TOLD = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2, -signal.SIGHUP, 130}
"""Endings of a stage that somebody asked for: not tried again."""
TO_MEND = 2
GRACE_S = 5.0
PAUSE_S = 2.0


@dataclass(frozen=True)
class Attempt:
    """A stage to run. machine: file of its settings; retries: how often it may break down and be tried again."""

    store: str
    key: str
    machine: str
    retries: int

    def __call__(self, job: str | None = None, environment: Mapping[str, str] | None = None,
                 log: IO[str] | None = None) -> None:
        """Run it; exit with its status where it fails. job: its record's; null = SLURM's own name for it."""
        records = Records(Store(self.store))
        job = job or slurm_id()
        several = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and job != LOCAL
        first = not several or os.environ.get("SLURM_PROCID") == "0"
        tries = 1 if several else 1 + self.retries
        status = 0
        for number in range(1, tries + 1):
            if first:
                records.note(self.key, Note("running", job, socket.gethostname(), number))
            status = self._run(environment, log)
            if status == 0 or status == TO_MEND or status in TOLD or number == tries:
                break
            print(f"the stage broke down ({_ending(status)}); trying again, {tries - number} left", file=log, flush=True)
            time.sleep(PAUSE_S)
        if status in TOLD and job != LOCAL:
            time.sleep(GRACE_S)  # SLURM tells this process as well, if perhaps later: submitit then sends the job back
        if first:
            if status in TOLD:  # cancelled, or about to be sent back to the queue
                records.note(self.key, Note("stopped", job, socket.gethostname(), number, _ending(status)))
            else:
                records.note(self.key, Note("done" if status == 0 else "failed", job, socket.gethostname(), number,
                                            "" if status == 0 else _ending(status)))
        if status:
            raise SystemExit(status if status > 0 else 128 - status)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """What submitit submits in this job's place when it sends it back to the queue: the same again."""
        from submitit.helpers import DelayedSubmission

        # What SLURM sends next reaches `scontrol requeue` too, which submitit runs now: it must outlive that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return DelayedSubmission(self)

    def _run(self, environment: Mapping[str, str] | None, log: IO[str] | None) -> int:
        """The process's exit status. It does not outlive this call, however that ends."""
        command = [sys.executable, "-u", "-m", "upft.stage", self.store, self.key, "--machine", self.machine]
        process = subprocess.Popen(command, env={**os.environ, **path(), **(environment or {})}, stdout=log,
                                   stderr=None if log is None else subprocess.STDOUT)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
                process.kill()


def path() -> dict[str, str]:
    """PYTHONPATH with this very package in front: a job may start in another folder."""
    home, before = str(Path(upft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": home if not before else before if home in before.split(os.pathsep) else f"{home}{os.pathsep}{before}"}


def slurm_id() -> str:
    """This job as `squeue --array` shows it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", LOCAL)


def _ending(status: int) -> str:
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
