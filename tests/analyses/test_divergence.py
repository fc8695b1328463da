"""Divergences against probabilities written out and against a whole model's logits."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from upft import divergence, models
from upft.analyses.divergences import Apart, summary
from upft.console import Console
from upft.machine import ComputeConfig
from upft.prefix import trace_row

WEIGHTS = Path(__file__).parents[2] / "upft" / "toy" / "weights"


@pytest.fixture(scope="module")
def pair():
    base = models.load_model(WEIGHTS, torch.float32)
    trained = copy.deepcopy(base)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in trained.parameters():
            weight += 0.02 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    return base, trained


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    return [trace_row(f"q{n}", rng.integers(3, 200, 5 + n).tolist(), rng.integers(3, 200, 3 + 4 * n).tolist())
            for n in range(5)]


def test_every_token_is_that_of_the_whole_logits(pair, rows, tmp_path):
    found, flops = divergence.compare(lambda: pair, rows, ComputeConfig(micro_batch_tokens=64), tmp_path, Console(quiet=True))
    assert flops > 0
    for row, (forward, reverse) in zip(rows, found, strict=True):
        prompt = len(row.input_ids) - row.supervised
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([row.input_ids])).logits[0, prompt - 1:-1].double() for model in pair]
        p, q = (one.softmax(-1).numpy() for one in logits)
        assert forward.shape == (row.supervised,)
        np.testing.assert_allclose(forward, (p * np.log(p / q)).sum(-1), rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(reverse, (q * np.log(q / p)).sum(-1), rtol=1e-4, atol=1e-8)
        assert forward.min() > 0


def test_what_is_in_the_log_is_not_compared_again(pair, rows, tmp_path):
    first, _ = divergence.compare(lambda: pair, rows, ComputeConfig(), tmp_path, Console(quiet=True))

    def never():
        raise AssertionError("nothing is left to compare")

    again, _ = divergence.compare(never, rows, ComputeConfig(), tmp_path, Console(quiet=True))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    lines = (tmp_path / "finished.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "finished.jsonl").write_text("".join(lines[:2]))
    resumed, _ = divergence.compare(lambda: pair, rows, ComputeConfig(), tmp_path, Console(quiet=True))
    for one, other in zip(first, resumed, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
def test_chunks_change_nothing(pair, chunk):
    parts = [models.take_apart(copy.deepcopy(model).double()) for model in pair]  # else the head rounds with the chunk
    hidden = [torch.randn(17, pair[0].config.hidden_size, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1)]
    with torch.no_grad():
        forward, reverse = divergence.apart(*parts, *hidden, chunk=chunk)
        p, q = ((part.head(h)).double().softmax(-1) for part, h in zip(parts, hidden, strict=True))
    torch.testing.assert_close(forward, (p * (p / q).log()).sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(reverse, (q * (q / p).log()).sum(-1), rtol=1e-9, atol=1e-12)


def test_a_model_beside_itself_is_nothing_apart(pair, rows, tmp_path):
    found, _ = divergence.compare(lambda: (pair[0], pair[0]), rows, ComputeConfig(), tmp_path, Console(quiet=True))
    assert max(np.abs(one).max() for both in found for one in both) == 0


def test_summary_of_hand_made_traces():
    traces = [Apart("a", np.array([4.0, 2.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])),
              Apart("a", np.array([2.0, 0.0]), np.array([3.0, 3.0])),
              Apart("b", np.array([1.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.0]))]
    found = summary(traces, 2, 3, 0)
    assert (found["questions"], found["traces"], found["tokens"], found["t"], found["known"]) == (2, 3, 9, [1, 2, 3], [2, 2, 2])
    assert found["forward"]["mean"] == pytest.approx([(3 + 1) / 2, (1 + 1) / 2, (1 + 3) / 2])
    assert found["reverse"]["mean"] == pytest.approx([1, 1, 0.5])
    assert found["prefix"]["forward"]["mean"] == pytest.approx((2 + 1) / 2)  # a: (3 + 1)/2
    assert found["continuation"]["forward"]["mean"] == pytest.approx((1 + 3) / 2)
    # sums: a has (6 + 2)/2 on the prefix of (8 + 2)/2, b 2 of 5
    assert found["share"]["value"] == pytest.approx((4 + 2) / (5 + 5))
    assert found["sequence"]["mean"] == pytest.approx(5)
    assert found["tokens_share"] == pytest.approx((2 + 2) / (3 + 3))
    half = 12.706204736 * math.sqrt(2) / math.sqrt(2)  # t(0.975, 1) * sd / sqrt(2) of 3 and 1
    assert found["forward"]["high"][0] == pytest.approx(2 + half)
    assert found["forward"]["low"][0] == 0
    assert summary([Apart("a", np.array([1.0]), np.array([1.0]))], 2, 3, 0)["continuation"]["forward"] is None
