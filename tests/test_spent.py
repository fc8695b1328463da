"""What a stage took is what all its attempts took: time, GPU time with each attempt's own GPUs, peaks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from upft import ledger, pipeline
from upft.choices import Accelerator
from upft.console import Console
from upft.ledger import SPENT, TAKEN, Ledger, Meter
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import Plan, plan
from upft.sampler import EnginePool
from upft.shards import Share
from upft.stages import Host, train
from upft.store import RESUME, Store
from upft.submission import closure

ROOT = Path(__file__).parent.parent
CPU = ComputeConfig(accelerator=Accelerator.cpu)
BEFORE = {"seconds": 5000.0, "device_seconds": 40000.0, "peak_memory_bytes": 2**50, "peak_device_bytes": 2**40}
"""What an attempt on eight GPUs has left."""

KEEPING = ("sample", "evaluate", "train", "reference", "verify", "branch", "kl", "judge")
"""Stages that keep what they can go on from."""
SMALL = ["method=vstar", "method.n=6", "sample.n=6", "sample.trace_ratio=1.0", "method.verifier.n=3",
         "method.verifier.temperature=1.0", "data.arithmetic.questions=60", "eval.tasks.arithmetic.arithmetic.questions=8",
         "eval.protocol=paper", "train.batch_size=20", "sample.engine=transformers", "eval.engine=transformers", "judge=model",
         f"judge.path={ROOT / 'upft' / 'toy' / 'weights'}", "judge.dtype=float32", "judge.engine=transformers",
         "judge.max_tokens=8", "judge.prompt='{question} ({gold}) {solution}'", "analysis=all", "analysis.task=arithmetic",
         "analysis.temperature=1.0", "analysis.errors.questions=6", "analysis.errors.n=8", "analysis.errors.at=[2]",
         "analysis.errors.continuations=2", "analysis.kl.questions=4", "compute.accelerator=cpu", "compute.threads=1"]


class Clock:
    """Stands where the meter looks; goes on when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: self.now, monotonic=time.monotonic))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def hosted() -> Callable[..., Host]:
    """hosted(**fields) -> a CPU to run a stage on."""
    return lambda **fields: Host(CPU, TrackerConfig(), Console(quiet=True), EnginePool(CPU), **fields)


def attempt(clock: Clock, kept: Path, seconds: float, devices: int, fails: bool) -> Ledger:
    """What the ledger would say after one more attempt."""
    with suppress(KeyboardInterrupt), Meter(kept, devices) as meter:
        clock.now += seconds
        if fails:
            raise KeyboardInterrupt
    meter.fill(found := Ledger(sampled_tokens=7))
    return found


def test_each_attempt_counts_once_and_with_its_own_gpus(clock: Clock, tmp_path: Path) -> None:
    attempt(clock, tmp_path, 100.0, 8, fails=True)
    clock.now += 3600  # nobody at work
    attempt(clock, tmp_path, 20.0, 4, fails=True)
    last = attempt(clock, tmp_path, 3.0, 1, fails=False)
    assert (last.seconds, last.device_seconds, last.sampled_tokens) == (123.0, 883.0, 7)
    assert attempt(clock, tmp_path / "other", 3.0, 1, fails=False).seconds == 3.0


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"seconds": null}', '{"seconds": 1, "flops": 3}'])
def test_a_file_that_says_nothing_is_nothing(clock: Clock, tmp_path: Path, text: str) -> None:
    (tmp_path / SPENT).write_text(text)
    found = attempt(clock, tmp_path, 3.0, 1, fails=False)
    assert (found.seconds, found.flops) == (4.0 if "flops" in text else 3.0, 0.0)


def test_a_full_disk_does_not_end_the_stage(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("where the folder would be")
    assert attempt(clock, tmp_path / "kept", 3.0, 1, fails=False).seconds == 3.0


def test_a_kill_leaves_what_was_written_before(tmp_path: Path) -> None:
    code = ("import sys, time; from pathlib import Path; from upft import ledger; ledger.SPENT_S = 0.05\n"
            "with ledger.Meter(Path(sys.argv[1]), 8): time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 120
    while not (tmp_path / SPENT).is_file() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    spent = json.loads((tmp_path / SPENT).read_text())
    assert tuple(spent) == TAKEN
    assert spent["seconds"] > 0
    assert spent["device_seconds"] == pytest.approx(8 * spent["seconds"])
    assert spent["peak_memory_bytes"] > 2**20


def test_shards_are_added_once_however_often_the_whole_is_begun(clock: Clock, tmp_path: Path, hosted: Callable) -> None:
    """A shard that was interrupted itself, and a stage that is interrupted after it has taken it up."""
    shard, out = tmp_path / "shard", tmp_path / "out"
    for seconds in (60.0, 40.0):
        host = hosted(share=Share(1, 2), shards=[tmp_path / "of another"])
        with host.meter(shard) as meter:
            clock.now += seconds
    host.settle(Ledger(), meter, shard)
    assert Ledger.read(shard).seconds == 100.0
    for seconds, total in ((5.0, 105.0), (1.0, 106.0)):
        host = hosted(shards=[shard])
        with host.meter(out) as meter:
            clock.now += seconds
        host.settle(Ledger(), meter, out)
        assert Ledger.read(out).seconds == total


def test_waiting_for_another_process_is_not_the_stages_time(clock: Clock, tmp_path: Path, hosted: Callable) -> None:
    store = Store(tmp_path)
    store.prepare()
    other = FileLock(tmp_path / ".locks" / "sample-k.lock")
    other.acquire()

    def waited(who: str) -> None:
        clock.now += 1000
        other.release()

    def make(out: Path) -> None:
        host = hosted()
        with host.meter(out) as meter:
            clock.now += 2
        host.settle(Ledger(), meter, out)

    artifact, built = store.build("sample", "k", {}, make, on_wait=waited)
    assert built
    assert artifact.json("ledger.json")["seconds"] == 2.0
    assert not (artifact.path / RESUME).exists()


@pytest.mark.parametrize("kept", [True, False], ids=["an attempt that kept its time", "one of an older version"])
def test_a_training_is_all_its_attempts(clock: Clock, tmp_path: Path, hosted: Callable, monkeypatch: pytest.MonkeyPatch,
                                        kept: bool) -> None:
    """1000 s of steps on eight GPUs, the last ten of them after a restart on four."""
    if kept:
        (tmp_path / RESUME).mkdir()
        (tmp_path / RESUME / SPENT).write_text(json.dumps(BEFORE | {"seconds": 1001.0, "device_seconds": 8008.0}))

    def work(*_: Any) -> None:
        clock.now += 10
        Ledger(supervised_tokens=1).write(tmp_path)
        (tmp_path / "train.json").write_text(json.dumps({"seconds": 1000.0, "peak_device_bytes": 3}))

    monkeypatch.setattr(train, "work", work)
    monkeypatch.setattr(Host, "gpus", property(lambda self: 4))
    train.run(None, {"rows": tmp_path}, tmp_path, hosted())  # type: ignore[arg-type]  # nothing is trained
    found = Ledger.read(tmp_path)
    if kept:
        assert (found.seconds, found.device_seconds) == (1011.0, 8048.0)
        assert (found.peak_memory_bytes, found.peak_device_bytes) == (2**50, 2**40)
    else:
        assert (found.seconds, found.device_seconds, found.peak_device_bytes) == (1000.0, 4000.0, 3)


@pytest.mark.slow
def test_every_stage_that_goes_on_adds_what_was_spent_before(parse: Callable, tmp_path: Path) -> None:
    """One of each such stage, and what it needs, after an attempt that has left its time and no more."""
    config = parse(*SMALL, f"run.store={tmp_path}")
    cell, store = plan(config), Store(tmp_path)
    stages = {stage.key: stage for name in KEEPING for stage in closure(cell.named(name)[0]).stages}.values()
    for stage in stages:
        kept = store.unfinished(stage.name, stage.key) / RESUME
        kept.mkdir(parents=True)
        (kept / SPENT).write_text(json.dumps(BEFORE))
    artifacts = pipeline.walk(Plan(tuple(stages)), store, config.compute, config.tracker, Console(quiet=True))
    for stage in stages:
        found, goes_on = Ledger.read(artifacts[stage.key].path), stage.name in KEEPING
        assert (found.seconds > 5000, found.device_seconds, found.peak_memory_bytes == 2**50, found.peak_device_bytes) == (
            goes_on, 40000.0 * goes_on, goes_on, 2**40 * goes_on), stage.label
