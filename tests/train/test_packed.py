"""Rows end to end: each token where its row has it, seen by whom its row lets see it, and by nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from upft import attention, matmul, models, packed, packing
from upft.choices import Reduction
from upft.errors import TrainError
from upft.prefix import UNSUPERVISED, Row
from upft.specs import LoraSpec
from upft.steps import step_batch, weighted_loss

SYSTEM = list(range(100, 112))


def row(name: str, prompt: list[int], completion: list[int]) -> Row:
    return Row(name, "prefix", prompt + completion, [UNSUPERVISED] * len(prompt) + completion)


def family() -> list[Row]:
    """A system prompt that most share, a question asked three times, a row inside another, and two loners."""
    question = [*SYSTEM, *range(200, 215)]
    return [
        row("a0", question, [5, 6, 7]), row("a1", question, [5, 6, 8, 9]), row("a2", question, [31]),
        row("b", [*SYSTEM, 41, 42], [43, 44, 45, 46]), row("c", [*SYSTEM, 61], [62, 2]),
        row("inside", SYSTEM[:10], SYSTEM[10:]), row("alone", [7, 7, 7], [8, 8]), row("other", [9], [10, 11, 12]),
        row("twin", [*SYSTEM, 41, 42], [43, 44, 45, 46]),
    ]


def seen_by_token(p: packed.Packed) -> list[list[int]]:
    """For each token, the ids it sees, in order, itself last."""
    out = []
    for s in range(len(p.starts) - 1):
        keys = p.key_index[p.key_starts[s]:p.key_starts[s + 1]]
        before = len(keys) - (p.starts[s + 1] - p.starts[s])
        out += [p.input_ids[keys[:before + i + 1]].tolist() for i in range(p.starts[s + 1] - p.starts[s])]
    return out


@pytest.mark.parametrize("share", [False, True])
def test_every_prediction_sees_its_own_row_up_to_there(share: bool) -> None:
    """By content: what a predicting token sees is the row's tokens up to it, and its target comes next."""
    rows = family()
    p = packed.pack(rows, share)
    seen = seen_by_token(p)
    for i, one in enumerate(rows):
        mine = np.flatnonzero(p.row == i)
        assert p.target[mine].tolist() == [x for x in one.labels if x != UNSUPERVISED]
        for n, place in enumerate(p.predictor[mine]):
            prompt = len(one.input_ids) - one.supervised
            assert seen[place] == one.input_ids[:prompt + n]
            assert p.positions[place] == prompt + n - 1, "positions count from the start of the row"
    assert p.lengths.tolist() == [len(r.input_ids) for r in rows]
    assert p.supervised.tolist() == [r.supervised for r in rows]
    assert p.pairs == sum(map(len, seen))


def test_without_sharing_each_row_is_a_segment() -> None:
    rows = family()
    p = packed.pack(rows, share=False)
    assert p.input_ids.tolist() == [t for r in rows for t in r.input_ids]
    assert p.key_index.tolist() == list(range(len(p.input_ids)))
    assert not p.shares
    assert p.positions.tolist() == [i for r in rows for i in range(len(r.input_ids))]


def test_what_rows_begin_with_is_laid_once() -> None:
    p = packed.pack(family())
    text = p.input_ids.tolist()
    assert p.shares
    assert [text.count(t) for t in SYSTEM] == [1] * len(SYSTEM), "the row inside another needs no tokens of its own"
    assert [text.count(t) for t in range(200, 215)] == [1] * 15, "the question asked three times"
    assert text.count(43) == 2, "less in common than is worth a segment: twins repeat their last six tokens"
    assert p.positions[text.index(200)] == len(SYSTEM)


def test_random_rows_lose_nothing_to_sharing() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        rows: list[Row] = []
        for i in range(12):
            start = rows[draw.integers(len(rows))].input_ids if rows and draw.random() < 0.7 else []
            ids = [*start[:draw.integers(0, len(start) + 1)], *draw.integers(1, 4, draw.integers(2, 25)).tolist()]
            rows.append(row(str(i), ids[:1], ids[1:]))
        p = packed.pack(rows)
        seen = seen_by_token(p)
        for i, one in enumerate(rows):
            wanted = [one.input_ids[:n + 1] for n in range(len(one.labels) - 1)]
            assert [seen[place] for place in p.predictor[p.row == i]] == wanted


def test_a_row_that_predicts_nothing_is_refused() -> None:
    with pytest.raises(TrainError, match="question q has no supervised token that a token precedes"):
        packed.pack([Row("q", "prefix", [3, 4], [3, UNSUPERVISED])])


def test_large_micro_batches_are_filled_up_with_tokens_that_serve_nobody() -> None:
    rows = [row(str(i), list(range(5 + i, 90 + i)), [3, 4, 5]) for i in range(12)]
    plain, filled = packed.pack(rows, share=False), packed.pack(rows, share=False, fill=True)
    assert len(plain.input_ids) == 12 * 88 == 1056
    assert (len(filled.input_ids), filled.filler, plain.filler) == (1088, 32, 0)
    assert filled.input_ids[:1056].tolist() == plain.input_ids.tolist()
    assert filled.predictor.tolist() == plain.predictor.tolist()
    assert (filled.pairs, filled.shared) == (plain.pairs, plain.shared)
    seen = seen_by_token(filled)
    assert seen[:1056] == seen_by_token(plain)
    assert seen[1056:] == [[0] * (i + 1) for i in range(32)], "filler sees filler only"
    assert packed.pack(rows[:3], fill=True).filler == 0, "too few tokens to be worth it"


@pytest.mark.parametrize("share", [False, True])
def test_filler_changes_no_gradient(tiny: Callable, share: bool) -> None:
    draw = random.Random(4)
    system = [draw.randrange(1, 320) for _ in range(12)]
    rows = [row(str(i), system + [draw.randrange(1, 320) for _ in range(60 + i)], [draw.randrange(1, 320) for _ in range(9)])
            for i in range(16)]
    model = tiny().double()
    parts, found = models.take_apart(model), []
    with attention.installed(model):
        for fill in (False, True):
            batch = step_batch([(packed.pack(rows, share, fill), [r.question_id for r in rows])], Reduction.sequence)
            loss = weighted_loss(parts, batch.micro_batches[0])
            loss.backward()
            found.append((float(loss.detach()), batch, {n: p.grad.clone() for n, p in model.named_parameters()}))
            model.zero_grad()
    (plain, without, wanted), (filled, with_, got) = found
    assert (without.padding, with_.padding) == (0, -len(without.micro_batches[0].input_ids) % 64)
    assert with_.padding > 0
    assert (with_.tokens, with_.shared, with_.pairs) == (without.tokens, without.shared, without.pairs)
    assert filled == pytest.approx(plain, rel=1e-13)
    for name in wanted:
        assert (got[name] - wanted[name]).norm() <= 1e-12 * wanted[name].norm(), name


def test_tiles_hold_each_token_once_with_the_keys_it_may_see() -> None:
    p = packed.pack(family())
    tiles, places = p.tiles()
    queries = np.concatenate([t.queries.reshape(-1) for t in tiles])
    assert queries[places].tolist() == list(range(len(p.input_ids)))
    seen, laid = seen_by_token(p), 0
    for tile in tiles:
        for b in range(len(tile.queries)):
            for i in range(tile.queries.shape[1]):
                token = tile.queries[b, i]
                if places[token] == laid + b * tile.queries.shape[1] + i:
                    assert p.input_ids[tile.keys[b, :tile.before + i + 1]].tolist() == seen[token]
        laid += tile.queries.size


def packed_loss(model: torch.nn.Module, rows: list[Row], bins: list[list[int]], share: bool,
                reduction: Reduction) -> torch.Tensor:
    """The step's loss over micro-batches `bins` (indices of rows); gradients add up."""
    parts = models.take_apart(model)
    batch = step_batch([(packed.pack([rows[i] for i in some], share), [rows[i].question_id for i in some]) for some in bins],
                       reduction)
    total = torch.zeros((), dtype=torch.float64)
    with attention.installed(model):
        for micro in batch.micro_batches:
            loss = weighted_loss(parts, micro)
            loss.backward()
            total += loss.detach()
    return total


def taken_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    out = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return out


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_the_plain_one_however_rows_are_packed(
        tiny: Callable, plain_loss: Callable, reduction: Reduction, adapted: bool, dtype: torch.dtype) -> None:
    """Against one row at a time with F.cross_entropy: sharing or not, one micro-batch or several, any order; full
    and with adapters. Norms compute in fp32 inside the model, so in fp64 what is shared rounds at 1e-7."""
    model, rows = tiny(tie_word_embeddings=True).to(dtype), family()
    if adapted:
        from upft import adapters

        adapters.attach(model, LoraSpec(4, 8.0, 0.0, None, False), seed=1)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        model.to(dtype)
    wanted_loss = plain_loss(model, rows, reduction)
    wanted_loss.backward()
    wanted = taken_gradients(model)
    assert adapted == all("lora" in name for name in wanted)
    order = list(range(len(rows)))
    cuts = [[order], [order[::-1]], [[i] for i in order], [[8, 0, 5], [1, 7, 2, 4], [3, 6]]]
    for share in (False, True):
        for bins in cuts:
            loss = packed_loss(model, rows, bins, share, reduction)
            within = 1e-5 if dtype is torch.float32 else 1e-6 if share else 1e-12
            torch.testing.assert_close(loss, wanted_loss.detach().double(), rtol=within, atol=0)
            got = taken_gradients(model)
            assert got.keys() == wanted.keys()
            for name in wanted:
                assert wanted[name].norm() > 0, name
                assert (got[name] - wanted[name]).norm() <= within * wanted[name].norm(), (name, share, bins)


def test_packed_rows_cannot_see_each_other(tiny: Callable) -> None:
    """One row is changed; every other row's loss stays the same bit for bit, and its own does not."""
    model, rows = tiny(), [row(str(i), [3 + i, 50, 60 + i], [70 + i, 80, 90 + i]) for i in range(6)]
    parts = models.take_apart(model)

    def losses(some: list[Row]) -> list[float]:
        out = []
        p = packed.pack(some, share=False)
        for i in range(len(some)):
            batch = step_batch([(p, [])], Reduction.token)
            micro = batch.micro_batches[0]
            micro.weight = torch.from_numpy((p.row == i).astype(float))
            with attention.installed(model), torch.no_grad():
                out.append(float(weighted_loss(parts, micro)))
        return out

    before = losses(rows)
    for k in range(6):
        changed = list(rows)
        changed[k] = row(str(k), [200, 201, 202], [210, 211, 212])
        after = losses(changed)
        assert [i for i in range(6) if after[i] != before[i]] == [k]


def test_a_changed_row_moves_nobody_else_in_a_tree_either(tiny: Callable) -> None:
    model, rows = tiny().double(), family()
    parts = models.take_apart(model)

    def hidden(some: list[Row]) -> dict[str, torch.Tensor]:
        p = packed.pack(some)
        micro = step_batch([(p, [])], Reduction.token).micro_batches[0]
        with attention.installed(model), torch.no_grad():
            states = parts.body(input_ids=micro.input_ids[None], position_ids=micro.positions[None], use_cache=False,
                                packed_rows=micro.rows).last_hidden_state[0]
        return {r.question_id: states[p.predictor[p.row == i]] for i, r in enumerate(some)}

    before = hidden(rows)
    changed = list(rows)
    changed[1] = row("a1", rows[1].input_ids[:-4], [5, 6, 99, 98])  # a brother that shares 27 tokens with others
    after = hidden(changed)
    for name in before:
        same = torch.allclose(before[name], after[name], rtol=1e-6, atol=1e-8)
        assert same == (name != "a1"), name


def test_a_sliding_window_is_kept(plain_loss: Callable) -> None:
    """Mistral with a window of 8 and rows of up to 31 tokens, some behind a shared beginning."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_key_value_heads=1, head_dim=16, sliding_window=8, initializer_range=0.3)).eval()
    rows = family()
    wanted = plain_loss(model, rows, Reduction.sequence)
    wanted.backward()
    gradients = taken_gradients(model)
    for share in (False, True):
        loss = packed_loss(model, rows, [list(range(len(rows)))], share, Reduction.sequence)
        torch.testing.assert_close(loss.float(), wanted.detach(), rtol=1e-6, atol=0)
        got = taken_gradients(model)
        for name in gradients:
            assert (got[name] - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name
    model.config.sliding_window = None
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    assert abs(float((plain_loss(model, rows, Reduction.sequence) - wanted).detach())) > 1e-3, "the window was to matter"


def test_a_model_that_mixes_rows_is_found_out(tiny: Callable) -> None:
    """An architecture with state beyond attention (here: each token gets a bit of the one before) is not packed."""
    model = tiny()
    parts = models.take_apart(model)
    assert attention.fits(model, parts.body, tiled=True) is None
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: output + 0.1 * torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1])
    assert "do not get what each gets alone" in str(attention.fits(model, parts.body, tiled=True))


def test_attention_is_put_back(tiny: Callable) -> None:
    model = tiny()
    before, ids = model.config._attn_implementation, torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        wanted = model(ids).logits
        with attention.installed(model):
            assert model.config._attn_implementation == attention.NAME
            torch.testing.assert_close(model(ids).logits, wanted)  # a pass without packed rows is an ordinary one
        assert model.config._attn_implementation == before
        assert torch.equal(model(ids).logits, wanted)


@pytest.mark.parametrize("layout", ["pieces", "padded"])
def test_bf16_products_in_fp32_are_bf16_products(tiny: Callable, make_rows: Callable, layout: str) -> None:
    """Widened products differ from PyTorch's own by less than bf16's rounding does from fp32."""
    rows = make_rows(9)

    def gradient(dtype: torch.dtype, wide: bool, autocast: bool = False) -> dict[str, torch.Tensor]:
        model = tiny().to(dtype)
        parts = models.take_apart(model)
        laid = [packed.pack(rows)] if layout == "pieces" else [packing.pad(rows)]
        batch = step_batch([(x, []) for x in laid], Reduction.token)
        with attention.installed(model), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if wide:
                with matmul.widened(model):
                    weighted_loss(parts, batch.micro_batches[0]).backward()
                assert "forward" not in vars(model.lm_head), "the layers are left as they were"
            else:
                weighted_loss(parts, batch.micro_batches[0]).backward()
        return {name: p.grad.float() for name, p in model.named_parameters()}

    exact = gradient(torch.float32, wide=False)
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        own, wide = gradient(dtype, False, autocast), gradient(dtype, True, autocast)
        error = {k: float((g - exact[k]).norm() / exact[k].norm()) for k, g in own.items()}
        mine = {k: float((g - exact[k]).norm() / exact[k].norm()) for k, g in wide.items()}
        assert 0 < max(mine.values()) < 0.1
        assert np.mean(list(mine.values())) <= 1.1 * np.mean(list(error.values()))
    for name, g in gradient(torch.float32, wide=True).items():
        assert torch.equal(g, exact[name]), "fp32 is left alone"
