"""Locks whose holder was a job: taken over when SLURM says that the job is over, and never before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from login import ROOT, Desk

from upft import slurm
from upft.store import Store

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

BUILDER = """
import sys
from upft import locks
from upft.store import Store
locks.LOOK_AFTER_S = 0.3
store = Store(sys.argv[1]); store.prepare()
_, built = store.build("sample", "k", {"spec": 1}, lambda out: (out / "data").write_text("x"),
                       on_wait=lambda who: print("waiting for", who, flush=True))
print("built" if built else "hit", flush=True)
"""


def job(desk: Desk, script: str) -> str:
    """The raw number of a job that was submitted."""
    return subprocess.run(["sbatch", "--parsable", "--output=/dev/null", f"--wrap={script}"], capture_output=True, text=True,
                          check=True, env=desk.environment).stdout.strip()


def state(desk: Desk, number: str) -> str:
    return desk.cluster.ask("squeue", "-h", "-t", "all", "-j", number, "-o", "%T").strip()


@pytest.fixture
def held(desk: Desk):
    """A store whose lock on sample/k this test holds, as a file server would for a client that is gone."""
    store = Store(desk.store)
    store.prepare()
    lock = FileLock(desk.store / ".locks" / "sample-k.lock")
    lock.acquire()
    yield desk.store / ".locks" / "sample-k.holder"
    lock.release()


def builder(desk: Desk) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(desk.store)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                            env=desk.environment)


@pytest.mark.parametrize("how", ["done", "cancelled", "never was"])
def test_a_dead_holder_is_taken_over_once(how, desk: Desk, held: Path):
    number = "7" if how == "never was" else job(desk, "sleep 60" if how == "cancelled" else "true")
    if how == "cancelled":
        desk.until(lambda: state(desk, number) == "RUNNING", 30, "the job did not start")
        desk.cluster.ask("scancel", number)
    desk.empty(30)
    held.write_text(f"process 1 on elsewhere, job {number}.0")
    both = [builder(desk), builder(desk)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(text.split()[-1] for text in said) == ["built", "hit"]
    assert any(f"waiting for process 1 on elsewhere, job {number}.0" in text for text in said)


def test_a_living_holder_is_waited_for(desk: Desk, held: Path):
    number = job(desk, "sleep 100")
    desk.until(lambda: state(desk, number) == "RUNNING", 30, "the job did not start")
    held.write_text(f"process 1 on elsewhere, job {number}.0")
    process = builder(desk)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4)
    desk.cluster.ask("scancel", number)
    assert process.communicate(timeout=60)[0].split()[-1] == "built"


def test_a_requeued_job_takes_over_from_itself(desk: Desk, monkeypatch):
    monkeypatch.setitem(os.environ, "SLURM_CONF", desk.environment["SLURM_CONF"])
    number = job(desk, "sleep 100")
    desk.until(lambda: state(desk, number) == "RUNNING", 30, "the job did not start")
    assert not slurm.ended(f"{number}.0")
    desk.cluster.ask("scontrol", "requeue", number)
    desk.until(lambda: state(desk, number) != "RUNNING", 30, "the job was not requeued")
    assert slurm.ended(f"{number}.0"), "it waits to start again: its former start holds nothing"
    desk.until(lambda: state(desk, number) == "RUNNING", 60, "the job did not start again")
    assert slurm.ended(f"{number}.0")
    assert not slurm.ended(f"{number}.1")


def test_nobody_is_dead_where_slurm_does_not_answer(monkeypatch, tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=2\n")
    monkeypatch.setitem(os.environ, "SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert not slurm.ended("5.0")
