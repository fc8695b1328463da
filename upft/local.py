"""A sweep on this machine: as many stages side by side as compute.parallel says, each with GPUs of its own.

Floor 7. The same jobs as SLURM would get (`upft.attempt`), started by threads of this process as soon as what they need is
there. Knows nothing of how a stage is made. What jobs of SLURM's are making it leaves to them, and waits. Its jobs end with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from upft import notice
from upft.attempt import Attempt, Watch
from upft.board import Board
from upft.choices import Accelerator
from upft.errors import ConfigError, SlurmError, Terminated
from upft.machine import ComputeConfig
from upft.records import LOCAL, Record, Records, State
from upft.shards import Job
from upft.submission import Work

VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 10.0
"""Seconds between two looks at SLURM's jobs, where some of the stages are made by those."""
PATIENCE_S = 60.0
"""How long a training that was told to stop may take to write a checkpoint."""


def run(work: Work, records: Records, compute: ComputeConfig, machine: Path, board: Board) -> None:
    """Every stage to be made whose inputs can be; returns when nothing is left to start, and no job of SLURM's is to make one.
    A stage that fails leaves only those undone that need it.

    Raises KeyboardInterrupt at Ctrl+C and Terminated at SIGTERM, both after its jobs have ended, which then count as stopped.
    """
    crew = _Crew(shares(compute.parallel, compute, devices(compute)), records, compute.retries, machine, board)
    waiting = {job.key: job for group in work.groups for job in group.jobs}
    others = {job.key: job for job in work.jobs
              if job.key in work.after and job.key not in waiting and job.key not in work.blocked}
    records.forget(waiting)
    failed: set[str] = set()
    running: dict[Future[bool], Job] = {}
    if others:
        board.elsewhere({one.record.job for one in records.standings(others.values()).values() if one.record is not None})
    with _terminable(), ThreadPoolExecutor(compute.parallel) as pool:
        try:
            while True:
                lacking = {*waiting, *others, *(job.key for job in running.values())}
                for key, job in list(waiting.items()):
                    if failed & set(work.after[key]):
                        failed.add(key)
                        lacking.remove(key)
                        del waiting[key]
                    elif not lacking & {*work.after[key], *work.behind[key]}:
                        del waiting[key]
                        records.keep(Record(key, LOCAL, LOCAL, str(crew.log(job))))
                        running[pool.submit(crew.work, job)] = job
                if running:
                    ended, _ = wait(running, timeout=POLL_S if others else None, return_when=FIRST_COMPLETED)
                    for future in ended:
                        job = running.pop(future)
                        if not future.result():
                            failed.add(job.key)
                        board.ended(job, records.standings([job])[job.key].state is State.done)
                elif others:
                    time.sleep(POLL_S)
                else:
                    return
                with suppress(SlurmError):  # it may answer the next time
                    for key, one in records.standings(others.values()).items() if others else ():
                        if one.state not in (State.queued, State.running):
                            del others[key]
                            failed |= set() if one.state is State.done else {key}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.end()
            raise


class _Crew:
    """The jobs at work here, a thread each. places: what each sets in its jobs' environment."""

    def __init__(self, places: Iterable[Mapping[str, str]], records: Records, retries: int, machine: Path,
                 board: Board) -> None:
        self._records, self._retries, self._machine, self._board = records, retries, machine, board
        self._places: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        for place in places:
            self._places.put(place)
        self._watches: set[Watch] = set()
        self._over = False

    def log(self, job: Job) -> Path:
        """Of its output."""
        return self._machine.parent / f"{job.key}.log"

    def work(self, job: Job) -> bool:
        """Whether the job's work was done. It takes a place, and gives it back."""
        place, watch = self._places.get(), Watch()
        self._watches.add(watch)
        try:
            if self._over:  # looked at after `end` could see the watch
                return False
            self._board.began(job)
            attempt = Attempt(str(self._records.store.root), job.key, str(self._machine), self._retries)
            with self.log(job).open("a", encoding="utf-8") as stream:
                attempt(LOCAL, {**place, notice.STARTER: str(os.getpid())}, stream, watch)
            return True
        except SystemExit:
            return False
        finally:
            self._watches.discard(watch)
            shutil.rmtree(watch.folder, ignore_errors=True)
            self._places.put(place)

    def end(self) -> None:
        """Let all of them end, as SLURM's jobs do: by a notice and SIGTERM, after PATIENCE_S, or told a second time, by
        SIGKILL."""
        self._over = True
        if self._watches:
            self._board.ending(len(self._watches))
        try:
            self._tell(signal.SIGTERM)
            until = time.monotonic() + PATIENCE_S
            while self._watches and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            self._tell(signal.SIGKILL)

    def _tell(self, by: signal.Signals) -> None:
        for watch in list(self._watches):
            with suppress(FileNotFoundError):  # its job has ended
                watch.end(by)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated, where it would end this process and nothing else."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminated(*_: object) -> None:
    raise Terminated


def shares(parallel: int, compute: ComputeConfig, gpus: list[str]) -> list[dict[str, str]]:
    """What each place sets in its jobs' environment: GPUs that no other place has. Raises ConfigError where they are too
    few."""
    if not gpus:
        return [{} for _ in range(parallel)]
    if parallel * compute.devices > len(gpus):
        raise ConfigError(f"compute.parallel={parallel} with compute.devices={compute.devices}: {len(gpus)} GPUs are here",
                          f"lower compute.parallel to {len(gpus) // compute.devices or 1}, or compute.devices")
    return [{VISIBLE: ",".join(gpus[i * compute.devices:(i + 1) * compute.devices])} for i in range(parallel)]


def devices(compute: ComputeConfig) -> list[str]:
    """GPUs to hand out: those that CUDA_VISIBLE_DEVICES names, else those that nvidia-smi lists; none on a CPU."""
    if compute.accelerator is Accelerator.cpu:
        return []
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip() not in ("", "-1")]
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True,
                              timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.split()
