"""Training over tasks and nodes of a real SLURM: the weights of the one-task run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, Desk
from safetensors.numpy import load_file

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

CELL = ["data.arithmetic.questions=48", "prefix.len=8"]


def weights(folder: Path) -> dict:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_two_nodes_and_two_tasks_train_as_one(desk: Desk):
    """Apart by no more than a ten-thousandth of how far training moves a tensor (sums in another order)."""
    base, trained = weights(ROOT / "upft" / "toy" / "weights"), {}
    for name, more in {"one": [], "nodes": ["compute.nodes=2"], "tasks": ["compute.devices=2"]}.items():
        out = desk.run(*CELL, *more)
        assert out.returncode == 0, out.stderr
        desk.empty()
        assert desk.counts()["report"] == 1
        [train] = desk.store.glob("train/*[0-9a-f]")
        trained[name] = weights(train / "model")
        ranks = (train / "train.json").read_text()
        assert f'"ranks": {1 if name == "one" else 2}' in ranks
        for folder in (train, *desk.store.glob("report/*"), *[p.parent for p in desk.store.glob("evaluate/*/spec.json")
                                                              if train.name in p.read_text()]):
            shutil.rmtree(folder)
    for name in ("nodes", "tasks"):
        for tensor, value in trained["one"].items():
            moved = abs(value - base[tensor]).max()
            assert abs(trained[name][tensor] - value).max() <= 1e-4 * moved, (name, tensor)
