"""Folders in, folders out: what is wrong with one is said, and what is saved is what was published, trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from upft import models
from upft.errors import ModelError
from upft.specs import ContentRef, HubRef

HUB = HubRef("some-org/some-model", "0" * 40)


def test_resolve() -> None:
    assert models.resolve(ContentRef("ab", "/models/x")) == Path("/models/x")
    assert models.resolve(HUB) is HUB


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_the_published_folder_with_new_weights(
        model_folder: Callable, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source, out = model_folder(tie_word_embeddings=tied), tmp_path / "out"
    tokenizer, model = models.load_tokenizer(source), models.load_model(source, torch.float32)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * 0.01
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    models.save_model(model, tokenizer, out, source)

    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), "saving must not touch the model"
        assert p.dtype == torch.float32
    assert model.generation_config.temperature == 0.6
    same = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
            "LICENSE")
    for name in same:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert sorted(p.name for p in out.iterdir()) == sorted([*same, "model.safetensors"])
    saved = load_file(out / "model.safetensors")
    assert saved.keys() == load_file(source / "model.safetensors").keys(), "a tied weight is written once"
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    assert all(torch.equal(saved[name], p.bfloat16()) for name, p in before.items())

    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16())
        loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [5, 1]
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    assert (AutoTokenizer.from_pretrained(out).apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            == tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def test_a_model_saved_twice_over_is_still_the_same_folder(model_folder: Callable, tmp_path: Path) -> None:
    source = model_folder()
    model = models.load_model(source, torch.float32)
    models.save_model(model, None, tmp_path / "one", source)
    again = models.load_model(tmp_path / "one", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    models.save_model(again, None, tmp_path / "two", tmp_path / "one")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_model_without_a_source_is_written_from_memory(model_folder: Callable, tiny: Callable, tmp_path: Path) -> None:
    tokenizer, model = models.load_tokenizer(model_folder()), tiny()
    model.generation_config.temperature = 0.6  # refused by save_pretrained, as do_sample is off
    models.save_model(model, tokenizer, tmp_path / "out", None)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6
    loaded = models.load_model(tmp_path / "out", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert models.load_tokenizer(tmp_path / "out").chat_template == tokenizer.chat_template


def test_sharded_source_leaves_no_foreign_index(model_folder: Callable, tmp_path: Path) -> None:
    """The source's index names shards that the saved folder does not have."""
    source = model_folder()
    model = models.load_model(source, torch.float32)
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="temperature"):  # what save_model has to get around
        model.save_pretrained(source)
    model.generation_config.update(temperature=None, top_p=None)
    model.to(torch.bfloat16).save_pretrained(source, max_shard_size="50KB")
    assert (source / "model.safetensors.index.json").is_file()
    model = models.load_model(source, torch.float32)
    models.save_model(model, None, tmp_path / "out", source)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert models.load_model(tmp_path / "out", torch.float32) is not None


def test_number_format_is_the_published_one_or_that_of_the_weights(model_folder: Callable, tmp_path: Path) -> None:
    source = model_folder()
    config = json.loads((source / "config.json").read_text())
    for fields, wanted in (({"torch_dtype": "float16"}, torch.float16), ({}, torch.bfloat16)):
        config.pop("dtype", None)
        (source / "config.json").write_text(json.dumps({**config, **fields}))
        models.save_model(models.load_model(source, torch.float32), None, tmp_path / "out", source)
        with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {wanted}  # noqa: SIM118


def test_no_chat_template(model_folder: Callable) -> None:
    source = model_folder()
    (source / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as caught:
        models.load_tokenizer(source)
    assert f"model.path={source} has no chat template" in caught.value.what
    assert str(source / "chat_template.jinja") in caught.value.remedy
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")  # the remedy works
    assert models.load_tokenizer(source).chat_template is not None


def test_no_tokenizer(model_folder: Callable) -> None:
    source = model_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer") as caught:
        models.load_tokenizer(source)
    assert str(source) in caught.value.what


def test_garbled_tokenizer(model_folder: Callable) -> None:
    source = model_folder()
    (source / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        models.load_tokenizer(source)


def change(**fields: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return act


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "its model cannot be loaded"),
    "garbled config": (lambda f: (f / "config.json").write_text("{not json"), "not a valid JSON"),
    "empty config": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "unknown type": (change(model_type="nosuch"), "nosuch"),
    "a size that is no number": (change(hidden_size="many"), "hidden_size"),
    "another model's sizes": (change(intermediate_size=64), "6 weights are mismatched"),
    "more layers than weights": (change(num_hidden_layers=3), "9 weights are missing"),
    "a weight is missing": (drop_a_weight, r"1 weights are missing .*model.layers.1.mlp.up_proj.weight"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (lambda f: os.truncate(f / "model.safetensors", 5000), "its model cannot be loaded"),
    "weights are not weights": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 500), "its model cannot be loaded"),
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_broken_folders_are_named_not_traced(model_folder: Callable, how: str) -> None:
    source = model_folder()
    act, said = BROKEN[how]
    act(source)
    with pytest.raises(ModelError, match=said) as caught:
        models.load_model(source, torch.float32)
    assert f"model.path={source}" in caught.value.what
    assert caught.value.remedy


def test_no_folder(tmp_path: Path) -> None:
    for load in (models.load_tokenizer, lambda s: models.load_model(s, torch.float32)):
        with pytest.raises(ModelError, match="there is no such folder"):
            load(tmp_path / "nowhere")


def test_hub_that_cannot_be_reached() -> None:
    for load in (models.load_tokenizer, lambda s: models.load_model(s, torch.float32)):
        with pytest.raises(ModelError, match=r"model\.id=some-org/some-model") as caught:
            load(HUB)
        assert "model.path=DIR" in caught.value.remedy


def test_code_in_a_model_folder_is_not_run_unasked(model_folder: Callable, tmp_path: Path) -> None:
    source = model_folder()
    (source / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    change(model_type="odd", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.C"})(source)
    with pytest.raises(ModelError) as caught:
        models.load_model(source, torch.float32)
    assert "model.trust_remote_code=true" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


def test_loading_and_saving_are_silent_and_the_import_is_light(model_folder: Callable, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
import upft.models
assert not {{"torch", "transformers", "pytorch_lightning", "peft"}} & set(sys.modules)
import torch
model = upft.models.load_model(Path({str(model_folder())!r}), torch.float32)
upft.models.save_model(model, None, Path("out"), Path({str(tmp_path / 'published')!r}))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
