"""A sweep on this machine: as many stages side by side as compute.parallel says, each with GPUs of its own.

Floor 7. The same jobs as SLURM would get (`upft.attempt`), started by threads of this process as soon as what they need is
there. Knows nothing of how a stage is made.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

from upft.attempt import Attempt
from upft.board import Board
from upft.choices import Accelerator
from upft.errors import ConfigError
from upft.machine import ComputeConfig
from upft.records import LOCAL, Record, Records, State
from upft.shards import Job
from upft.submission import Work

VISIBLE = "CUDA_VISIBLE_DEVICES"


def run(work: Work, records: Records, compute: ComputeConfig, machine: Path, board: Board) -> None:
    """Every stage to be made whose inputs can be; returns when nothing is left to start. A stage that fails leaves only
    those undone that need it."""
    places: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for place in shares(compute.parallel, compute, devices(compute)):
        places.put(place)
    waiting = {job.key: job for group in work.groups for job in group.jobs}
    records.forget(waiting)
    failed: set[str] = set()
    running: dict[Future[bool], Job] = {}
    with ThreadPoolExecutor(compute.parallel) as pool:
        try:
            while True:
                for key, job in list(waiting.items()):
                    if failed & set(work.after[key]):
                        failed.add(key)
                        del waiting[key]
                    elif not {*work.after[key], *work.behind[key]} & {*waiting, *(one.key for one in running.values())}:
                        del waiting[key]
                        log = machine.parent / f"{key}.log"
                        records.keep(Record(key, LOCAL, LOCAL, str(log)))
                        running[pool.submit(_one, Attempt(str(records.store.root), key, str(machine), compute.retries), places,
                                            log, board, job)] = job
                if not running:
                    return
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    job = running.pop(future)
                    if not future.result():
                        failed.add(job.key)
                    board.ended(job, records.standings([job])[job.key].state is State.done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one(attempt: Attempt, places: SimpleQueue[Mapping[str, str]], log: Path, board: Board, job: Job) -> bool:
    """Whether the job's work was done. It takes a place, and gives it back."""
    place = places.get()
    try:
        board.began(job)
        with log.open("a", encoding="utf-8") as stream:
            attempt(LOCAL, place, stream)
        return True
    except SystemExit:
        return False
    finally:
        places.put(place)


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
