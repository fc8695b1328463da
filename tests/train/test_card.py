"""The model card: everything that is known, nothing that is not, and code that runs as it stands."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from upft import adapters, card, models
from upft.choices import AnswerFormat, AnswerKind, CutUnit, Dtype, Engine, MethodName, Precision, Protocol, Reduction
from upft.hashing import canonical
from upft.ledger import Ledger
from upft.specs import (
    BuildSpec,
    ContentRef,
    EvaluateSpec,
    HubRef,
    LoraSpec,
    ModelSpec,
    PromptSpec,
    QuestionsSpec,
    SamplingSpec,
    TrainSpec,
)
from upft.statistics import Estimate, Paired

BASE = HubRef("some-org/Some-Model-7B", "a" * 40)
DATA = QuestionsSpec(HubRef("some-org/questions", "b" * 40, "train.jsonl"), "question", None, AnswerFormat.plain, 500)
LORA = LoraSpec(24, 48.0, 0.0, None, False)
PROMPT = PromptSpec("Think first.", "Q: {question}")


def training(source: ContentRef | HubRef = BASE, lora: LoraSpec | None = None) -> TrainSpec:
    return TrainSpec(ModelSpec(source, False), 2, 2e-6, 0.9, 0.95, 1e-8, 0.0, 0.03, 64, 1.0, Reduction.sequence,
                     Precision.bf16_mixed, lora, 7)


def building(source: ContentRef | HubRef = BASE) -> BuildSpec:
    return BuildSpec(MethodName.upft, ModelSpec(source, False), PROMPT, 32, CutUnit.token, 0.1, " Only the start.", True, False,
                     3072)


@pytest.fixture
def facts_of(tmp_path: Path) -> Callable[[TrainSpec], card.Facts]:
    """facts_of(spec) -> what the stage knows when the training is over."""

    def make(spec: TrainSpec) -> card.Facts:
        rows, out = tmp_path / "rows", tmp_path / "out"
        rows.mkdir(exist_ok=True)
        out.mkdir(exist_ok=True)
        (rows / "spec.json").write_text(json.dumps({"stage": "build", "spec": canonical(building(spec.model.source))}))
        (rows / "rows.json").write_text(json.dumps({
            "prefix_len": 32, "prefix_len_from": "config", "prefix_rows": 10_801, "trace_rows": 1_187,
            "mean_supervised": 61.44}))
        Ledger(seconds=3.0, peak_memory_bytes=2**30).write(rows)
        Ledger(supervised_tokens=1_234_567, forward_tokens=7_654_321, flops=3.2e17, seconds=3_723.0,
               peak_memory_bytes=9 * 2**30, peak_device_bytes=71 * 2**30).write(out)
        (out / "train.json").write_text(json.dumps({
            "rows": 11_988, "steps": 376, "first_loss": 0.61234, "last_loss": 0.29876, "parameters": 7_000_000,
            "trained_parameters": 40_000 if spec.lora else 7_000_000}))
        return card.of_training(spec, rows, out)

    return make


def front(text: str) -> dict[str, Any]:
    _, fields, _ = text.split("---\n", 2)
    found = OmegaConf.to_container(OmegaConf.create(fields))
    assert isinstance(found, dict)
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_after_a_training(facts_of: Callable) -> None:
    text = card.render(facts_of(training()))
    assert front(text) == {
        "base_model": "some-org/Some-Model-7B", "base_model_relation": "finetune", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["upft"]}
    for known in ("# Some-Model-7B, UPFT", "a" * 40, "10,801 prefixes of at most 32 tokens", "1,187 whole solutions",
                  "61.4 supervised tokens a row", "lr 2e-06", "mean over sequences",
                  "64 rows a step, 2 epochs, bf16_mixed, seed 7",
                  "376 steps; loss 0.6123 at the first, 0.2988 at the last", "7,000,000 of 7,000,000 parameters",
                  "1,234,567", "7,654,321", "320 PFLOP", "1 h 02 min", "9.00 GiB", "71.00 GiB", "torch 2.", "arXiv:2503.02875",
                  "eprint = {2503.02875}"):
        assert known in text, known
    assert "## Scores" not in text
    assert "questions:" not in text, "the data is not known yet"
    settings = json.loads(blocks(text, "json")[0])
    assert settings == {"build": canonical(building()), "train": canonical(training())}
    transformers, vllm = blocks(text, "python")
    assert 'AutoModelForCausalLM.from_pretrained(folder, dtype="auto")' in transformers
    assert '{"role": "system", "content": "Think first."}' in transformers
    assert '{"role": "user", "content": "Q: What is 3 + 4 * 2?"}' in vllm
    assert "Only the start" not in transformers + vllm, "the task suffix is for training rows"


def test_an_adapters_card_says_how_to_load_it_on_its_base(facts_of: Callable) -> None:
    facts = facts_of(training(lora=LORA))
    text = card.render(facts, adapter=True)
    assert front(text)["base_model_relation"] == "adapter"
    assert front(text)["library_name"] == "peft"
    assert front(text)["tags"] == ["upft", "lora"]
    assert "rank 24, alpha 48), to be loaded on the base model" in text
    assert "40,000 of 7,000,000 parameters" in text
    transformers, vllm = blocks(text, "python")
    assert "AutoPeftModelForCausalLM" in transformers
    assert f'LLM("{BASE.id}", revision="{BASE.revision}", enable_lora=True, max_lora_rank=32)' in vllm
    merged = card.render(facts)
    assert "rank 24, alpha 48) are added to the weights" in merged
    assert (front(merged)["library_name"], front(merged)["base_model_relation"]) == ("transformers", "finetune")
    huge = card.render(facts_of(training(lora=replace(LORA, rank=600))), adapter=True)
    assert "vLLM takes no adapter of this rank" in huge
    assert "enable_lora" not in huge


def test_vllms_ranks_are_those_of_the_installed_one() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed on this platform")
    import ast
    import importlib.util

    source = Path(importlib.util.find_spec("vllm").submodule_search_locations[0]) / "config" / "lora.py"
    named = re.search(r"MaxLoRARanks = Literal(\[.*?\])", source.read_text()).group(1)
    assert set(card.VLLM_RANKS) == set(ast.literal_eval(named)) - {1}


def test_with_scores(facts_of: Callable) -> None:
    def asked(task: str, temperature: float, n: int) -> EvaluateSpec:
        sampling = SamplingSpec(Engine.vllm, Dtype.bfloat16, temperature, 0.95 if temperature else None, None, 3)
        return EvaluateSpec(ModelSpec(BASE, False), PROMPT, task, Protocol.standard, "{question}", AnswerKind.math,
                            replace(DATA, limit=None), sampling, n, 4096, None)

    gain = card.Score(asked("gsm8k", 0.0, 1), 1319, Estimate(0.8201, 0.7981, 0.8399), Estimate(0.8544, 0.8343, 0.8723),
                      Paired(0.0343, 0.0181, 0.0502, 0.00004, "McNemar", "gain"))
    noise = card.Score(asked("aime24", 0.6, 16), 30, Estimate(0.0333, 0.01, 0.17), Estimate(0.025, 0.01, 0.15),
                       Paired(-0.0083, -0.06, 0.04, 0.72, "permutation", "inside noise"), 3)
    facts = replace(facts_of(training()), name="llama31", data=DATA, scores=(gain, noise), costs=(
        ("sample questions", Ledger(prompt_tokens=100, sampled_tokens=20, seconds=30.0, peak_memory_bytes=2**30)),
        ("train upft", Ledger(supervised_tokens=9, seconds=40.0, peak_memory_bytes=2**31))))
    text = card.render(facts)
    assert front(text)["datasets"] == ["some-org/questions"]
    assert "# llama31, UPFT" in text
    assert "| gsm8k | 1,319 | 82.0% [79.8, 84.0] | 85.4% [83.4, 87.2] | +3.4 [1.8, 5.0] | gain, p < 0.001 |" in text
    assert "| aime24 | 30 | 3.3% [1.0, 17.0] | 2.5% [1.0, 15.0] | −0.8 [−6.0, 4.0] | inside noise, p = 0.72 |" in text
    assert "- gsm8k: standard protocol; " in text
    assert "1 answer a question, greedy, at most 4,096 tokens, vllm in bfloat16, seed 3\n" in text
    assert "seed 3; accepted by rule or judge (3 by the judge)" in text
    assert "16 answers a question, temperature 0.6, top_p 0.95, top_k the model's own" in text
    assert f"questions: [{DATA.source.id}]" in text
    assert "the first 500; no answer key was used" in text
    assert "| all | 100 | 20 | 9 |" in text
    assert "1 min 10 s | 2.00 GiB" in text


@pytest.mark.parametrize(("files", "wanted"), [
    ({}, {}),
    ({"README.md": "# no front matter, license: mit\n"}, {}),
    ({"README.md": "---\nlanguage: en\n---\n# a model\n"}, {}),
    ({"README.md": "---\nlicense: [oddly\n---\n"}, {}),
    ({"README.md": "---\nlicense: apache-2.0\nlanguage: en\n---\n"}, {"license": "apache-2.0"}),
    ({"README.md": "---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n"},
     {"license": "other", "license_name": "acme", "license_link": "LICENSE"}),
    ({"LICENSE": "be kind\n"}, {"license": "other", "license_link": "LICENSE"}),
    ({"LICENSE": "be kind\n", "README.md": "---\nlicense: mit\n---\n"}, {"license": "mit"}),
])
def test_a_licence_is_told_never_guessed(files: dict[str, str], wanted: dict[str, str], facts_of: Callable,
                                         tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, text in files.items():
        (base / name).write_text(text)
    text = card.render(facts_of(training(ContentRef("e" * 64, str(base)))))
    assert {key: value for key, value in front(text).items() if key.startswith("license")} == wanted
    assert ("name no licence" in text) == (not wanted)


def test_a_local_base_is_named_by_its_content_not_its_place(facts_of: Callable, tmp_path: Path) -> None:
    for adapter in (False, True):
        text = card.render(facts_of(training(ContentRef("e" * 64, str(tmp_path / "secret" / "place")), LORA)), adapter)
        assert "base_model" not in front(text)
        assert "e" * 64 in text
        assert "secret" not in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize("adapter", [False, True])
def test_the_code_runs_as_it_stands(adapter: bool, facts_of: Callable, model_folder: Callable, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of the model, on the bytes of the card."""
    source = model_folder()
    out = tmp_path / "trained"
    model = models.load_model(source, torch.float32)
    spec = training(ContentRef("e" * 64, str(source)), LORA if adapter else None)
    if adapter:
        adapters.attach(model, LORA, seed=0)
        adapters.save(model, out, source)
    else:
        models.save_model(model, None, out, source)
    card.write(out, facts_of(spec))
    monkeypatch.chdir(out)
    code = blocks((out / "README.md").read_text(), "python")[0]
    assert ("peft" in code) == adapter
    with contextlib.redirect_stdout(io.StringIO()) as said:
        names: dict[str, Any] = {}
        exec(compile(code.replace("max_new_tokens=512", "max_new_tokens=5"), "README.md", "exec"), names)
    new = names["output"][0, names["inputs"]["input_ids"].shape[1]:]
    assert 1 <= len(new) <= 5
    assert said.getvalue() == names["tokenizer"].decode(new, skip_special_tokens=True) + "\n"
    assert hasattr(names["model"], "peft_config") == adapter


@pytest.mark.parametrize(("changes", "title", "source", "rows", "tag"), [
    ({"method": "sft", "ratio": 1.0}, "Fine-tuning on the model's own unfiltered solutions (SFT)", "2503.02875",
     "1,187 whole solutions of the model's own;", "sft"),
    ({"method": "rft", "ratio": 1.0, "right": True, "traces": 16}, "Rejection sampling fine-tuning (RFT)", "2308.01825",
     "1,187 whole solutions of the model's own that end in the right answer (of 16 sampled for each question);", "rft"),
    ({"right": True, "traces": 4}, "Unsupervised Prefix Fine-Tuning (UPFT) with the label filter", "2503.02875",
     "10,801 prefixes of at most 32 tokens of the model's own solutions that end in the right answer (of 4 sampled for each "
     "question), 1,187 whole solutions", "upft"),
])
def test_each_method_is_named_with_its_source_and_rows(facts_of: Callable, changes: dict[str, Any], title: str, source: str,
                                                       rows: str, tag: str) -> None:
    facts = facts_of(training())
    facts = replace(facts, build={**facts.build, **changes}, data=DATA)
    text = card.render(facts)
    assert f"{title}, [arXiv:{source}](https://arxiv.org/abs/{source}), of [some-org" in text
    assert f"- rows: {rows}" in text
    assert front(text)["tags"] == [tag]
    assert ("no answer key was used" in text) == (not changes.get("right"))
    assert ("task suffix of the prefix rows" in text) == (tag == "upft")
