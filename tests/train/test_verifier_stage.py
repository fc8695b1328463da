"""A verifier from pairs on disk: reference, training and card as the pipeline makes them; killed, on two ranks, as adapters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from upft import models, scoring
from upft.choices import Precision, Reduction
from upft.console import Console
from upft.hashing import Hasher
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.prefix import Row, write_rows
from upft.sampler import EnginePool
from upft.specs import LoraSpec, ModelSpec, ReferenceSpec, TrainSpec
from upft.stages import Host, reference, train
from upft.store import RESUME

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def made(model_folder: Callable, make_rows: Callable, tmp_path: Path) -> tuple[ModelSpec, dict[str, Path]]:
    """(base model, inputs of a verifier's training): eight pairs and their log-probabilities under the base model."""
    source, rows, refs = ModelSpec(model_ref(model_folder(), Hasher()), False), tmp_path / "pairs", tmp_path / "reference"
    rows.mkdir()
    refs.mkdir()
    drawn: list[Row] = make_rows(16)
    both = []
    for right, wrong in zip(drawn[0::2], drawn[1::2], strict=True):
        prompt = right.input_ids[:len(right.input_ids) - right.supervised]
        both += [right, Row(right.question_id, "trace", prompt + wrong.input_ids[-wrong.supervised:],
                            [-100] * len(prompt) + wrong.input_ids[-wrong.supervised:])]
    write_rows(rows / "rows.arrow", both)
    (rows / "pairs.json").write_text(json.dumps({"pairs": 8}))
    with EnginePool(ComputeConfig()) as engines:
        reference.run(ReferenceSpec(source, Precision.fp32, False), {"rows": rows}, refs,
                      Host(ComputeConfig(), TrackerConfig(), Console(quiet=True), engines))
    return source, {"rows": rows, "reference": refs}


def spec(model: ModelSpec, **changes: object) -> TrainSpec:
    return TrainSpec(**{
        "model": model, "epochs": 3, "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0,
        "warmup_ratio": 0.1, "batch_size": 2, "grad_clip": 1.0, "reduction": Reduction.sequence, "precision": Precision.fp32,
        "lora": None, "seed": 0, "beta": 0.1, **changes})


def run(made: tuple[ModelSpec, dict[str, Path]], out: Path, compute: ComputeConfig | None = None, **changes: object) -> Path:
    compute = compute or ComputeConfig(micro_batch_tokens=120)
    out.mkdir(exist_ok=True)
    with EnginePool(compute) as engines:
        train.run(spec(made[0], **changes), made[1], out, Host(compute, TrackerConfig(), Console(quiet=True), engines))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(models.load_model(folder / "model", torch.float32).state_dict())


def test_artifact(made: tuple[ModelSpec, dict[str, Path]], tmp_path: Path) -> None:
    assert len(scoring.read(made[1]["reference"])) == 16
    assert Ledger.read(made[1]["reference"]).scored_tokens > 0
    out = run(made, tmp_path / "v.partial")
    assert sorted(p.name for p in out.iterdir() if p.name != RESUME) == ["ledger.json", "metrics.jsonl", "model", "train.json"]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["rows"] for m in metrics] == [4] * 12, "two pairs a step, four steps an epoch"
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert sum(m["loss"] for m in metrics[-4:]) / 4 < 0.6
    card = (out / "model" / "README.md").read_text()
    assert "8 pairs of a right and a wrong solution" in card
    assert "beta 0.1" in card
    assert "12 steps; loss 0.6931 at the first" in card
    assert "be kind" not in card


def test_adapters_as_a_verifier(made: tuple[ModelSpec, dict[str, Path]], tmp_path: Path) -> None:
    out = run(made, tmp_path / "v.partial", lora=LoraSpec(4, 8.0, 0.0, None, False), lr=1e-2)
    assert (out / "adapter" / "README.md").read_text().startswith("---\ntags: [verifier, dpo]")
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert sum(losses[-4:]) / 4 < 0.65


KILLED = """
import sys; from pathlib import Path
sys.path.insert(0, "tests/train")
import test_verifier_stage as t
from upft.machine import ComputeConfig
from upft.specs import ModelSpec, ContentRef
base, pairs, refs, out = sys.argv[1:]
made = ModelSpec(ContentRef("0", base), False), {"rows": Path(pairs), "reference": Path(refs)}
t.run(made, Path(out), ComputeConfig(micro_batch_tokens=120, checkpoint_every_s=0, threads=1), epochs=60)
"""


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_with_the_same_bits(made: tuple[ModelSpec, dict[str, Path]], tmp_path: Path) -> None:
    whole = run(made, tmp_path / "whole.partial", ComputeConfig(micro_batch_tokens=120, threads=1), epochs=60)
    out = tmp_path / "killed.partial"
    command = [sys.executable, "-c", KILLED, str(made[0].source.path), *map(str, made[1].values()), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    log = out / "metrics.jsonl"
    while process.poll() is None and (not log.is_file() or len(log.read_text().splitlines()) < 20):
        time.sleep(0.02)
    assert process.poll() is None, "it was to be killed before its end"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(log.read_text().splitlines())
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 20 <= before < 240
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 241))
    ours, wanted = weights(out), weights(whole)
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_two_ranks_train_what_one_does(made: tuple[ModelSpec, dict[str, Path]], tmp_path: Path) -> None:
    one = weights(run(made, tmp_path / "one.partial", batch_size=3, eps=1e-3))
    two = weights(run(made, tmp_path / "two.partial", ComputeConfig(micro_batch_tokens=120, devices=2), batch_size=3, eps=1e-3))
    alone, both = ([json.loads(line) for line in (tmp_path / f"{name}.partial" / "metrics.jsonl").read_text().splitlines()]
                   for name in ("one", "two"))
    for key in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins"):  # of 3, 3 and 2 pairs on two ranks
        assert [m[key] for m in both] == pytest.approx([m[key] for m in alone], rel=1e-2, abs=1e-4), key
    assert [m["rewards/accuracies"] for m in both[1:]] == pytest.approx([m["rewards/accuracies"] for m in alone[1:]])
    base = dict(models.load_model(Path(made[0].source.path), torch.float32).state_dict())
    for name in one:
        assert (one[name] - two[name]).norm() <= 2e-2 * (one[name] - base[name]).norm() + 1e-6, name
