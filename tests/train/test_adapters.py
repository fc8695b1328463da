"""Low-rank adapters: nothing changes when they are put in, their gradients are the chain rule's, and what is saved is
found by everyone who reads PEFT folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from upft import adapters, models
from upft.errors import ConfigError, ModelError
from upft.specs import LoraSpec

IDS = torch.arange(3, 40)[None]
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
REVISION = "c" * 40


def lora(**changes: object) -> LoraSpec:
    return LoraSpec(**{"rank": 4, "alpha": 6.0, "dropout": 0.0, "targets": None, "merge": False, **changes})


def logits(model: Callable) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def move(model: torch.nn.Module, size: float = 0.1) -> None:
    """As a training would: B leaves 0."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B." in name:
                p.normal_(0, size, generator=draw)


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_adapters_change_nothing_and_alone_are_trained(tiny: Callable, dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    before, kind = logits(model), type(model)
    named = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapters.attach(model, lora(), seed=0)
    assert type(model) is kind
    assert torch.equal(logits(model), before)
    chosen = trainable(model)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in chosen} == ALL
    assert len(chosen) == 2 * 2 * 7  # A and B, two layers
    assert {p.dtype for p in chosen.values()} == {torch.float32}
    frozen = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if name not in chosen}
    assert frozen.keys() == named.keys()
    assert all(torch.equal(p, named[name]) and p.dtype == dtype for name, p in frozen.items())
    parts = models.take_apart(model)  # body and head are still told apart
    assert parts.body is model.get_decoder()
    assert not isinstance(model.get_output_embeddings(), adapters_layer())


def adapters_layer() -> type:
    from peft.tuners.lora import LoraLayer

    return LoraLayer


def test_the_seed_decides_and_the_callers_random_state_stays(tiny: Callable) -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        model = tiny()
        torch.manual_seed(99)
        adapters.attach(model, lora(), seed)
        assert torch.equal(torch.rand(3), after)
        return [p for name, p in trainable(model).items() if ".lora_A." in name]

    torch.manual_seed(99)
    after = torch.rand(3)
    zero, again, one = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(zero, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(zero, one, strict=True))
    assert len({tuple(a.flatten()[:4].tolist()) for a in zero}) == len(zero)


def test_targets(tiny: Callable) -> None:
    model = tiny()
    adapters.attach(model, lora(targets=("q_proj", "mlp.down_proj")), seed=0)
    assert {name.split(".lora_")[0] for name in trainable(model)} == {
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")}
    for wrong, said in (("q_porj", "did you mean 'q_proj'"), ("lm_head", "null = all"), ("self_attn", "null = all"),
                        ("embed_tokens", "null = all")):
        with pytest.raises(ConfigError, match=rf"train\.lora\.targets=\[.*'{wrong}' is no linear layer") as caught:
            adapters.attach(tiny(), lora(targets=("v_proj", wrong)), seed=0)
        assert said in caught.value.remedy
        assert all(name in caught.value.what for name in ALL)


def test_a_layer_outside_the_body_that_bears_a_targets_name_gets_none(tiny: Callable) -> None:
    model = tiny()
    model.q_proj = torch.nn.Linear(4, 4)
    adapters.attach(model, lora(), seed=0)
    assert type(model.q_proj) is torch.nn.Linear
    assert len(trainable(model)) == 2 * 2 * 7


def test_gradients_are_the_chain_rules(tiny: Callable) -> None:
    """W' = W + s B A, so dA = s Bᵀ dW' and dB = s dW' Aᵀ; dW' comes from the merged model, which has no adapters."""
    model, merged = tiny(), tiny()
    for one in (model, merged):
        adapters.attach(one, lora(), seed=0)
        move(one)
    adapters.merge(merged)
    for one in (model, merged):
        one(input_ids=IDS, labels=IDS).loss.backward()
    scale, of = 6.0 / 4, dict(merged.named_parameters())
    for name in {name.split(".lora_")[0] for name in trainable(model)}:
        layer, whole = model.get_submodule(name), of[f"{name}.weight"].grad
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(a.grad, scale * b.T @ whole, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b.grad, scale * whole @ a.T, rtol=1e-4, atol=1e-6)


def test_checkpointed_activations_give_the_same_gradients(tiny: Callable) -> None:
    """With the embedding frozen nothing that goes into a layer needs a gradient: the older way of checkpointing would
    give none at all."""
    found = []
    for checkpointing in (False, True):
        model = tiny()
        adapters.attach(model, lora(), seed=0)
        move(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append({name: p.grad for name, p in trainable(model).items()})
    assert all(torch.equal(grad, found[1][name]) and grad.abs().max() > 0 for name, grad in found[0].items())


def test_dropout_is_off_in_evaluation_and_on_in_training(tiny: Callable) -> None:
    model = tiny()
    adapters.attach(model, lora(dropout=0.5), seed=0)
    move(model)
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_the_sum_in_fp32_under_the_old_names(model_folder: Callable, tmp_path: Path, dtype: torch.dtype) -> None:
    source = model_folder()
    model, base = models.load_model(source, dtype), models.load_model(source, dtype)
    names = list(model.state_dict())
    adapters.attach(model, lora(), seed=0)
    move(model, 1e-3)  # far below what bf16 resolves beside these weights
    low = {name.split(".lora_")[0]: model.get_submodule(name.split(".lora_")[0]) for name in trainable(model)}
    change = {name: 1.5 * m.lora_B["default"].weight @ m.lora_A["default"].weight for name, m in low.items()}
    before = logits(model)
    adapters.merge(model)
    assert not adapters.attached(model)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    for name, p in base.named_parameters():
        want = p.float() + change.get(name.removesuffix(".weight"), 0)
        torch.testing.assert_close(model.get_parameter(name), want, rtol=0, atol=1e-7)
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    models.save_model(model, None, tmp_path / "merged", source)
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert saved.keys() == load_file(source / "model.safetensors").keys()
    assert all(torch.equal(tensor, model.get_parameter(name).bfloat16()) for name, tensor in saved.items())
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_the_saved_folder_is_read_by_peft_and_transformers(model_folder: Callable, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    source, out = model_folder(), tmp_path / "adapter"
    model = models.load_model(source, torch.float32)
    adapters.attach(model, lora(targets=("q_proj", "v_proj")), seed=0)
    move(model)
    want = logits(model)
    adapters.save(model, out, source)
    assert torch.equal(logits(model), want), "saving must not touch the model"
    assert sorted(p.name for p in out.iterdir()) == sorted([
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "LICENSE"])
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(source), None)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 6.0, ["q_proj", "v_proj"])
    assert adapters.rank(out) == 4
    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {torch.float32}

    ours = models.load_model(source, torch.float32)
    adapters.load(ours, out)
    assert not trainable(ours)
    readers = {
        "upft": ours, "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32),
        "PeftModel": PeftModel.from_pretrained(models.load_model(source, torch.float32), out),
        "transformers": AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)}
    for name, reader in readers.items():
        assert torch.equal(logits(reader), want), name

    adapters.save(ours, tmp_path / "again", source)
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_a_base_model_of_the_hub_is_named_with_its_revision(model_folder: Callable, tmp_path: Path) -> None:
    """In the layout of the hub's cache, and without a network: the base is found again by id and revision alone."""
    snapshot = tmp_path / "cache" / "models--some-org--some-model" / "snapshots" / REVISION
    snapshot.parent.mkdir(parents=True)
    model_folder().rename(snapshot)
    program = f"""
import json, sys, torch
from pathlib import Path
from upft import adapters, models
from upft.specs import HubRef, LoraSpec
source, out = HubRef("some-org/some-model", {REVISION!r}), Path("adapter")
model = models.load_model(source, torch.float32)
adapters.attach(model, LoraSpec(2, 4.0, 0.0, None, False), 0)
for name, p in model.named_parameters():
    if ".lora_B." in name:
        torch.nn.init.constant_(p, 0.02)
adapters.save(model, out, source)
config = json.loads((out / "adapter_config.json").read_text())
assert (config["base_model_name_or_path"], config["revision"]) == (source.id, source.revision), config
from peft import AutoPeftModelForCausalLM
ids = torch.arange(3, 40)[None]
again = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype=torch.float32)
assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_what_does_not_fit_is_refused(model_folder: Callable, tiny: Callable, tmp_path: Path) -> None:
    source, out = model_folder(), tmp_path / "adapter"
    model = models.load_model(source, torch.float32)
    with pytest.raises(ModelError, match="carries no adapters"):
        adapters.save(model, out, source)
    with pytest.raises(ModelError, match="carries no adapters"):
        adapters.merge(model)
    adapters.attach(model, lora(), seed=0)
    with pytest.raises(ModelError, match="carries adapters already"):
        adapters.attach(model, lora(), seed=0)
    adapters.save(model, out, source)
    for fields, said in (({"num_hidden_layers": 3}, r"layers\.2\..* is in one of them only"),
                         ({"intermediate_size": 64}, r"instead of")):
        with pytest.raises(ModelError, match=rf"does not fit LlamaForCausalLM: .*{said}"):
            adapters.load(tiny(**fields), out)

    config = json.loads((out / "adapter_config.json").read_text())
    for change, said in (({"use_dora": True}, "use_dora=True"), ({"bias": "all"}, "bias=all"),
                         ({"target_modules": ["nosuch"]}, "does not fit"), ({"r": "many"}, "is no LoRA configuration")):
        (out / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=said):
            adapters.load(tiny(), out)
    (out / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {"q_proj": 9}}))
    assert adapters.rank(out) == 9
    (out / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        adapters.load(tiny(), out)
    with pytest.raises(ModelError, match="is no adapter"):
        adapters.load(tiny(), source)


def test_the_import_is_light() -> None:
    code = "import sys, upft.adapters; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.stdout.strip() == "set()"
