"""A random tiny Llama, rows for it, and the folder a publisher might have made of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from upft.choices import Precision, Reduction
from upft.prefix import UNSUPERVISED, Row
from upft.training import TrainConfig

VOCABULARY = 320


@pytest.fixture
def tiny() -> Callable[..., object]:
    """tiny(**config fields) -> LlamaForCausalLM, fp32, the same weights each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(**fields: object) -> object:
        torch.manual_seed(0)
        config = LlamaConfig(**{
            "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
            "initializer_range": 0.2, **fields})  # large enough for logits and gradients of honest size
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def make_rows() -> Callable[..., list[Row]]:
    """make_rows(count, seed) -> rows of unlike lengths: prompts of random ids, completions that count upwards."""

    def make(count: int, seed: int = 0, longest: int = 30) -> list[Row]:
        draw = random.Random(seed)
        rows = []
        for i in range(count):
            prompt = [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(3, 12))]
            start = draw.randrange(1, 20)
            completion = [start + j for j in range(draw.choice((1, 2, 5, longest)))]
            rows.append(Row(f"q{i}", "prefix", prompt + completion, [UNSUPERVISED] * len(prompt) + completion))
        return rows

    return make


@pytest.fixture
def settings() -> Callable[..., TrainConfig]:
    """settings(**changes) -> fp32 training settings for the toy."""

    def make(**changes: object) -> TrainConfig:
        return TrainConfig(**{"epochs": 1, "lr": 1e-2, "max_length": 256, "batch_size": 6, "grad_clip": None,
                              "warmup_ratio": 0.0, "precision": Precision.fp32, **changes})

    return make


@pytest.fixture
def model_folder(tmp_path: Path, tiny: Callable[..., object]) -> Callable[..., Path]:
    """model_folder(**config fields) -> folder of a bf16 model as published, oddities included."""
    import torch

    from upft.toy import tokenizer

    def make(**fields: object) -> Path:
        folder = tmp_path / "published"
        model = tiny(**fields).to(torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.build(["What is 2 + 3? It is 5."], vocab_size=VOCABULARY).save_pretrained(folder)
        # A temperature beside do_sample=false: published like this, and refused by save_pretrained.
        (folder / "generation_config.json").write_text(json.dumps(
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [5, 1]}))
        (folder / "LICENSE").write_text("be kind\n")
        (folder / "README.md").write_text("# the base model's card\n")
        return folder

    return make


@pytest.fixture
def plain_loss() -> Callable[..., object]:
    """plain_loss(model, rows, reduction) -> the loss of a step with nothing packed, padded or left out."""
    import torch
    import torch.nn.functional as F

    def loss_of(model: Callable, rows: list[Row], reduction: Reduction) -> object:
        """Mean over rows of each row's mean, or mean over all supervised tokens, by the book."""
        sums, counts = [], []
        for row in rows:
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
            sums.append(F.cross_entropy(logits[:-1], torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum"))
            counts.append(sum(label != -100 for label in row.labels[1:]))
        if reduction is Reduction.sequence:
            return torch.stack([s / c for s, c in zip(sums, counts, strict=True)]).mean()
        return torch.stack(sums).sum() / sum(counts)

    return loss_of
