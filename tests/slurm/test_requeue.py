"""Back to the queue on a real SLURM: preempted by another partition's job, or told by SLURM that the time is up. A stage goes
on from what is on disk, and its artifact and its W&B run are those of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster
from login import ROOT, SMALL, Desk
from test_sweep import contents, stage_of

from upft.sample_log import FILE, SampleLog
from upft.store import RESUME

sys.path.insert(0, str(ROOT / "tests"))
from test_mirror import Told

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

LONG = ["prefix.len=8", "train.epochs=12", "seed=0"]
STEPS = 48
MANY = ["prefix.len=32", "sample.n=12", "compute.sample_batch=8", "seed=0"]
SAMPLES = 12 * 64
NODE = "+compute.slurm.sbatch.nodelist="
LIMIT = ["compute.slurm.stages.train.minutes=10", "compute.slurm.signal_s=25"]
"""More than a slow machine needs to begin; shortened then."""
CASES = {
    "killed": [*LONG, f"{NODE}n1", "compute.checkpoint_every_s=0"],
    "grace": [*LONG, f"{NODE}n1", "compute.slurm.gpu.partition=grace"],
    "kill -9": [*LONG, f"{NODE}n2", "compute.checkpoint_every_s=0"],
    "scancel": [*LONG, f"{NODE}n2", "compute.checkpoint_every_s=0"],
    "sampling": [*MANY, f"{NODE}n1", "compute.slurm.gpu.partition=grace"],
    "time": [*LONG, f"{NODE}n2", *LIMIT],
    "once too often": [*LONG, f"{NODE}n2", *LIMIT, "compute.slurm.requeues=0"],
}


MIRRORED = ("grace", "time")


@dataclass
class Case:
    """One store and what is done to it. stage: the one that is disturbed; frozen: its process; drawn: samples in its log when
    it was back in the queue."""

    desk: Desk
    stage: str
    frozen: int = 0
    drawn: set[tuple[str, int]] = field(default_factory=set)

    def job(self, name: str = "") -> tuple[str, str]:
        """(id, state) of its job of a stage; nothing where it has none in the queue."""
        names = {path.name for path in (self.desk.store / ".jobs" / "submitted").glob("*")}
        for line in self.desk.queue("%i|%j|%T"):
            number, job, state = line.split("|")
            if job.startswith(f"upft-{name or self.stage}-") and job.split("-", 2)[2] in names:
                return number, state
        return "", ""

    def done(self) -> int:
        """Steps of the unfinished training, or samples of the unfinished sampling."""
        name = "metrics.jsonl" if self.stage == "train" else f"{RESUME}/{FILE}"
        return sum(path.read_bytes().count(b"\n") for path in self.desk.store.glob(f"{self.stage}/*.partial/{name}"))

    def freeze(self) -> bool:
        """Stop its process in the middle of its work, so that no machine is too fast or too slow for what comes next."""
        if not self.frozen and self.done() >= (3 if self.stage == "train" else 16):
            key = next(self.desk.store.glob(f"{self.stage}/*.partial")).name.removesuffix(".partial")
            [self.frozen] = [int(p.name) for p in Path("/proc").glob("[0-9]*") if stage_of(p, str(self.desk.store), key)]
            os.kill(self.frozen, signal.SIGSTOP)
        return self.frozen != 0

    def log(self) -> str:
        """Everything its stage has said."""
        [key] = {path.name.removesuffix(".partial") for path in self.desk.store.glob(f"{self.stage}/*")}
        return Path(json.loads((self.desk.store / ".jobs" / "records" / f"{key}.json").read_text())["log"]).read_text()

    def timed_out(self) -> bool:
        """Whether SLURM has said that its time is up."""
        return any("is timed-out" in log.read_text() for log in self.desk.store.glob(".jobs/submitted/*/*_log.out"))

    def go_on(self) -> None:
        """Undo `freeze`."""
        if self.frozen:
            with suppress(ProcessLookupError):
                os.kill(self.frozen, signal.SIGCONT)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the same cell, which nobody disturbed."""
    store = tmp_path_factory.mktemp("calm") / "store"
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), *LONG, *SMALL, f"run.store={store}"], text=True, cwd=ROOT,
                         capture_output=True, timeout=600)
    assert out.returncode == 0, out.stderr
    return store


@pytest.fixture(scope="module")
def cases(cluster: Cluster, calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All of them submitted, side by side: waiting is most of what they do. Each was stopped in the middle of its work."""
    made: dict[str, Case] = {}
    for name in CASES:
        folder = tmp_path_factory.mktemp("case")
        made[name] = Case(Desk(cluster, folder / "store", {"WANDB_DIR": str(folder), "WANDB_MODE": "offline"}),
                          "sample" if name == "sampling" else "train")

    def begin(name: str) -> None:
        case = made[name]
        if name != "sampling" and not case.desk.store.exists():
            shutil.copytree(calm, case.desk.store, ignore=shutil.ignore_patterns(
                ".locks", "report", "train", *(path.parent.name for path in calm.glob("evaluate/*/spec.json")
                                               if json.loads(path.read_text())["inputs"])))
        out = case.desk.run(*CASES[name], *(["tracker=wandb", "tracker.project=upft-test"] if name in MIRRORED else []))
        assert out.returncode == 0, out.stderr
        if name == "sampling":  # what comes after it is not what this is about
            for other in ("diagnose", "evaluate", "build", "train", "report"):
                while number := case.job(other)[0]:
                    cluster.ask("scancel", number)

    begun: list[Future[None]] = []

    def disturb(name: str) -> None:
        case = made[name]
        case.desk.until(case.freeze, 240, f"{name} did not begin")
        if name in ("time", "once too often"):
            run_out(case, name == "time")
        elif name == "kill -9":
            os.kill(case.frozen, signal.SIGKILL)
        elif name == "scancel":
            begun[list(made).index(name)].result()
            cluster.ask("scancel", case.job()[0])
            case.desk.until(lambda: not any(case.job(one)[0] for one in ("train", "evaluate", "report")), 60, "it goes on")
            begin(name)

    with ThreadPoolExecutor(2 * len(made)) as pool:
        begun += [pool.submit(begin, name) for name in made]
        disturbed = {name: pool.submit(disturb, name) for name in made}
        for one in (*begun, *(disturbed[name] for name in ("killed", "grace", "sampling"))):
            one.result()
        preempt(made)
        for one in disturbed.values():
            one.result()
    yield made
    for case in made.values():
        case.go_on()
    for number in {one.partition("_")[0] for one in case.desk.queue()}:
        cluster.ask("scancel", number)


def run_out(case: Case, prolong: bool) -> None:
    """Its limit comes near, SLURM says that the time is up (it looks every 30 s), and the training goes on to the end of its
    step. prolong: give the next start more time, or a slow machine would need many."""
    number = case.job()[0]
    told = case.desk.cluster.ask("scontrol", "show", "job", number, "--oneliner")
    hours, minutes, seconds = map(int, told.partition(" RunTime=")[2].split()[0].split(":"))
    limit = -(-(3600 * hours + 60 * minutes + seconds + 50) // 60)
    case.desk.cluster.ask("scontrol", "update", f"jobid={number}", f"timelimit={limit}")
    case.desk.until(case.timed_out, 90, "nobody said that the time was up")
    case.go_on()
    if prolong:
        case.desk.until(lambda: case.job()[1] == "PENDING", 60, "it was not requeued")
        case.desk.cluster.ask("scontrol", "update", f"jobid={case.job()[0]}", "timelimit=60")


def preempt(cases: dict[str, Case]) -> None:
    """A job of a partition of higher priority takes the node of three of them."""
    desk = cases["killed"].desk
    urgent = subprocess.run(["sbatch", "--parsable", "--partition=urgent", "--nodelist=n1", "--exclusive", "--output=/dev/null",
                             "--wrap=sleep 2"], capture_output=True, text=True, check=True, env=desk.environment).stdout.strip()
    for name in ("killed", "grace", "sampling"):
        desk.until(lambda case=cases[name]: case.job()[1] == "PENDING", 60, f"{name} was not preempted")
    cases["sampling"].drawn = drawn(cases["sampling"].desk.store)
    desk.until(lambda: not desk.cluster.ask("squeue", "-h", "-j", urgent), 60, "the urgent job did not end")


def drawn(store: Path) -> set[tuple[str, int]]:
    """(question, index) of every sample in the log of an unfinished sampling; none is there twice."""
    for path in store.glob(f"sample/*.partial/{RESUME}/{FILE}"):
        with SampleLog(path.parent) as log:
            found = [(record["id"], record["index"]) for _, record in log.read()]
        assert len(set(found)) == len(found)
        return set(found)
    return set()


def end(case: Case, calm: Path) -> tuple[list[int], list[int]]:
    """Wait for the end. The store must be the undisturbed one. Steps after which the training stopped by itself, and after
    which it went on."""
    case.desk.until(lambda: list(case.desk.store.glob("report/*/manifest.json")) and not case.job("report")[0], 240,
                    "there is no report")
    made, expected = contents(case.desk.store), contents(calm)
    assert {name: data for name, data in made.items() if expected.get(name) != data} == {}
    assert set(made) == set(expected)
    lines = case.log().splitlines()
    stopped = [int(line.split()[9]) for line in lines if line.startswith("told to stop; a checkpoint is written after step")]
    resumed = [int(line.split()[-1]) for line in lines if "training goes on after step" in line]
    return stopped, resumed


def one_run(store: Path, starts: int) -> None:
    """W&B's offline files: every stage is a run; the training one of as many files as it had starts, and a last one, whole."""
    [key] = [path.name for path in store.glob("train/*")]
    files = sorted(store.parent.glob("wandb/offline-run-*/*.wandb"))
    assert len([file for file in files if file.stem == f"run-{key}"]) == starts + 1
    told = []
    for file in files:
        with suppress(StopIteration):  # killed before W&B had written anything
            told.append(Told.of(file))
    assert {one.run.run_id for one in told} == {path.parent.name for path in store.glob("[a-z]*/*/manifest.json")}, (
        "every stage is a run, those too that were there before")
    told = [one for one in told if one.run.job_type == "train"]
    assert {one.run.run_id for one in told} == {key}, "one run, whatever the number of starts"
    points = [json.loads(line) for line in (store / "train" / key / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == list(range(1, STEPS + 1))
    assert [{name: point[name] for name in points[0]} for point in told[-1].points] == points


@pytest.mark.parametrize("name", ["killed", "grace", "kill -9", "scancel"])
def test_a_training_that_is_stopped_goes_on_from_its_checkpoint(name: str, cases: dict[str, Case], calm: Path):
    """Preempted, with a grace of a minute: the job ends by itself long before. Preempted without one, or cancelled: SLURM kills
    after KillWait, which here may be too soon for a checkpoint; then it is the last one on disk. Killed: tried again within
    its job. Cancelled: submitted again by the same command."""
    stopped, resumed = end(cases[name], calm)
    assert len(resumed) == 1
    assert 2 <= resumed[0] < STEPS, "of its third step the checkpoint may not have been written"
    assert stopped == resumed or (name != "grace" and not stopped)
    if name in MIRRORED:
        one_run(cases[name].desk.store, 1 + len(resumed))


def test_a_preempted_sampling_draws_nothing_twice(cases: dict[str, Case]):
    store, before = cases["sampling"].desk.store, cases["sampling"].drawn
    assert 16 <= len(before) < SAMPLES
    cases["sampling"].desk.until(lambda: list(store.glob("sample/*/manifest.json")), 240, "nothing was sampled")
    [folder] = store.glob("sample/*")
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len({(row["id"], row["index"]) for row in rows}) == len(rows) == SAMPLES
    assert before <= {(row["id"], row["index"]) for row in rows}
    assert json.loads((folder / "samples.json").read_text())["reused_after_interruption"] == len(before)


def test_a_training_whose_time_is_up_goes_on(cases: dict[str, Case], calm: Path):
    stopped, resumed = end(cases["time"], calm)
    assert len(stopped) == 1
    assert stopped == resumed, "no step is done twice"
    one_run(cases["time"].desk.store, 1 + len(resumed))


def test_a_job_whose_time_is_up_once_too_often_has_failed(cases: dict[str, Case]):
    case = cases["once too often"]
    case.desk.until(lambda: not case.job()[0] and not case.job("report")[0], 60, "it goes on")
    listed = case.desk.jobs("list").stdout
    assert "its time was up more often than compute.slurm.requeues allows" in listed
    assert "needed by 1 of 1 cells" in listed
