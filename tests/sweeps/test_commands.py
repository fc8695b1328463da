"""What a sweep's commands say without SLURM: its plan, and clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from upft import jobs, slurm
from upft.choices import Style
from upft.console import Console
from upft.errors import SlurmError, StoreError
from upft.hashing import Hasher
from upft.launcher import launch
from upft.plan import Plan, plan
from upft.records import Record, Records, Sweep
from upft.slurm import Queued
from upft.store import Store
from upft.submission import Cell

ROOT = Path(__file__).parent.parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=24"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": str(Path(sys.executable).parent)}  # no sbatch, whatever this machine has
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


def test_the_plan_of_a_sweep_counts_distinct_stages_and_tokens(tmp_path):
    out = run("run.py", "-m", "prefix.len=4,8", "sample.max_tokens=8", "prefix.ratio=0", "sample.trace_ratio=0", "plan=true",
              f"run.store={tmp_path}/store", *SMALL)
    assert out.returncode == 0, out.stderr
    rows = {line.split()[0]: line.split()[1:] for line in out.stdout.splitlines()}
    assert rows["sample"][:3] == ["1", "0", "1"]
    assert rows["sample"][4] == str(24 * 8)
    assert rows["train"][:3] == ["2", "0", "2"]
    assert rows["train"][4] == str(24 * (4 + 1) + 24 * (8 + 1)), "prefix and EOS of each row, one epoch"
    assert rows["together"][:3] == ["11", "0", "11"]
    assert not (tmp_path / "store" / ".jobs").exists()


def test_a_machine_without_slurm_is_told(tmp_path):
    for more in (["compute=slurm"], ["hydra/launcher=slurm"]):
        out = run("run.py", "-m", "prefix.len=4,8", *more, f"run.store={tmp_path}/store", *SMALL)
        assert out.returncode == 1
        assert "there is no sbatch on this machine" in out.stderr
        assert "compute.parallel=N" in out.stderr
        assert "Traceback" not in out.stderr


def test_machine_settings_are_one_for_all_cells(tmp_path):
    out = run("run.py", "-m", "compute.threads=1,2", "compute.parallel=2", f"run.store={tmp_path}/store", *SMALL)
    assert out.returncode == 2
    assert "cell compute.threads=2: compute is not that of the first cell" in out.stderr


def test_a_store_that_cannot_be_written_gets_one_message(tmp_path, parse):
    """Before Hydra or anybody else writes there: from -m, from a cell on SLURM, from a serial sweep that W&B is told of."""
    (tmp_path / "file").write_text("")
    store = f"run.store={tmp_path}/file/store"
    for more in (["-m", "seed=0,1"], ["compute=slurm", "tracker=wandb"]):
        out = run("run.py", *more, store, *SMALL)
        assert out.returncode == 1, out.stderr
        assert f"error: {store} cannot be written: Not a directory" in out.stderr
        assert "run.store=DIR" in out.stderr
        assert "Traceback" not in out.stderr
    configs = [parse(*SMALL, store, "tracker=wandb", f"seed={seed}") for seed in (0, 1)]
    with pytest.raises(StoreError, match="cannot be written"):
        launch(configs, [Cell(str(config.seed), plan(config)) for config in configs], Console(quiet=True))


def test_jobs_do_not_export(tmp_path):
    out = run("run.py", "compute=slurm", f"run.export={tmp_path}/model", f"run.store={tmp_path}/store", *SMALL)
    assert out.returncode == 2
    assert "jobs do not export" in out.stderr


def test_jobs_says_what_it_does_not_know(tmp_path):
    listed = run("-m", "upft.jobs", "--store", str(tmp_path))
    assert listed.returncode == 0
    assert "no sweep was submitted" in listed.stdout
    for arguments in (["logs", "ab12"], ["cancel"], ["retry", "ab"], ["list", "ab"]):
        out = run("-m", "upft.jobs", *arguments, "--store", str(tmp_path))
        assert out.returncode == 2, arguments
        assert "remedy:" in out.stderr
        assert "Traceback" not in out.stderr


@pytest.fixture
def shared(parse, tmp_path, monkeypatch) -> tuple[Records, list[Plan], dict[str, Queued]]:
    """Records, the plans of three cells, the queue: sweep aaaa of the first two, then bbbb of all, each of the stages in a job
    named by its key."""
    hasher, records = Hasher(), Records(Store(tmp_path))
    plans = [plan(parse(*SMALL, f"train.seed={i}"), hasher) for i in range(3)]
    queue: dict[str, Queued] = {}
    for key, stage in {stage.key: stage for one in plans for stage in one.stages}.items():
        records.describe([stage])
        records.keep(Record(key, key, "n", "/dev/null"))
        queue[key] = Queued(key, "n", "PENDING", "")
    for day, (name, cells) in enumerate({"aaaa": plans[:2], "bbbb": plans}.items()):
        records.keep_sweep(Sweep(name, ["run.py"], ".", f"2026-01-0{day + 1}", "", {str(i): one.report.key
                                                                                     for i, one in enumerate(cells)}))
    monkeypatch.setattr(slurm, "here", lambda: True)
    monkeypatch.setattr(slurm, "queue", lambda: dict(queue))
    monkeypatch.setattr(slurm, "cancel", lambda ids: [queue.pop(one) for one in ids])
    return records, plans, queue


def cancel(records: Records, which: str) -> None:
    [sweep] = [one for one in records.sweeps() if one.id == which]
    jobs.cancel(records, sweep, Console(Style.plain))


def test_a_cancelled_sweep_leaves_what_another_one_is_after(shared, capsys):
    records, plans, queue = shared
    before, of_a = len(queue), {stage.key for one in plans[:2] for stage in one.stages}
    cancel(records, "bbbb")
    assert set(queue) == of_a, "the third cell's own"
    told = f"{before - len(of_a)} jobs cancelled; {len(of_a)} stay, for they are also those of aaaa: "
    assert told in capsys.readouterr().out
    cancel(records, "aaaa")
    assert queue == {}
    assert f"sweep aaaa: {len(of_a)} jobs cancelled\n" in capsys.readouterr().out


def test_two_sweeps_are_cancelled_in_whatever_order(shared):
    records, _, queue = shared
    before = set(queue)
    cancel(records, "aaaa")
    assert set(queue) == before, "bbbb needs all of it"
    cancel(records, "bbbb")
    assert queue == {}


def test_a_sweep_that_is_submitted_again_needs_its_stages_again(shared):
    records, plans, queue = shared
    cancel(records, "aaaa")
    [again] = [one for one in records.sweeps() if one.id == "aaaa"]
    records.keep_sweep(Sweep("aaaa", again.command, ".", "2026-01-03", "", again.cells))
    cancel(records, "bbbb")
    assert set(queue) == {stage.key for one in plans[:2] for stage in one.stages}


def test_a_cell_that_has_its_report_needs_nothing(shared):
    records, plans, queue = shared
    report = plans[0].report
    queue.pop(report.key)
    records.store.prepare()
    records.store.build(report.name, report.key, report.identity, lambda out: (out / "report.html").write_text(""))
    cancel(records, "bbbb")
    assert set(queue) == {stage.key for stage in plans[1].stages}


@pytest.mark.parametrize(("scontrol", "what"), [
    (None, "there is no scontrol on this machine"), ("exec sleep 60", "scontrol has not answered for 0.2 s"),
    ("echo error: denied", "scontrol refused the jobs' dependencies: error: denied"),
])
def test_a_scontrol_that_does_not_do_it_is_told(scontrol, what, tmp_path, monkeypatch):
    """And what to do about it, where jobs are told what they wait for."""
    if scontrol is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if scontrol is not None else str(tmp_path))
    monkeypatch.setattr(slurm, "MANY_S", 0.2 if scontrol == "exec sleep 60" else 20)
    with pytest.raises(SlurmError) as error:
        slurm.depend({"2": ["1"]}, {}, ["2"])
    assert what in error.value.what
    assert error.value.remedy


def test_the_first_node_of_a_list():
    from upft.stage import first_node

    assert first_node("gpu[03-05,9],login1") == "gpu03"
    assert first_node("n1,n2") == "n1"
    assert first_node("n[1-2]") == "n1"
    assert first_node("rack2-node7") == "rack2-node7"
    assert first_node("a[1,3]-b") == "a1-b"
