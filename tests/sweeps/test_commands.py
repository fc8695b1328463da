"""What a sweep's commands say without SLURM: its plan, and clear refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from upft.console import Console
from upft.errors import StoreError
from upft.launcher import launch
from upft.plan import plan
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


def test_the_first_node_of_a_list():
    from upft.stage import first_node

    assert first_node("gpu[03-05,9],login1") == "gpu03"
    assert first_node("n1,n2") == "n1"
    assert first_node("n[1-2]") == "n1"
    assert first_node("rack2-node7") == "rack2-node7"
    assert first_node("a[1,3]-b") == "a1-b"
