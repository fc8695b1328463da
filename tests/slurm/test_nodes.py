"""Training over tasks and nodes of a real SLURM: the weights of the one-task run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from login import ROOT, Desk
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

CELL = ["data.arithmetic.questions=48", "prefix.len=8"]


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


def test_two_nodes_and_two_tasks_train_as_one(desk: Desk, tmp_path):
    """Each tensor within 1e-4 of how far it moved, as ranks on one machine."""
    model = in_fp32(tmp_path / "model")
    base, trained = weights(model), {}
    for name, more in {"one": [], "nodes": ["compute.nodes=2"], "tasks": ["compute.devices=2"]}.items():
        out = desk.run(*CELL, f"model.path={model}", *more)
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
            assert value.dtype == torch.float32
            moved = (value - base[tensor]).norm()
            assert moved > 0
            assert (trained[name][tensor] - value).norm() < 1e-4 * moved, (name, tensor)
