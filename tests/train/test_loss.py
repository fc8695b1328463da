"""The loss and gradient of a step against the plain one: row by row, unpadded, whole logits, F.cross_entropy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from upft import models, packing
from upft.choices import Reduction
from upft.errors import ModelError
from upft.module import warmup
from upft.prefix import Row
from upft.steps import StepBatch, step_batch, weighted_loss

LIMITS = (1, 24, 60, 100, 10_000)


def batch_of(rows: list[Row], limit: int, reduction: Reduction) -> StepBatch:
    lengths = np.array([len(row.input_ids) for row in rows])
    micro = packing.split(np.arange(len(rows)), lengths, limit)
    members = [[rows[i] for i in m.rows] for m in micro]
    return step_batch([(packing.pad(some), [row.question_id for row in some]) for some in members], reduction)


def step_loss(model: torch.nn.Module, batch: StepBatch, **options: int) -> torch.Tensor:
    """Accumulates gradients as a training step does; returns the step's loss."""
    parts = models.take_apart(model)
    total = torch.zeros((), dtype=model.dtype)
    for micro in batch.micro_batches:
        loss = weighted_loss(parts, micro, **options)
        loss.backward()
        total += loss.detach()
    return total


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    out = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return out


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Every tensor agrees to 1e-5 (fp32) or 1e-12 (fp64) of its norm: an element alone may cancel to nearly 0."""
    within = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for name in wanted:
        assert wanted[name].norm() > 0, name
        assert (got[name] - wanted[name]).norm() <= within * wanted[name].norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("reduction", list(Reduction))
def test_gradient_of_a_step_is_the_plain_one_however_it_is_cut(
        tiny: Callable, make_rows: Callable, plain_loss: Callable, reduction: Reduction, tied: bool,
        dtype: torch.dtype) -> None:
    """In fp64 too, where rounding can hide nothing."""
    model, rows = tiny(tie_word_embeddings=tied).to(dtype), make_rows(9)
    wanted_loss = plain_loss(model, rows, reduction)
    wanted_loss.backward()
    wanted = gradients(model)
    passes = set()
    for limit in LIMITS:
        for turned in (rows, rows[::-1]):
            batch = batch_of(turned, limit, reduction)
            passes.add(len(batch.micro_batches))
            loss = step_loss(model, batch)
            rounding = 1e-6 if dtype is torch.float32 else 1e-14
            torch.testing.assert_close(loss, wanted_loss.detach(), rtol=rounding, atol=0)
            assert_same(gradients(model), wanted, dtype)
    assert {1, 9} < passes, "the limits above were to cut the step in several ways"


@pytest.mark.parametrize("positions", [1, 7, 64, 10_000])
def test_chunks_of_logits_change_nothing(tiny: Callable, make_rows: Callable, positions: int) -> None:
    model, rows = tiny().double(), make_rows(9)
    batch = batch_of(rows, 10_000, Reduction.sequence)
    whole, wanted = step_loss(model, batch), gradients(model)
    loss = step_loss(model, batch, chunk_logits=positions * model.config.vocab_size)
    torch.testing.assert_close(loss, whole, rtol=1e-14, atol=0)
    assert_same(gradients(model), wanted, torch.float64)


def test_no_logits_of_unsupervised_positions_are_made(tiny: Callable, make_rows: Callable) -> None:
    model, rows = tiny(), make_rows(9)
    seen = []
    batch, parts = batch_of(rows, 10_000, Reduction.token), models.take_apart(model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    weighted_loss(parts, batch.micro_batches[0], chunk_logits=5 * model.config.vocab_size)
    assert sum(seen) == batch.supervised == sum(row.supervised for row in rows)
    assert max(seen) <= 5


def test_the_two_reductions_differ_as_the_method_says() -> None:
    """One whole trace of 300 among nine prefixes of 16: a tenth of the loss, or 68% of it."""
    trace, prefixes = [2] * 300, [[2] * 16] * 9
    rows = [Row(str(i), "x", [1, *c], [-100, *c]) for i, c in enumerate([trace, *prefixes])]
    share = {}
    for reduction in Reduction:
        micro = batch_of(rows, 10_000, reduction).micro_batches
        assert sum(float(m.weight.sum()) for m in micro) == pytest.approx(1, rel=1e-5)
        share[reduction] = next(float(m.weight.sum()) for m in micro if m.question_ids == ["0"])
    assert share[Reduction.sequence] == pytest.approx(0.1)
    assert share[Reduction.token] == pytest.approx(0.68, abs=0.01)


def test_the_prompt_is_never_supervised(tiny: Callable) -> None:
    """Only the positions that predict a labelled token get a gradient, and labels elsewhere are not read."""
    model = tiny()
    prompt, completion = [5, 6, 7, 8], [30, 31, 32]
    row = Row("q", "prefix", prompt + completion, [-100] * 4 + completion)
    batch = batch_of([row], 100, Reduction.sequence)
    parts, kept = models.take_apart(model), []

    def body(input_ids: torch.Tensor, use_cache: bool) -> object:
        out = parts.body(input_ids=input_ids, use_cache=use_cache)
        out.last_hidden_state.retain_grad()
        kept.append(out.last_hidden_state)
        return out

    loss = weighted_loss(models.Parts(body, parts.head, parts.vocabulary, parts.output), batch.micro_batches[0])
    loss.backward()
    moved = kept[0].grad[0].abs().sum(-1)
    assert (moved > 0).tolist() == [False, False, False, True, True, True, False]
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
    by_hand = -sum(logits[3 + i, token] for i, token in enumerate(completion)) / 3
    torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=0)


def test_padding_is_not_seen(tiny: Callable, make_rows: Callable) -> None:
    model, rows = tiny(), make_rows(6)
    batch = batch_of(rows, 10_000, Reduction.sequence)
    micro = batch.micro_batches[0]
    assert len(batch.micro_batches) == 1
    assert batch.padding > 0
    before, wanted = step_loss(model, batch), gradients(model)
    real = torch.zeros_like(micro.input_ids, dtype=torch.bool)
    by_length = sorted(rows, key=lambda row: len(row.input_ids))
    for i, row in enumerate(by_length):
        real[i, :len(row.input_ids)] = True
    assert micro.input_ids[~real].eq(0).all()
    micro.input_ids[~real] = 17  # any other token in the padding
    torch.testing.assert_close(step_loss(model, batch), before, rtol=0, atol=0)
    after = gradients(model)
    for name in wanted:
        torch.testing.assert_close(after[name], wanted[name], rtol=0, atol=0)


def families() -> dict[str, tuple[str, dict[str, object]]]:
    small = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {
        "qwen2": ("Qwen2", small), "qwen3": ("Qwen3", small), "mistral": ("Mistral", {**small, "sliding_window": 8}),
        "granite": ("Granite", {**small, "logits_scaling": 4.0}),
        "cohere": ("Cohere", {**small, "logit_scale": 0.25}),
        "gemma2": ("Gemma2", {**small, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}),
        "gpt2": ("GPT2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
                          "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.3}),
        "phi": ("Phi", {**small, "num_key_value_heads": 2}),  # a head with a bias
    }


def build(family: str) -> torch.nn.Module:
    import transformers

    name, fields = families()[family]
    torch.manual_seed(0)
    kind = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    return kind(getattr(transformers, f"{name}Config")(**fields)).eval()


@pytest.mark.parametrize("family", list(families()))
def test_other_families_have_the_plain_gradient_too(plain_loss: Callable, family: str) -> None:
    """With the scaling and capping of logits that some of them have."""
    model = build(family)
    draw = np.random.default_rng(0)
    rows = []
    for i in range(5):
        ids = [int(t) for t in draw.integers(3, 96, 6 + 4 * i)]
        rows.append(Row(str(i), "prefix", ids, [-100] * 4 + ids[4:]))
    wanted_loss = plain_loss(model, rows, Reduction.sequence)
    wanted_loss.backward()
    wanted = {name: g for name, g in ((n, p.grad) for n, p in model.named_parameters()) if g is not None}
    model.zero_grad()
    loss = step_loss(model, batch_of(rows, 60, Reduction.sequence))
    torch.testing.assert_close(loss, wanted_loss.detach(), rtol=1e-6, atol=0)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    assert_same(got, wanted, torch.float32)


def test_a_head_that_does_more_than_is_known_is_refused(tiny: Callable) -> None:
    model = tiny()
    forward = model.forward

    def odd(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = out.logits.roll(1, -1)
        return out

    model.forward = odd
    with pytest.raises(ModelError, match="neither those of its output head nor a known scaling"):
        models.take_apart(model)


def test_parameters_that_multiply(tiny: Callable) -> None:
    untied, tied = tiny(), tiny(tie_word_embeddings=True)
    table = 320 * 64
    total = sum(p.numel() for p in untied.parameters())
    assert models.head_parameters(untied) == models.head_parameters(tied) == table
    assert models.multiplied_parameters(untied) == total - table
    assert models.multiplied_parameters(tied) == total - table


def test_warm_up_rises_linearly_and_stays() -> None:
    assert [warmup(done, 100, 0.031) for done in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]  # ceil(3.1) = 4 steps
    assert [warmup(done, 10, 0.0) for done in range(3)] == [1.0, 1.0, 1.0]
    assert warmup(9, 10, 1.0) == 1.0
    assert warmup(0, 10, 1.0) == 0.1
