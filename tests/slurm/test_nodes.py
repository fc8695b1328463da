"""Training over tasks and nodes of a real SLURM: the weights of the one-task run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from login import ROOT, Desk
from safetensors.torch import load_file, save_file
from test_sweep import stage_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

CELL = ["prefix.len=8", "train.epochs=4"]
STEPS = 16


def in_fp32(folder: Path) -> Path:
    """The embedded model with fp32 weights: what is trained of it is saved in fp32 too, and no rounding hides anything."""
    shutil.copytree(ROOT / "upft" / "toy" / "weights", folder)
    save_file({name: value.float() for name, value in load_file(folder / "model.safetensors").items()},
              folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def weights(folder: Path) -> dict:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def told_to_stop(desk: Desk) -> Path:
    """Send SLURM's warning to the training of two nodes in the middle of its steps; its log."""
    desk.until(lambda: any(path.read_text().count("\n") >= 2 for path in desk.store.glob("train/*.partial/metrics.jsonl")), 120,
               "the training did not begin")
    key = next(desk.store.glob("train/*.partial")).name.removesuffix(".partial")
    ranks = [int(p.name) for p in Path("/proc").glob("[0-9]*") if stage_of(p, str(desk.store), key)]
    assert len(ranks) == 2
    for rank in ranks:  # no machine is too fast
        os.kill(rank, signal.SIGSTOP)
    record = json.loads((desk.store / ".jobs" / "records" / f"{key}.json").read_text())
    desk.cluster.ask("scancel", "--signal=USR2", record["job"])
    desk.until(lambda: "Caught signal SIGUSR2" in Path(record["log"]).read_text(), 30, "the signal did not arrive")
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    return Path(record["log"])


def train(desk: Desk, *more: str, meanwhile: Callable[[Desk], Path | None] = lambda desk: None) -> tuple[Path, Path | None]:
    """The artifact of one training; what comes after it is taken back."""
    out = desk.run(*CELL, *more)
    assert out.returncode == 0, out.stderr
    said = meanwhile(desk)
    desk.until(lambda: list(desk.store.glob("train/*/manifest.json")), 240, "nothing was trained")
    assert desk.jobs("cancel").returncode == 0
    return next(desk.store.glob("train/*/manifest.json")).parent, said


def test_two_nodes_and_two_tasks_train_as_one(desk: Desk, tmp_path: Path):
    """Each tensor within 1e-4 of how far it moved, as ranks on one machine. The two nodes are told to stop in the middle, and
    go on together from the checkpoint that they write together."""
    model = in_fp32(tmp_path / "model")
    made = {"one": train(desk, f"model.path={model}")}
    desk.empty(60)
    with ThreadPoolExecutor(2) as pool:
        begun = {}
        for name, more in {"nodes": "compute.nodes=2", "tasks": "compute.devices=2"}.items():
            own = Desk(desk.cluster, tmp_path / name)
            shutil.copytree(desk.store, own.store, ignore=shutil.ignore_patterns(".jobs", ".locks", "train", "*.partial"))
            begun[name] = pool.submit(train, own, f"model.path={model}", more,
                                      meanwhile=told_to_stop if name == "nodes" else lambda desk: None)
        made |= {name: one.result() for name, one in begun.items()}
    for name, (artifact, _) in made.items():
        assert json.loads((artifact / "train.json").read_text())["ranks"] == (1 if name == "one" else 2)
    base, trained = weights(model), {name: weights(artifact / "model") for name, (artifact, _) in made.items()}
    said = made["nodes"][1]
    assert said is not None
    stopped = re.search(rf"told to stop; a checkpoint is written after step (\d+) of {STEPS}\n", said.read_text())
    assert stopped is not None
    assert f"training goes on after step {stopped[1]}\n" in said.read_text()
    for name in ("nodes", "tasks"):
        for tensor, value in trained["one"].items():
            assert value.dtype == torch.float32
            moved = (value - base[tensor]).norm()
            assert moved > 0
            assert (trained[name][tensor] - value).norm() < 1e-4 * moved, (name, tensor)


def test_a_batch_script_that_asked_for_tasks_is_none_of_them(desk: Desk, tmp_path: Path):
    """It would wait for the others, which only srun starts."""
    says = f"{sys.executable} -c 'from upft import slurm; print(slurm.task())'"
    script, out = tmp_path / "script", tmp_path / "out"
    script.write_text(f"#!/bin/sh\nenv | grep NTASKS\n{says}\nsrun {says}\necho over\n")
    done = subprocess.run(["sbatch", "--ntasks=2", "--mem=200", f"--output={out}", str(script)], env=desk.environment,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    desk.until(lambda: out.is_file() and "over" in out.read_text(), 100, "the script did not end")
    wanted, alone, *ranks, _ = out.read_text().splitlines()
    assert (wanted, alone, sorted(ranks)) == ("SLURM_NTASKS=2", "None", ["(0, 2)", "(1, 2)"])
