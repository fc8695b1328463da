"""One GPU for a model in this process and an engine in another one: what the first held is free when the second starts."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from upft import models, prefix
from upft.choices import Accelerator, Dtype, Engine, Precision, Reduction, Score
from upft.console import Console
from upft.hashing import Hasher
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.sampler import EnginePool
from upft.specs import KlSpec, LoraSpec, ModelSpec, ReferenceSpec, TrainSpec, VerifySpec
from upft.stages import Host, kl, reference, train, verify

WEIGHTS = Path(__file__).parents[2] / "upft" / "toy" / "weights"
VOCAB, EOS = 100, 2
CPU = ComputeConfig(accelerator=Accelerator.cpu)
TRAIN = {"epochs": 1, "lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "warmup_ratio": 0.1, "seed": 0,
         "batch_size": 4, "grad_clip": 1.0, "reduction": Reduction.sequence, "precision": Precision.fp32, "lora": None}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """What stages read, by role: questions with two traces each, the same as rows and as answers, a trained model."""
    folder = tmp_path / "in"
    folder.mkdir()
    ids = [[4 + (7 * i + j) % (VOCAB - 4) for j in range(5)] for i in range(8)]
    drawn = [(f"q{i // 2}", i % 2, ids[i // 2], [*ids[-i - 1], EOS]) for i in range(8)]
    write = lambda name, lines: (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))  # noqa: E731
    write("questions.jsonl", [{"id": f"q{i}", "text": "?", "answer": "1", "prompt_ids": ids[i]} for i in range(4)])
    write("samples.jsonl", [{"id": q, "index": n, "kind": "trace", "ids": trace, "finish_reason": "stop"}
                            for q, n, _, trace in drawn])
    told = {"vote": None, "extracted": None, "reason": "no answer", "finish_reason": "stop", "tokens": 6}
    write("answers.jsonl", [{"id": q, "index": n, "prompt_ids": prompt, "ids": trace, "right": n == 0, **told}
                            for q, n, prompt, trace in drawn])
    (folder / "samples.json").write_text(json.dumps({"stop_ids": [EOS], "questions": 4}))
    (folder / "scores.json").write_text("{}")
    (folder / "rows.json").write_text(json.dumps({"prefix_len": 6, "prefix_len_from": "config", "prefix_rows": 8,
                                                  "trace_rows": 0, "mean_supervised": 6.0}))
    (folder / "spec.json").write_text(json.dumps({"spec": {}}))
    prefix.write_rows(folder / prefix.FILE, [prefix.trace_row(q, prompt, trace) for q, _, prompt, trace in drawn])
    shutil.copytree(WEIGHTS, folder / "model")
    return dict.fromkeys(("rows", "samples", "answers", "verifier", "model"), folder)


@pytest.mark.parametrize("name", ["reference", "verify", "kl", "train", "adapters"])
def test_no_model_outlives_its_stage(name: str, inputs: dict[str, Path], tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Before an engine starts, what stages computed with is collected and the GPU's cache emptied, in this order."""
    spec = ModelSpec(model_ref(WEIGHTS, Hasher()), False)
    stage, asked, needs = {
        "reference": (reference, ReferenceSpec(spec, Precision.fp32, False), ("rows",)),
        "verify": (verify, VerifySpec(spec, "task", Score.reward, Precision.fp32, False), ("answers", "verifier")),
        "kl": (kl, KlSpec(spec, Dtype.float32, 2, 6, 0), ("samples", "model")),
        "train": (train, TrainSpec(model=spec, **TRAIN), ("rows",)),
        "adapters": (train, TrainSpec(model=spec, **(TRAIN | {"lora": LoraSpec(2, 4.0, 0.0, None, True)})), ("rows",)),
    }[name]
    monkeypatch.setattr("upft.card.of_training", lambda *_: None)
    monkeypatch.setattr("upft.card.write", lambda *_: None)
    loaded: list[weakref.ref[Any]] = []
    plain: Callable[..., Any] = models.load_model

    def load(*given: Any) -> Any:
        model = plain(*given)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_model", load)
    happened: list[object] = []
    out = tmp_path / "out.partial"
    out.mkdir()
    with EnginePool(CPU) as engines:
        stage.run(asked, {role: inputs[role] for role in needs}, out, Host(CPU, TrackerConfig(), Console(quiet=True), engines))
        assert loaded, "it computed with a model in this process"
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: happened.append([one() is not None for one in loaded]))
        monkeypatch.setattr("upft.sampler.open_engine", lambda *_: happened.append("opened"))
        engines.get(Engine.transformers, WEIGHTS, Dtype.float32)
    assert happened == [[False] * len(loaded), "opened"]


def test_a_gpu_that_nobody_used_is_left_alone(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: pytest.fail("the cache of a GPU that was not used was emptied"))
    with EnginePool(CPU) as engines:
        assert engines.get(Engine.transformers, model_folder, Dtype.float32).alive
