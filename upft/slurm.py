"""What SLURM says of jobs, and what it is told, through its own commands.

Floor 0: knows no stage and no store. What a job has achieved is not asked here: SLURM calls a job completed whose
work has failed, and forgets what ended some minutes ago. It is asked only what is still to come or under way.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from upft.errors import SlurmError

WAITING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
        "TIMEOUT"}
TIMEOUT_S = 120
MANY_S = 600
"""For what is said of all jobs of a sweep at once."""
HELD = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Queued:
    """A job that is not over. id: `123`, or `123_4` of an array. state and reason in SLURM's words."""

    id: str
    name: str
    state: str
    reason: str

    @property
    def waits(self) -> bool:
        """Whether it has yet to start (again)."""
        return self.state in WAITING


def here() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


def queue() -> dict[str, Queued]:
    """This user's jobs that are not over, by id. Raises SlurmError where SLURM does not answer."""
    said = _run(["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%j|%T|%r"])
    found = {}
    for line in said.splitlines():
        identity, _, rest = line.strip().partition("|")
        name, state, reason = (*rest.rsplit("|", 2), "", "")[:3]
        if state not in OVER and reason != HELD:
            found[identity] = Queued(identity, name, state, reason)
    return found


def own_job() -> str | None:
    """This process's job: its raw number and how often it was restarted, `123.1`; None outside a job."""
    number = os.environ.get("SLURM_JOB_ID")
    return None if number is None else f"{number}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def task() -> tuple[int, int] | None:
    """This process's number and of how many, where srun has started it; None elsewhere. A batch script has SLURM_NTASKS and
    SLURM_PROCID too: there they say what was asked for, and only srun's step (SLURM_STEP_ID) what runs."""
    own = os.environ
    if not {"SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID"} <= set(own):
        return None
    return int(own["SLURM_PROCID"]), int(own["SLURM_NTASKS"])


def ended(job: str) -> bool:
    """Whether a job known by `own_job` is over, or was started again since. False where SLURM cannot tell."""
    number, _, restarts = job.partition(".")
    if os.environ.get("SLURM_JOB_ID") == number:
        return os.environ.get("SLURM_RESTART_COUNT", "0") != restarts
    try:
        done = subprocess.run(["scontrol", "show", "job", number, "--oneliner"], capture_output=True, text=True,
                              timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        return "Invalid job id" in done.stdout + done.stderr
    own = next((line for line in done.stdout.splitlines() if line.startswith(f"JobId={number} ")), "")  # it may be an array
    told = dict(re.findall(r"(JobState|Restarts)=(\S+)", own))
    return told.get("JobState") in OVER | WAITING or told.get("Restarts", restarts) != restarts


def preempted(job: str) -> bool:
    """Whether a running job was told to make room for others. job: as `squeue --array` shows it. False where SLURM does not
    answer."""
    try:
        done = subprocess.run(["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True,
                              timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    told = dict(re.findall(r"(JobState|PreemptTime)=(\S+)", done.stdout))
    return told.get("JobState") == "RUNNING" and told.get("PreemptTime", "None") != "None"


def requeue(job: str) -> None:
    """Send a job back to the queue; SLURM ends it first. job: as `squeue --array` shows it. Raises SlurmError."""
    _run(["scontrol", "requeue", job])


def depend(after: Mapping[str, Sequence[str]], behind: Mapping[str, Sequence[str]], release: Iterable[str]) -> None:
    """Let each held job start when those it needs (`after`) have ended well and others (`behind`) have ended, and let go of
    them all. Raises SlurmError."""
    waits = {job: [*(f"afterok:{one}" for one in after.get(job, ())), *(f"afterany:{one}" for one in behind.get(job, ()))]
             for job in {**after, **behind}}
    lines = [f"update jobid={job} dependency={','.join(each)}" for job, each in waits.items() if each]
    lines += [f"release {job}" for job in release]
    done = _ask(["scontrol"], "\n".join(lines) + "\n", timeout_s=MANY_S)
    errors = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"error|invalid|denied", line, re.I)]
    if done.returncode or errors:
        raise SlurmError(f"scontrol refused the jobs' dependencies: {(errors or [done.stderr.strip()])[0]}",
                         "ask the cluster's administrators whether users may change their waiting jobs")


def cancel(jobs: Iterable[str]) -> None:
    """End jobs; those that are over already do not matter."""
    ids = list(jobs)
    for first in range(0, len(ids), 500):
        _run(["scancel", "--quiet", *ids[first:first + 500]])


def _run(command: list[str]) -> str:
    done = _ask(command)
    if done.returncode:
        raise SlurmError(f"{command[0]} failed: {done.stderr.strip()}", "see whether the cluster is up: sinfo")
    return done.stdout


def _ask(command: list[str], said: str | None = None, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """said: on its standard input. Raises SlurmError where there is no such command, or no answer."""
    try:
        return subprocess.run(command, input=said, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise SlurmError(f"compute=slurm: there is no {command[0]} on this machine",
                         "start it on a cluster's login node, or use compute=local compute.parallel=N") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} has not answered for {timeout_s:g} s", "try again when the cluster answers") from error
