"""Sweeps without SLURM: stages side by side, the serial run's results, one stage's failure no other cell's."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from upft import launcher, local, notice, shelf, slurm
from upft.choices import Style
from upft.console import Console
from upft.errors import ConfigError, SweepError
from upft.hashing import Hasher
from upft.plan import plan
from upft.records import Record, Records, State
from upft.slurm import Queued
from upft.store import Store
from upft.submission import Cell

ROOT = Path(__file__).parent.parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=48",
         "eval.tasks.arithmetic.arithmetic.questions=16", "train.batch_size=16", "compute.threads=1", "compute.accelerator=cpu",
         "compute.retries=0"]
CLOCKS = {"provenance.json", "ledger.json", "manifest.json", "metrics.jsonl", "results.json", "report.html", "README.md",
          "train.json", "report.md", "cost.csv", "cost.tex"}


def run(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", *more, *SMALL, f"run.store={store}"],
                          capture_output=True, text=True, cwd=ROOT, timeout=600)


def contents(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in store.glob("[a-z]*/*/**/*")
            if f.is_file() and f.name not in CLOCKS and not {"figures", "sweeps"} & set(f.parts) and ".partial" not in str(f)}


@pytest.mark.slow
def test_side_by_side_is_the_serial_run(tmp_path):
    cells = ["prefix.len=4,8", "sample.max_tokens=8"]
    assert run(tmp_path / "serial", *cells).returncode == 0
    out = run(tmp_path / "both", *cells, "compute.parallel=2", "compute.shards.sample=3", "compute.shards.evaluate=2")
    assert out.returncode == 0, out.stderr
    assert "2 cells, 11 distinct stages, 0 in the store, 0 under way, 11 to be made by 20 jobs" in out.stdout
    assert "were drawn by 3 shards" in "".join(log.read_text() for log in (tmp_path / "both").glob(".jobs/submitted/*/*.log"))
    assert contents(tmp_path / "both") == contents(tmp_path / "serial")
    times = [json.loads(p.read_text()) for p in (tmp_path / "both").glob("train/*/provenance.json")]
    assert max(t["started"] for t in times) < min(t["finished"] for t in times), "the trainings were not side by side"
    pages = [sorted(p.relative_to(tmp_path / side) for p in (tmp_path / side).glob("sweeps/*/report.html"))
             for side in ("serial", "both")]
    assert pages[0] == pages[1]
    assert len(pages[0]) == 1, "a sweep ends with the report on its cells, however it ran"
    for place, name in (("report/*", "cell"), ("sweeps/*", "results")):
        schema = json.loads((ROOT / "upft" / "report" / f"{name}.schema.json").read_text())
        for path in (tmp_path / "both").glob(f"{place}/results.json"):
            jsonschema.validate(json.loads(path.read_text()), schema)
    [page] = (tmp_path / "serial").glob("sweeps/*/report.html")
    for chosen in (page.parent.name, page.parent.name[:6], str(page.parent)):
        found = shelf.choose([chosen], tmp_path / "serial")
        assert len(found.reports) == 2, "a serial sweep's id selects its cells, as any other's"
        assert found.missing == []
        assert found.command is not None
        assert found.command.startswith(f"python {ROOT / 'run.py'} -m prefix.len=4,8 ")
    listed = subprocess.run([sys.executable, "-m", "upft.jobs", "--store", str(tmp_path / "serial")], capture_output=True,
                            text=True, cwd=ROOT, timeout=60)
    assert page.parent.name in listed.stdout
    assert "2/2" in listed.stdout
    again = run(tmp_path / "both", *cells, "compute.parallel=2")
    assert ", 11 in the store, 0 under way, 0 to be made" in again.stdout
    one = subprocess.run([sys.executable, str(ROOT / "run.py"), "prefix.len=4", *SMALL, "sample.max_tokens=8", "eval.limit=8",
                          f"run.store={tmp_path / 'serial'}"], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert one.returncode == 0, one.stderr
    assert "hit  train" in one.stdout
    for side, count in (("serial", 3), ("both", 2)):
        repeatable(tmp_path / side, count)


def repeatable(store: Path, count: int) -> None:
    """The command on each cell's page makes that cell and no other: not its training's, nor a job's, nor all of a sweep."""
    pages = sorted(store.glob("report/*/report.md"))
    assert len(pages) == count
    for page in pages:
        [line] = [line for line in page.read_text().splitlines() if line.startswith("    python ")]
        words = shlex.split(line)
        assert words[:2] == ["python", "run.py"]
        shown = subprocess.run([sys.executable, str(ROOT / "run.py"), *words[2:], "plan=true"], capture_output=True, text=True,
                               cwd=ROOT, timeout=100)
        assert shown.returncode == 0, shown.stderr
        assert page.parent.name in shown.stdout, line
        assert json.loads((page.parent / "provenance.json").read_text())["command"] == line.strip()


@pytest.mark.slow
def test_what_fails_is_told_and_leaves_the_others(tmp_path):
    import shutil

    good, bad = ROOT / "upft" / "toy" / "weights", tmp_path / "bad"
    shutil.copytree(good, bad)
    (bad / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:5000])
    store = tmp_path / "store"
    out = run(store, f"model.path={good},{bad}", "compute.parallel=2")
    assert out.returncode == 1
    assert f"1 of 2 cells have no report: model.path={bad}" in out.stderr
    assert "Traceback" not in out.stderr
    assert str(bad) in out.stdout
    assert "again: " in out.stdout
    assert len(list(store.glob("report/*"))) == 1
    [told] = [json.loads(page.read_text()) for page in store.glob("sweeps/*/results.json")]
    assert told["missing"] == [f"model.path={bad}"]
    assert len(told["cells"]) == 1
    [page] = store.glob("sweeps/*/report.html")
    assert shelf.choose([page.parent.name], store).missing == told["missing"]
    listed = subprocess.run([sys.executable, "-m", "upft.jobs", "list", "--store", str(store)], capture_output=True, text=True,
                            cwd=ROOT, timeout=60)
    assert listed.returncode == 0, listed.stderr
    assert "1/2" in listed.stdout
    [line] = [line for line in out.stdout.splitlines() if "again: " in line and "upft.stage" in line][:1]
    repeated = subprocess.run(line.partition("again: ")[2], shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert repeated.returncode in (1, 2)
    assert str(bad) in repeated.stderr
    assert "Traceback" not in repeated.stderr


def test_each_place_has_gpus_of_its_own(parse, monkeypatch):
    compute = parse("compute.devices=2").compute
    assert local.shares(2, compute, ["0", "1", "2", "3"]) == [{local.VISIBLE: "0,1"}, {local.VISIBLE: "2,3"}]
    assert local.shares(3, compute, []) == [{}, {}, {}]
    with pytest.raises(ConfigError, match=r"compute\.parallel=2 with compute\.devices=2: 3 GPUs"):
        local.shares(2, compute, ["0", "1", "5"])
    monkeypatch.setenv(local.VISIBLE, "3, 5")
    assert local.devices(compute) == ["3", "5"]
    monkeypatch.setenv(local.VISIBLE, "")
    assert local.devices(compute) == []
    assert local.devices(parse("compute.accelerator=cpu").compute) == []


def until(holds: Callable[[], Any], seconds: float = 240) -> Any:
    """What it says, when it says something."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def stages_of(process: int) -> set[int]:
    """Stages that a launcher has started, all of `compute.parallel=2`."""
    own = (int(one) for one in Path(f"/proc/{process}/task").glob("*/children") for one in one.read_text().split())
    found = {child for child in own if b"upft.stage" in Path(f"/proc/{child}/cmdline").read_bytes()}
    return found if len(found) == 2 else set()


@contextmanager
def begun(store: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep of two cells by two jobs at a time, in a group of its own."""
    process = subprocess.Popen([sys.executable, str(ROOT / "run.py"), "-m", *more, "compute.parallel=2", *SMALL,
                                f"run.store={store}"], cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(store: Path) -> list[dict[str, Any]]:
    """What the jobs have noted last."""
    return [json.loads(file.read_text()) for file in store.glob(".jobs/attempts/*.json")]


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_jobs_end_with_it(by, tmp_path):
    """Told, it tells them and waits; killed, it leaves them to see for themselves. None is noted as failed."""
    with begun(tmp_path, "seed=0,1", "compute.retries=2") as sweep:
        jobs = until(lambda: stages_of(sweep.pid))
        os.kill(sweep.pid, by)
        status = sweep.wait(100)
        assert status == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[by]
        if by is signal.SIGKILL:
            until(lambda: not any(alive(job) for job in jobs), 60)
            assert {one["state"] for one in said(tmp_path)} <= {"running", "stopped"}
        else:
            assert not any(alive(job) for job in jobs)
            assert {one["state"] for one in said(tmp_path)} == {"stopped"}


@pytest.mark.slow
def test_a_training_that_is_told_writes_a_checkpoint(tmp_path):
    """As at Ctrl+C, which a terminal tells all processes; what was finished stays."""
    with begun(tmp_path, "train.seed=0,1", "data.arithmetic.questions=16", "train.epochs=1000",
               "compute.checkpoint_every_s=3600", "compute.retries=2") as sweep:
        until(lambda: len([one for one in tmp_path.glob("train/*.partial/metrics.jsonl") if one.stat().st_size]) == 2)
        os.killpg(sweep.pid, signal.SIGINT)
        assert sweep.wait(100) == 130
    told = [one for one in said(tmp_path) if one["state"] == "stopped"]
    assert [one["reason"] for one in told] == [f"exit status {notice.STOPPED}"] * 2
    assert len(list(tmp_path.glob("train/*.partial/**/step-*/"))) == 2
    assert list(tmp_path.glob("build/*/rows.arrow"))


@pytest.mark.parametrize("ends", [State.done, State.failed])
def test_what_slurm_is_making_is_waited_for(ends, parse, tmp_path, monkeypatch):
    """And what needs it starts when it is there; when that job comes to nothing, only that is left out and not held to have
    failed."""
    configs = [parse(*SMALL[:2], f"train.seed={i}", f"run.store={tmp_path}", "compute.parallel=2") for i in (0, 1)]
    cells = [Cell(f"train.seed={i}", plan(config, Hasher())) for i, config in enumerate(configs)]
    store, sampling = Store(tmp_path), cells[0].plan.named("sample")[0]
    store.prepare()
    records, looks, made = Records(store), [0], []
    records.describe([sampling])
    records.keep(Record(sampling.key, "777", "upft-sample-x", "/dev/null"))

    def put(job: Any) -> None:
        store.build(job.name, job.key, job.identity, lambda out: (out / "x").write_text("x"))

    def queue() -> dict[str, Queued]:
        looks[0] += 1
        if looks[0] < 8:
            return {"777": Queued("777", "upft-sample-x", "PENDING" if looks[0] < 4 else "RUNNING", "")}
        if ends is State.done and not store.has("sample", sampling.key):
            put(sampling)
        return {}

    def work(crew: Any, job: Any) -> bool:
        missing = [one.label for one in job.inputs.values() if not store.has(one.name, one.key)]
        assert not missing, job.label
        put(job)
        made.append(job.name)
        return True

    monkeypatch.setattr(slurm, "here", lambda: True)
    monkeypatch.setattr(slurm, "queue", queue)
    monkeypatch.setattr(local, "POLL_S", 0.01)
    monkeypatch.setattr(local._Crew, "work", work)
    monkeypatch.setattr(launcher, "page", lambda *_: None)
    if ends is State.done:
        launcher.launch(configs, cells, Console(Style.plain))
        assert sorted(made) == ["build", "diagnose", *["evaluate"] * 3, *["report"] * 2, *["train"] * 2]
    else:
        with pytest.raises(SweepError, match="2 of 2 cells have no report"):
            launcher.launch(configs, cells, Console(Style.plain))
        assert made == ["evaluate"]
        assert records.standings([cells[0].plan.named("build")[0]])[cells[0].plan.named("build")[0].key].state is State.missing
    assert looks[0] >= 8
