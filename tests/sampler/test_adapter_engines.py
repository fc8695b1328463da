"""A model with a LoRA adapter, in both engines: the same answers as its merged weights."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from random_llama import EOS, VOCAB

from upft import adapters, models
from upft.choices import Accelerator, Dtype, Engine
from upft.errors import EngineError, ModelError
from upft.machine import ComputeConfig
from upft.sampler import Completion, EnginePool, Request, Sampling, open_engine
from upft.specs import LoraSpec

CPU = ComputeConfig(accelerator=Accelerator.cpu, threads=1)
VLLM = ComputeConfig(threads=1, cpu_kv_cache_gib=1, gpu_memory_utilization=0.3, enforce_eager=True)
GREEDY = Sampling(0.0, 1.0, 0, frozenset({EOS}), 0)
RANK = 5
"""None of those that vLLM makes room for."""


def write_adapter(model_folder: Path, out: Path, rank: int = RANK, size: float = 0.05) -> None:
    """An adapter in `out`/adapter and the weights with it in `out`/merged."""
    model = models.load_model(model_folder, torch.float32)
    adapters.attach(model, LoraSpec(rank, 10.0, 0.0, None, True), seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.normal_(0, size, generator=draw)
    adapters.save(model, out / "adapter", model_folder)
    adapters.merge(model)
    models.save_model(model, None, out / "merged", model_folder)


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_adapter(model_folder, folder)
    return folder


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    rng = random.Random(0)
    prompts = [(1, *(rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 30)))) for _ in range(60)]
    return [Request(f"r{i}", prompt, 24, 50 + i) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def merged_answers(trained: Path, requests: list[Request]) -> dict[str, Completion]:
    """What the merged weights answer in the embedded engine, which no adapter code touches."""
    return answers(open_engine(Engine.transformers, trained / "merged", Dtype.float32, CPU).generate(requests, GREEDY))


def answers(completions: Iterable[Completion]) -> dict[str, Completion]:
    return {c.id: c for c in completions}


def agreeing(a: dict[str, Completion], b: dict[str, Completion]) -> int:
    assert a.keys() == b.keys()
    return sum(a[one] == b[one] for one in a)


def test_the_embedded_engine_answers_as_the_merged_weights_do(
        model_folder: Path, trained: Path, requests: list[Request], merged_answers: dict[str, Completion]) -> None:
    base = answers(open_engine(Engine.transformers, model_folder, Dtype.float32, CPU).generate(requests, GREEDY))
    assert agreeing(base, merged_answers) <= 3, "the adapter must matter"
    engine = open_engine(Engine.transformers, model_folder, Dtype.float32, CPU, adapter=trained / "adapter")
    assert agreeing(answers(engine.generate(requests, GREEDY)), merged_answers) >= 58  # rounding, where two tokens tie


def test_in_bf16_a_small_adapter_is_not_rounded_away(model_folder: Path, tmp_path: Path, requests: list[Request]) -> None:
    """Merged into bf16 most weights stay what they were; beside them the adapter still speaks, in fp32."""
    write_adapter(model_folder, tmp_path, size=2e-4)
    base, merged = (models.load_model(folder, torch.bfloat16) for folder in (model_folder, tmp_path / "merged"))
    pairs = [(p, merged.get_parameter(name)) for name, p in base.named_parameters() if "proj" in name]
    assert sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs) > 0.6
    engine = open_engine(Engine.transformers, model_folder, Dtype.bfloat16, CPU, adapter=tmp_path / "adapter")
    model = engine._model
    for name, p in model.named_parameters():
        if ".lora_" in name:
            assert p.dtype == torch.float32
        else:
            assert torch.equal(p, base.get_parameter(name.replace(".base_layer", "")))
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        added = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
    exact = models.load_model(tmp_path / "merged", torch.float32).model.layers[0].mlp.up_proj.weight.double()
    fp32 = models.load_model(model_folder, torch.float32).model.layers[0].mlp.up_proj.weight.double()
    torch.testing.assert_close(added.double(), x.double() @ (exact - fp32).T, rtol=1e-3, atol=1e-5)
    assert len(answers(engine.generate(requests, GREEDY))) == 60


def test_the_pool_tells_models_with_and_without_an_adapter_apart(model_folder: Path, trained: Path) -> None:
    with EnginePool(CPU) as pool:
        plain = pool.get(Engine.transformers, model_folder, Dtype.float32)
        adapted = pool.get(Engine.transformers, model_folder, Dtype.float32, adapter=trained / "adapter")
        assert adapted is not plain
        assert not plain.alive
        assert pool.get(Engine.transformers, model_folder, Dtype.float32, adapter=trained / "adapter") is adapted
        assert pool.get(Engine.transformers, model_folder, Dtype.float32) is not adapted


@pytest.mark.parametrize("kind", list(Engine))
def test_a_folder_that_is_no_adapter_is_named(model_folder: Path, kind: Engine) -> None:
    with pytest.raises(ModelError, match="is no adapter") as caught:
        open_engine(kind, model_folder, Dtype.float32, CPU, adapter=model_folder)
    assert str(model_folder) in caught.value.what


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_vllm_answers_as_the_embedded_engine_does(
        form: str, model_folder: Path, trained: Path, requests: list[Request], merged_answers: dict[str, Completion]) -> None:
    if form == "adapter":
        engine = open_engine(Engine.vllm, model_folder, Dtype.float32, VLLM, adapter=trained / "adapter")
    else:
        engine = open_engine(Engine.vllm, trained / "merged", Dtype.float32, VLLM)
    try:
        assert agreeing(answers(engine.generate(requests, GREEDY)), merged_answers) >= 57
    finally:
        engine.close()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_rank_beyond_vllms_is_refused_with_a_way_out(model_folder: Path, tmp_path: Path) -> None:
    write_adapter(model_folder, tmp_path, rank=513)
    with pytest.raises(EngineError, match="has rank 513, and vLLM takes ranks up to 512") as caught:
        open_engine(Engine.vllm, model_folder, Dtype.float32, VLLM, adapter=tmp_path / "adapter")
    assert "train.lora.merge=true" in caught.value.remedy
