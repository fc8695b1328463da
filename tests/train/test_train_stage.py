"""The stage as the pipeline calls it: rows on disk in, an artifact out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from upft import manners, models
from upft.choices import CutUnit, MethodName, Precision, Reduction, TrackerKind
from upft.console import Console
from upft.hashing import Hasher, canonical
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.prefix import write_rows
from upft.sampler import EnginePool
from upft.specs import BuildSpec, ModelSpec, PromptSpec, TrainSpec
from upft.stages import Host, train
from upft.store import RESUME


@pytest.fixture
def stage(model_folder: Callable, make_rows: Callable, tmp_path: Path) -> Callable[..., Path]:
    """stage(name, tracker=..., **spec changes) -> the folder that the stage has filled."""
    source, rows = model_folder(), tmp_path / "rows"
    rows.mkdir()
    write_rows(rows / "rows.arrow", make_rows(20))
    (rows / "rows.json").write_text(json.dumps({"prefix_len": 30, "prefix_len_from": "config", "prefix_rows": 20,
                                               "trace_rows": 0, "mean_supervised": 9.5}))
    build = BuildSpec(MethodName.upft, ModelSpec(model_ref(source, Hasher()), False), PromptSpec(None, "{question}"), 30,
                      CutUnit.token, 0.0, "", True, False, 256)
    (rows / "spec.json").write_text(json.dumps({"stage": "build", "spec": canonical(build)}))

    def run(name: str, tracker: TrackerConfig | None = None, **changes: object) -> Path:
        spec = TrainSpec(**{
            "model": ModelSpec(model_ref(source, Hasher()), False), "epochs": 3, "lr": 1e-3, "beta1": 0.9, "beta2": 0.95,
            "eps": 1e-8, "weight_decay": 0.0, "warmup_ratio": 0.1, "batch_size": 8, "grad_clip": 1.0,
            "reduction": Reduction.sequence, "precision": Precision.bf16_mixed, "lora": None, "seed": 0, **changes})
        out = tmp_path / f"{name}.partial"
        out.mkdir()
        compute = ComputeConfig(micro_batch_tokens=200)
        with EnginePool(compute) as engines:
            train.run(spec, {"rows": rows}, out, Host(compute, tracker or TrackerConfig(), Console(), engines))
        return out

    return run


def test_artifact(stage: Callable, make_rows: Callable, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out, rows = stage("one"), make_rows(20)
    assert sorted(p.name for p in out.iterdir() if p.name != RESUME) == ["ledger.json", "metrics.jsonl", "model", "train.json"]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, 10))  # 20 rows, 8 a step, 3 epochs
    assert set(metrics[0]) == {"step", "loss", "lr", "grad_norm", "rows", "supervised_tokens", "tokens", "padding_tokens",
                               "shared_tokens", "tokens_per_s", "seconds"}
    assert sum(m["loss"] for m in metrics[6:]) < sum(m["loss"] for m in metrics[:3])
    told = json.loads((out / "train.json").read_text())
    assert (told["rows"], told["steps"], told["epochs"], told["lr"]) == (20, 9, 3, 1e-3)
    assert (told["first_loss"], told["last_loss"]) == (metrics[0]["loss"], metrics[-1]["loss"])
    assert told["mean_supervised_tokens"] == sum(r.supervised for r in rows) / 20
    book = Ledger.read(out)
    assert book.supervised_tokens == 3 * sum(r.supervised for r in rows)
    assert book.forward_tokens == 3 * sum(len(r.input_ids) for r in rows)
    assert (book.padding_tokens, book.shared_tokens) == (0, sum(m["shared_tokens"] for m in metrics))
    assert (told["layout"], told["ranks"]) == ("packed", 1)
    assert told["seconds"] == metrics[-1]["seconds"] <= book.seconds
    assert book.seconds > 0
    assert book.flops > 6 * 1000 * book.forward_tokens
    assert book.peak_memory_bytes > 50e6
    # the trained model is a model, moved, in the published number format
    base = models.load_model(tmp_path / "published", torch.float32)
    trained = models.load_model(out / "model", torch.float32)
    assert told["parameters"] == told["trained_parameters"] == sum(p.numel() for p in base.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(base.parameters(), trained.parameters(), strict=True) if a.ndim == 2)
    assert json.loads((out / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert models.load_tokenizer(out / "model").chat_template
    card = (out / "model" / "README.md").read_text()
    assert "the base model's card" not in card
    assert "20 prefixes of at most 30 tokens" in card
    assert f"9 steps; loss {told['first_loss']:.4f} at the first, {told['last_loss']:.4f} at the last" in card
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "lightning" not in printed.out.lower()


def test_two_runs_write_the_same_weights(stage: Callable) -> None:
    one, two = (stage(name) / "model" / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != (stage("three", seed=1) / "model" / "model.safetensors").read_bytes()


def test_wandb_run_is_named_by_the_key_and_stays_out_of_the_artifact(
        stage: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mirror"))
    out = stage("0a1b2c", TrackerConfig(kind=TrackerKind.wandb))
    assert sorted(p.name for p in out.iterdir() if p.name != RESUME) == ["ledger.json", "metrics.jsonl", "model", "train.json"]
    assert [p.name for p in (tmp_path / "mirror" / "wandb").glob("offline-run-*/*.wandb")] == ["run-0a1b2c.wandb"]


def test_lightning_gives_no_advice_where_slurm_is(stage: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  recwarn: pytest.WarningsRecorder) -> None:
    """Its hint to put srun before the command is of no use here; all else that it warns of is still heard."""
    from lightning_fabric.plugins.environments import SLURMEnvironment
    from lightning_fabric.utilities.rank_zero import rank_zero_warn
    from lightning_fabric.utilities.warnings import PossibleUserWarning

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with pytest.warns(PossibleUserWarning, match="`srun` command is available"):
        SLURMEnvironment._validate_srun_used()
    recwarn.clear()
    stage("one", epochs=1)
    assert not [one for one in recwarn if "srun" in str(one.message)]
    with manners.quiet_lightning(), pytest.warns(PossibleUserWarning, match="something else"):
        rank_zero_warn("something else", category=PossibleUserWarning)
