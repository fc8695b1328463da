"""One job of a sweep: `python -m upft.stage` in a process of its own, tried again when it breaks down.

Floor 6. What SLURM starts is this, through submitit, which sends the job back to the queue when its time is up or
others need the machine; what was on disk by then the next start goes on from. Without SLURM `upft.local` calls it.

SLURM says that a job has to stop in two ways. SIGUSR2 comes some time before the time limit, on some clusters also before a
preemption: submitit answers it with `Attempt.checkpoint` and `scontrol requeue`. SIGTERM comes when a job is preempted or
cancelled, before SIGKILL; submitit passes it over. Here both give the stage notice (`upft.notice`): a training writes a
checkpoint, the others have everything on disk as they go and end at once. A preempted job that has ended before SLURM ends it
would count as failed, so it goes back to the queue by itself; SLURM does not do both.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import upft
from upft import notice, slurm
from upft.errors import UpftError
from upft.records import LOCAL, Note, Records
from upft.store import Store

TOLD = {-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2, -signal.SIGHUP, 130, notice.STOPPED}
"""Endings of a stage that somebody asked for: not tried again."""
TO_MEND = 2
GRACE_S = 5.0
"""How long a stage may take to end when asked, and SLURM to tell the job of what it has told the stage."""
KILLED_S = 120.0
"""How long a job that is back in the queue waits for its end, which comes with SLURM's KillWait."""
PAUSE_S = 2.0
TOO_OFTEN = "its time was up more often than compute.slurm.requeues allows"


class Watch:
    """What a job knows of itself while its stage runs. file: the notice it gives; told: whether SLURM's SIGTERM came; asked:
    whether submitit has asked for what to send back to the queue; over: whether who started it here wants no more of it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="upft-notice-"))
        self.file, self.told, self.asked, self.over = self.folder / "stop", False, False, False
        self.process: subprocess.Popen[bytes] | None = None

    def give(self, *_: object) -> None:
        """Answer to SIGTERM, in submitit's place."""
        self.told = True
        self.file.touch()

    def stop(self, within_s: float) -> None:
        """Let the stage end. Called from a signal's handler, while another frame may be waiting for the process."""
        self.file.touch()
        until = time.monotonic() + within_s
        with suppress(ProcessLookupError, ChildProcessError):
            if self.process is not None:
                os.kill(self.process.pid, signal.SIGTERM)  # a training does not get it, and sees the notice
            while (self.process is not None and time.monotonic() < until
                   and os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None):
                time.sleep(0.1)

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Let the stage end, and try it no more. Called from another thread than the one that waits for the process."""
        self.over = True
        self.file.touch()
        process = self.process
        if process is not None:
            process.send_signal(by)


_watch: Watch | None = None


@dataclass(frozen=True)
class Attempt:
    """A stage to run. machine: file of its settings; retries: how often it may break down and be tried again; patience_s: how
    long a stage that was given notice may take to end before its job goes back to the queue all the same."""

    store: str
    key: str
    machine: str
    retries: int
    patience_s: float = GRACE_S

    def __call__(self, job: str | None = None, environment: Mapping[str, str] | None = None,
                 log: IO[str] | None = None, watch: Watch | None = None) -> None:
        """Run it; exit with its status where it fails. job: its record's; null = SLURM's own name for it. watch: of who starts
        it here."""
        records = Records(Store(self.store))
        job = job or slurm_id()
        if job == LOCAL:
            self._try(records, job, environment, log, watch)
            return
        global _watch
        _watch = Watch()
        signal.signal(signal.SIGTERM, _watch.give)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit logs it, and logging swallows what SIGUSR2 raises meanwhile
        try:
            self._try(records, job, environment, log, _watch)
        except Exception as error:  # submitit's, where it does not send the job back
            records.note(self.key, Note("failed", job, socket.gethostname(), 1, TOO_OFTEN if _watch.asked else str(error)))
            raise
        finally:
            shutil.rmtree(_watch.folder, ignore_errors=True)

    def _try(self, records: Records, job: str, environment: Mapping[str, str] | None, log: IO[str] | None,
             watch: Watch | None) -> None:
        rank, tasks = (None if job == LOCAL else slurm.task()) or (0, 1)
        first, tries = rank == 0, 1 if tasks > 1 else 1 + self.retries
        status, over = 0, False
        for number in range(1, tries + 1):
            if first:
                records.note(self.key, Note("running", job, socket.gethostname(), number))
            status = self._run(environment, log, watch)
            over = watch is not None and watch.over
            if status == 0 or status == TO_MEND or status in TOLD or over or number == tries:
                break
            print(f"the stage broke down ({_ending(status)}); trying again, {tries - number} left", file=log, flush=True)
            time.sleep(PAUSE_S)
        if first:
            if status in TOLD or (over and status):  # cancelled, or about to be sent back to the queue
                records.note(self.key, Note("stopped", job, socket.gethostname(), number, _ending(status)))
            else:
                records.note(self.key, Note("done" if status == 0 else "failed", job, socket.gethostname(), number,
                                            "" if status == 0 else _ending(status)))
        if status in TOLD and job != LOCAL:
            _until_killed(job, first, status)
        if status:
            raise SystemExit(status if status > 0 else 128 - status)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """What submitit submits in this job's place when it sends it back to the queue: the same again."""
        from submitit.helpers import DelayedSubmission

        # What SLURM sends next reaches `scontrol requeue` too, which submitit runs now: it must outlive that.
        _deaf()
        if _watch is not None:
            _watch.asked = True
            _watch.stop(self.patience_s)
        return DelayedSubmission(self)

    def _kept(self, watch: Watch | None) -> set[signal.Signals]:
        """Signals that the stage must not get, SLURM's or at Ctrl+C the terminal's: it is given notice, or ends at once."""
        if watch is None:
            return set()
        found = {signal.SIGUSR2}
        with suppress(UpftError):  # the stage will say what is wrong
            if Records(Store(self.store)).job(self.key).name == "train":
                found |= {signal.SIGTERM} if watch is _watch else {signal.SIGTERM, signal.SIGINT}
        return found

    def _run(self, environment: Mapping[str, str] | None, log: IO[str] | None, watch: Watch | None) -> int:
        """The process's exit status. It does not outlive this call, however that ends."""
        if watch is not None:
            environment = {**(environment or {}), notice.VARIABLE: str(watch.file)}
        command = [sys.executable, "-u", "-m", "upft.stage", self.store, self.key, "--machine", self.machine]
        # Blocked signals stay blocked in all that the stage starts, from their first moment on: ranks, engines, compilers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._kept(watch))
        try:
            process = subprocess.Popen(command, env={**os.environ, **path(), **(environment or {})}, stdout=log,
                                       stderr=None if log is None else subprocess.STDOUT)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            if watch is not None:
                watch.process = process
                if watch.file.exists():  # told before there was a process to tell
                    process.terminate()
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
                process.kill()
            if watch is not None:
                watch.process = None


def path() -> dict[str, str]:
    """PYTHONPATH with this very package in front: a job may start in another folder."""
    home, before = str(Path(upft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": home if not before else before if home in before.split(os.pathsep) else f"{home}{os.pathsep}{before}"}


def _until_killed(job: str, first: bool, status: int) -> None:
    """After a stage that was told to stop: wait for this job's end, where SLURM ends it. first: whether this is the job's first
    task, which sends it back to the queue; the others must not end before."""
    assert _watch is not None
    until = time.monotonic() + GRACE_S
    while not _watch.told and time.monotonic() < until:
        time.sleep(0.1)  # SLURM tells this process as well, if perhaps later; after SIGUSR2 submitit sends the job back
    if first and _watch.told and slurm.preempted(job):
        _deaf()
        slurm.requeue(job)
    elif first or not (_watch.told or status == notice.STOPPED):
        return  # cancelled, or SLURM is sending it back just now, or somebody has ended the stage alone
    time.sleep(KILLED_S)


def _deaf() -> None:
    """No signal of SLURM's disturbs this process or those it starts any more, but SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})


def slurm_id() -> str:
    """This job as `squeue --array` shows it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", LOCAL)


def _ending(status: int) -> str:
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
