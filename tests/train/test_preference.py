"""DPO: its value against TRL's and by hand, its gradient against finite differences and a plain graph, its training against
a plain loop, whatever the packing; interrupted or on two ranks, the same."""

from __future__ import annotations

import importlib.util
import math
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from upft import batches, checkpoint, fit, models, packing, preference, scoring
from upft.choices import Layout, Precision, Reduction
from upft.console import Console
from upft.errors import StoreError
from upft.machine import ComputeConfig
from upft.packed import pack
from upft.prefix import UNSUPERVISED, Row
from upft.ranks import World
from upft.steps import Preference, step_batch, weighted_loss

POLICY = torch.tensor([-3.0, -4.5, -10.25, -9.0, -0.5, -20.0, -7.0, -7.0], dtype=torch.float64)
REFERENCE = torch.tensor([-3.5, -4.0, -10.0, -10.0, -0.5, -20.0, -8.0, -6.0], dtype=torch.float64)
BETA = 0.3


def by_hand(policy: list[float], reference: list[float], beta: float) -> list[float]:
    """-log(1 / (1 + exp(-x))) of each pair, in Python's floats."""
    out = []
    for i in range(0, len(policy), 2):
        x = beta * ((policy[i] - reference[i]) - (policy[i + 1] - reference[i + 1]))
        out.append(math.log(1 + math.exp(-x)))
    return out


def test_loss_is_the_formula() -> None:
    got = preference.dpo(POLICY, REFERENCE, BETA)
    assert got.tolist() == pytest.approx(by_hand(POLICY.tolist(), REFERENCE.tolist(), BETA), rel=1e-14)
    # gained: 0.5 against -0.5; -0.25 against 1; nothing; 1 against -1
    assert preference.margins(POLICY, REFERENCE).tolist() == pytest.approx([1.0, -1.25, 0.0, 2.0])
    assert got[2].item() == pytest.approx(math.log(2))
    far = preference.dpo(torch.tensor([0.0, -4000.0]), torch.tensor([0.0, 0.0]), 1.0)
    assert far.item() == 0.0, "no overflow on either side"
    assert preference.dpo(torch.tensor([-4000.0, 0.0]), torch.tensor([0.0, 0.0]), 1.0).item() == 4000.0


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (the bench extra brings it)")
def test_loss_is_that_of_trl() -> None:
    """TRL's own loss code over our log-probabilities: each row's is laid on its first completion token."""
    from trl.trainer.dpo_trainer import DPOTrainer

    pairs = len(POLICY) // 2
    chosen_first = torch.cat([POLICY[0::2], POLICY[1::2]])
    tokens = torch.zeros(2 * pairs, 3, dtype=torch.float64)
    tokens[:, 0] = chosen_first
    mask = torch.ones(2 * pairs, 4, dtype=torch.long)
    mask[:, 0] = 0

    def model(**_: object) -> SimpleNamespace:
        return SimpleNamespace(log_probs=tokens, entropy=tokens, mean_logits=tokens, is_top1=tokens > 0)

    def same(x: torch.Tensor) -> torch.Tensor:
        return x

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0], beta=BETA, use_weighting=False,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1)
    inputs = {"input_ids": torch.zeros(2 * pairs, 4, dtype=torch.long), "attention_mask": mask, "completion_mask": mask,
              "ref_chosen_logps": REFERENCE[0::2], "ref_rejected_logps": REFERENCE[1::2]}
    theirs = DPOTrainer._compute_loss(trainer, model, inputs, False)
    assert preference.dpo(POLICY, REFERENCE, BETA).mean().item() == pytest.approx(theirs.item(), rel=1e-12)
    assert trainer._metrics["train"]["rewards/margins"] == [pytest.approx(
        BETA * preference.margins(POLICY, REFERENCE).mean().item(), rel=1e-12)]


@pytest.fixture
def pairs() -> Callable[[int], list[Row]]:
    """pairs(count) -> rows 2n and 2n + 1 with one prompt and unlike completions; some share a beginning."""

    def make(count: int) -> list[Row]:
        draw, rows = random.Random(count), []
        for i in range(count):
            prompt = [draw.randrange(1, 300) for _ in range(draw.randint(2, 12))]
            common = [draw.randrange(1, 300) for _ in range(draw.choice((0, 9)))]
            for kind in ("right", "wrong"):
                completion = [*common, *(draw.randrange(1, 300) for _ in range(draw.choice((1, 3, 25))))]
                rows.append(Row(f"q{i}", kind, prompt + completion, [UNSUPERVISED] * len(prompt) + completion))
        return rows

    return make


def log_probability(model: Callable, row: Row) -> torch.Tensor:
    """Of the supervised tokens, summed, by the book."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(row.labels[1:])
    return logits[labels != UNSUPERVISED].gather(-1, labels[labels != UNSUPERVISED][:, None]).sum()


def plain(model: Callable, rows: list[Row], reference: np.ndarray, beta: float) -> torch.Tensor:
    """Mean DPO loss over pairs, an ordinary graph over whole rows, one at a time."""
    losses = []
    for i in range(0, len(rows), 2):
        gained = [log_probability(model, rows[j]) - float(reference[j]) for j in (i, i + 1)]
        losses.append(-torch.log(torch.sigmoid(beta * (gained[0] - gained[1]))))
    return torch.stack(losses).mean()


def reference_of(rows: list[Row]) -> np.ndarray:
    draw = np.random.default_rng(1)
    return np.array([-6.0 * r.supervised for r in rows]) + draw.normal(0, 3, len(rows))


@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
def test_loss_and_gradient_of_a_step_are_those_of_a_plain_graph(tiny: Callable, pairs: Callable, layout: Layout) -> None:
    from upft import attention

    rows, wanted, got = pairs(6), tiny().double(), tiny().double()
    reference = reference_of(rows)
    loss = plain(wanted, rows, reference, BETA)
    loss.backward()
    parts = models.take_apart(got)
    cuts = [rows[:4], rows[4:]]
    laid = [(pack(cut) if layout is Layout.packed else packing.pad(cut), []) for cut in cuts]
    step = step_batch(laid, Reduction.sequence, preference=Preference(BETA, [reference[:4], reference[4:]]))
    total = 0.0
    with attention.installed(got) if layout is Layout.packed else torch.enable_grad():
        for micro in step.micro_batches:
            one = weighted_loss(parts, micro)
            one.backward()
            total += one.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for (name, p), (_, q) in zip(got.named_parameters(), wanted.named_parameters(), strict=True):
        assert (p.grad - q.grad).norm() <= 1e-6 * q.grad.norm(), name  # Llama's norms and angles are fp32 whatever the weights
    if layout is Layout.padded:
        with torch.no_grad():  # another path: no graph, no surrogate
            assert sum(weighted_loss(parts, m).item() for m in step.micro_batches) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("chunk", [7, 10**6])
def test_gradient_is_the_slope_of_the_loss(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences in fp64, of the states and of the head, with logits in one piece and a position at a time."""
    monkeypatch.setattr(preference, "CHUNK", chunk)
    torch.manual_seed(0)
    output = torch.nn.Linear(5, 7, bias=False).double()
    parts = models.Parts(output, output, 7, output)
    row = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    target = torch.randint(0, 7, (10,))
    pairs = preference.PairTensors(row, torch.tensor([-5.0, -1.0, -4.0, -9.0], dtype=torch.float64),
                                   torch.tensor([0.25, 0.75], dtype=torch.float64), BETA)
    hidden = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)

    def loss(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            output.weight.copy_(weight)
        return preference.pair_loss(parts, states, target, pairs)

    weight, step = output.weight.detach().clone(), 1e-6
    loss(hidden, weight).backward()
    for tensor, gradient in ((hidden.detach(), hidden.grad), (weight, output.weight.grad)):
        for place in range(tensor.numel()):
            values = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved.view(-1)[place] += sign * step
                states, head = (moved, weight) if tensor is not weight else (hidden.detach(), moved)
                values.append(loss(states, head).item())
            assert gradient.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
def test_log_probabilities_are_the_models_and_survive_an_interruption(
        tiny: Callable, pairs: Callable, tmp_path: Path, layout: Layout) -> None:
    rows, model = pairs(8), tiny()
    compute = ComputeConfig(micro_batch_tokens=60, layout=layout)
    got = scoring.score(lambda: model, rows, Precision.fp32, compute, tmp_path / "log", Console(quiet=True), "scoring")
    with torch.no_grad():
        wanted = [log_probability(model, row).item() for row in rows]
    assert got.logprobs.tolist() == pytest.approx(wanted, rel=1e-4)
    assert got.tokens == sum(len(row.input_ids) for row in rows)
    log = tmp_path / "log" / "finished.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) > 2
    log.write_bytes(b"".join(lines[:-2]) + lines[-1][:7])  # killed while it wrote

    calls = 0

    def load() -> object:
        nonlocal calls
        calls += 1
        return model

    again = scoring.score(load, rows, Precision.fp32, compute, tmp_path / "log", Console(quiet=True), "scoring")
    assert again.logprobs.tolist() == pytest.approx(wanted, rel=1e-4)
    assert again.flops == pytest.approx(got.flops, rel=0.2), "what was paid before the interruption counts"
    scoring.score(load, rows, Precision.fp32, compute, tmp_path / "log", Console(quiet=True), "scoring")
    assert calls == 1, "the third finds everything there and loads nothing"
    scoring.write(tmp_path, got.logprobs)
    assert scoring.read(tmp_path).tolist() == got.logprobs.tolist()
    with pytest.raises(StoreError, match="cannot be read"):
        scoring.read(tmp_path / "log")


def test_a_pair_never_leaves_its_micro_batch_and_batch_size_counts_pairs(pairs: Callable) -> None:
    rows = pairs(10)
    lengths = np.array([len(r.input_ids) for r in rows])
    supervised = np.array([r.supervised for r in rows])
    reference = np.arange(20.0)
    for layout in (Layout.packed, Layout.padded):
        for ranks in (1, 2):
            seen: list[str] = []
            for rank in range(ranks):
                steps = batches.Steps(rows, lengths, supervised, batch_size=4, epochs=1, seed=0, reduction=Reduction.sequence,
                                      micro_batch_tokens=50, layout=layout, share=True, tiled=True, world=World(rank, ranks),
                                      start=0, preference=(BETA, reference))
                assert len(steps) == 3
                for step in steps:
                    weight = 0.0
                    for micro in step.micro_batches:
                        if micro.pairs is None:
                            continue  # an idle pass
                        ids = micro.question_ids
                        assert ids[0::2] == ids[1::2]
                        numbers = [2 * int(q[1:]) + place for q in ids[0::2] for place in (0, 1)]
                        assert micro.pairs.reference.tolist() == [float(n) for n in numbers]
                        assert len(micro.pairs.weight) == len(ids) // 2
                        weight += micro.pairs.weight.sum().item()
                        seen += ids[0::2]
                    if ranks == 1:
                        assert weight == pytest.approx(1)
            assert sorted(seen) == sorted(f"q{i}" for i in range(10))


def test_training_is_that_of_a_plain_loop_and_starts_at_log_2(
        tiny: Callable, pairs: Callable, settings: Callable, tmp_path: Path) -> None:
    rows, s = pairs(7), settings(batch_size=3, epochs=2, eps=1e-3, lr=1e-3)
    wanted, got, base = tiny(), tiny(), tiny()
    with torch.no_grad():
        reference = np.array([log_probability(base, row).item() for row in rows])
    optimizer = torch.optim.AdamW(wanted.parameters(), lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps, weight_decay=0)
    losses, rewards = [], []
    for epoch in range(2):
        order = packing.epoch_order(7, epoch, 5)
        for start in range(0, 7, 3):
            these = [2 * i + place for i in order[start:start + 3] for place in (0, 1)]
            with torch.no_grad():
                rewards.append(BETA * np.array([log_probability(wanted, rows[i]).item() - reference[i] for i in these]))
            loss = plain(wanted, [rows[i] for i in these], reference[these], BETA)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    records: list[dict] = []
    fitted = fit.fit(got, rows, s, 5, ComputeConfig(micro_batch_tokens=90), tmp_path, records.append,
                     preference=(BETA, reference))
    assert (fitted.steps, fitted.layout) == (6, "packed")
    assert [r["rows"] for r in records] == [6, 6, 2] * 2
    assert [r["loss"] for r in records] == pytest.approx(losses, rel=1e-4)
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert [records[0][f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx([0] * 3, abs=1e-5)
    for record, each in zip(records[1:], rewards[1:], strict=True):
        chosen, rejected = each[0::2], each[1::2]
        assert record["rewards/chosen"] == pytest.approx(chosen.mean(), rel=1e-3)
        assert record["rewards/rejected"] == pytest.approx(rejected.mean(), rel=1e-3)
        assert record["rewards/margins"] == pytest.approx((chosen - rejected).mean(), rel=1e-3)
        assert record["rewards/accuracies"] == pytest.approx((chosen > rejected).mean())
    assert 0 < records[1]["rewards/accuracies"] <= 1
    assert fitted.supervised_tokens == 2 * sum(r.supervised for r in rows)
    models_ = (got, wanted, base)
    for (name, p), (_, q), (_, r) in zip(*(m.named_parameters() for m in models_), strict=True):
        assert (p - q).norm() < 1e-3 * (q - r).norm(), name
    with torch.no_grad():
        gained = torch.tensor([log_probability(got, row).item() for row in rows]) - torch.tensor(reference)
    assert (gained[0::2] > gained[1::2]).double().mean() > 0.8, "it has learnt to prefer the right ones"


@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
def test_stopped_and_resumed_it_ends_with_the_same_bits(
        tiny: Callable, pairs: Callable, settings: Callable, tmp_path: Path, layout: Layout) -> None:
    rows = pairs(9)
    reference = reference_of(rows)

    class Stop(Exception):
        pass

    def run(into: Path, stop: int | None) -> tuple[torch.nn.Module, list[dict]]:
        records: list[dict] = []

        def report(record: dict) -> None:
            records.append(record)
            if record["step"] == stop:
                raise Stop

        model = tiny()
        found = checkpoint.latest(into) if into.is_dir() else None
        try:
            fit.fit(model, rows, settings(batch_size=2, epochs=2), 0,
                    ComputeConfig(checkpoint_every_s=0, layout=layout, micro_batch_tokens=80), tmp_path, report,
                    checkpoints=into, resume=found, preference=(BETA, reference))
        except Stop:
            return run(into, None)
        return model, records

    whole, _ = run(tmp_path / "a", None)
    resumed, records = run(tmp_path / "b", 6)
    assert 0 < len(records) < 10
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
