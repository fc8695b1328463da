"""A whole training in memory: against plain PyTorch, twice the same, and stopped in the ways it can be."""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console as RichConsole

from upft import packing
from upft.choices import Accelerator, Layout, Precision, Reduction
from upft.console import Console
from upft.errors import ConfigError, TrainError
from upft.fit import Fitted, fit
from upft.machine import ComputeConfig
from upft.prefix import UNSUPERVISED, Row, read_rows, write_rows
from upft.specs import LoraSpec
from upft.training import TrainConfig


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def plain_training(plain_loss: Callable, model: torch.nn.Module, rows: list[Row], s: TrainConfig, seed: int) -> list[float]:
    """The same training with nothing packed, cut or fused. Returns the gradient norms."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0}],
                                  lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps, fused=False)
    steps = math.ceil(len(rows) / s.batch_size) * s.epochs
    rising = math.ceil(s.warmup_ratio * steps)
    done, norms = 0, []
    for epoch in range(s.epochs):
        order = packing.epoch_order(len(rows), epoch, seed)
        for start in range(0, len(rows), s.batch_size):
            plain_loss(model, [rows[i] for i in order[start:start + s.batch_size]], s.reduction).backward()
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
            if s.grad_clip is not None and norms[-1] > s.grad_clip:
                for p in model.parameters():
                    p.grad *= s.grad_clip / norms[-1]
            for group in optimizer.param_groups:
                group["lr"] = s.lr * (min(1, (done + 1) / rising) if rising else 1)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
    return norms


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("limit", [25, 10_000])
@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
def test_weights_after_some_steps_are_those_of_a_plain_loop(
        tiny: Callable, make_rows: Callable, settings: Callable, plain_loss: Callable, tmp_path: Path,
        layout: Layout, reduction: Reduction, limit: int) -> None:
    """Warm-up, clipping, decay, a smaller last step and a second epoch included. AdamW's epsilon is large here,
    as its division makes rounding of a gradient near 0 visible otherwise."""
    rows = make_rows(14)
    s = settings(reduction=reduction, epochs=2, warmup_ratio=0.5, grad_clip=0.5, weight_decay=0.1, eps=1e-3, lr=1e-3)
    wanted, got = tiny(), tiny()
    before = weights(wanted)
    norms = plain_training(plain_loss, wanted, rows, s, seed=3)
    records: list[dict] = []
    fitted = fit(got, rows, s, 3, ComputeConfig(micro_batch_tokens=limit, layout=layout), tmp_path, records.append)
    assert fitted.layout == layout.name
    assert fitted.steps == len(records) == 6
    assert [r["rows"] for r in records] == [6, 6, 2] * 2
    assert [r["lr"] for r in records] == pytest.approx([s.lr / 3, s.lr * 2 / 3, s.lr, s.lr, s.lr, s.lr])
    assert min(norms) > s.grad_clip, "every step was to be clipped"
    assert [r["grad_norm"] for r in records] == pytest.approx(norms, rel=1e-4)
    for name, p in weights(got).items():
        moved = (weights(wanted)[name] - before[name]).norm()
        assert (p - weights(wanted)[name]).norm() < 1e-4 * moved, name


def test_the_same_call_gives_the_same_weights_bit_for_bit(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    rows, results = make_rows(20), []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what the caller did with the global generators does not matter
        model = tiny(attention_dropout=0.2)  # dropout draws numbers, from the run's seed
        torch.manual_seed(noise)
        fit(model, rows, settings(), 0, ComputeConfig(), tmp_path)
        results.append((weights(model), torch.rand(1)))
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert results[0][1] != results[1][1], "training must not reseed its caller"
    other = tiny(attention_dropout=0.2)
    fit(other, rows, settings(), 1, ComputeConfig(), tmp_path)
    assert any(not torch.equal(results[0][0][name], p) for name, p in weights(other).items())


SYSTEM = list(range(200, 212))


def rows_with_a_system_prompt(count: int) -> list[Row]:
    """SYSTEM, then a token of its own, so that no two rows have more than SYSTEM in common."""
    rows = []
    for i in range(count):
        prompt, completion = [*SYSTEM, 100 + i, 7, 8], [20 + j for j in range(1 + 3 * (i % 5))]
        rows.append(Row(f"q{i}", "prefix", prompt + completion, [UNSUPERVISED] * len(prompt) + completion))
    return rows


@pytest.mark.parametrize(("layout", "share", "limit"), [
    (Layout.padded, True, 60), (Layout.packed, False, 60), (Layout.packed, True, 10_000)])
def test_rows_on_disk_train_like_rows_in_memory_and_counts_are_those_by_hand(
        tiny: Callable, settings: Callable, tmp_path: Path, layout: Layout, share: bool, limit: int) -> None:
    rows, results = rows_with_a_system_prompt(10), []
    write_rows(tmp_path / "rows.arrow", rows)
    for source in (rows, read_rows(tmp_path / "rows.arrow")):
        model, records = tiny(), []
        compute = ComputeConfig(micro_batch_tokens=limit, layout=layout, share_prompts=share)
        fitted = fit(model, source, settings(epochs=2), 0, compute, tmp_path, records.append)
        results.append((weights(model), fitted))
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert results[0][1] == results[1][1]
    tokens, supervised = sum(len(row.input_ids) for row in rows), sum(row.supervised for row in rows)
    assert fitted.forward_tokens == 2 * tokens == sum(r["tokens"] for r in records)
    assert fitted.supervised_tokens == 2 * supervised == sum(r["supervised_tokens"] for r in records)
    lengths = np.array([len(row.input_ids) for row in rows])
    padded = sum(m.tokens for s in packing.plan_steps(lengths, 6, 60, 2, 0) for m in s.micro_batches)
    assert padded > 2 * tokens, "some padding was to be counted"
    padding = padded - 2 * tokens if layout is Layout.padded else 0
    assert fitted.padding_tokens == padding == sum(r["padding_tokens"] for r in records)
    # an epoch's two steps are one micro-batch each: of 6 rows 5 find the system prompt computed, of 4 rows 3
    found = 5 + 3 if layout is Layout.packed and share else 0
    assert fitted.shared_tokens == 2 * found * 12 == sum(r["shared_tokens"] for r in records)
    # 2 layers of q, k, v, o, three matrices of the MLP and two norms, and the last norm; the head apart
    body = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    pairs = sum(n * (n + 1) / 2 for n in lengths) - found * 12 * 13 / 2
    by_hand = 3 * 2 * (2 * body * (tokens - found * 12) + 4 * 2 * 64 * pairs + 2 * 64 * 320 * supervised)
    assert fitted.flops == pytest.approx(by_hand, rel=1e-12)


def test_operations_with_adapters_are_those_by_hand(tiny: Callable, settings: Callable, tmp_path: Path) -> None:
    """A frozen weight passes a gradient on and gets none of its own: 4 operations a token instead of 6."""
    from upft import adapters

    rows, model = rows_with_a_system_prompt(10), tiny()
    adapters.attach(model, LoraSpec(4, 8.0, 0.0, ("q_proj", "v_proj"), False), seed=0)
    fitted = fit(model, rows, settings(), 0, ComputeConfig(share_prompts=False), tmp_path)
    tokens, supervised = sum(len(row.input_ids) for row in rows), sum(row.supervised for row in rows)
    body = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    added = 2 * 4 * ((64 + 64) + (64 + 32))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == added
    attention = 3 * 4 * 2 * 64 * sum(n * (n + 1) / 2 for n in (len(row.input_ids) for row in rows))
    by_hand = (4 * body + 6 * added) * tokens + 4 * 64 * 320 * supervised + attention
    assert fitted.flops == pytest.approx(by_hand, rel=1e-12)


def test_a_learnable_toy_is_learnt(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    records: list[dict] = []
    fitted = fit(tiny(initializer_range=0.02), make_rows(60), settings(epochs=8, batch_size=12), 0, ComputeConfig(),
                 tmp_path, records.append)
    losses = [r["loss"] for r in records]
    assert (fitted.first_loss, fitted.last_loss) == (losses[0], losses[-1])
    assert losses[0] == pytest.approx(math.log(320), rel=0.05), "a fresh model guesses"
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert [r["step"] for r in records] == list(range(1, 41))
    assert all(b["seconds"] >= a["seconds"] for a, b in itertools.pairwise(records))
    assert all(r["tokens_per_s"] > 0 for r in records)


def test_bf16_keeps_fp32_master_weights(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    """Steps far smaller than a bf16 weight can show must add up, and the arithmetic must really be bf16."""
    model, seen = tiny(), set()
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    before, losses = weights(model), []
    fit(model, make_rows(12), settings(lr=1e-6, epochs=3, precision=Precision.bf16_mixed), 0, ComputeConfig(),
        tmp_path, lambda r: losses.append(r["loss"]))
    assert torch.bfloat16 in seen
    after = weights(model)
    assert all(p.dtype == torch.float32 for p in after.values())
    for name in before:
        change = (after[name] - before[name]).abs()
        assert 0 < float(change.max()) <= 6 * 1.1e-6, name
        assert not torch.equal(after[name], after[name].bfloat16().float()), name
    exact = tiny()
    wanted: list[float] = []
    fit(exact, make_rows(12), settings(lr=1e-6, epochs=3), 0, ComputeConfig(), tmp_path, lambda r: wanted.append(r["loss"]))
    assert losses == pytest.approx(wanted, rel=0.02)
    assert losses != wanted


@pytest.mark.parametrize("precision", [Precision.bf16_stochastic, Precision.bf16])
def test_weights_in_bf16_stay_so_and_learn(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path, precision: Precision) -> None:
    model, losses = tiny(initializer_range=0.02).bfloat16(), []
    fit(model, make_rows(60), settings(epochs=8, batch_size=12, precision=precision), 0, ComputeConfig(), tmp_path,
        lambda r: losses.append(r["loss"]))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert losses[0] == pytest.approx(math.log(320), rel=0.05), "a fresh model guesses"
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def gemma(seed: int = 0) -> torch.nn.Module:
    """An architecture whose attention scores are capped, which packed rows know nothing of."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    return Gemma2ForCausalLM(Gemma2Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_key_value_heads=1,
        head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=5.0, pad_token_id=0, bos_token_id=1,
        eos_token_id=2)).eval()


def test_a_model_that_cannot_be_packed_is_padded_and_says_so(make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    rows, results = make_rows(12), {}
    for layout in (Layout.auto, Layout.padded):
        model, said = gemma(), io.StringIO()
        fitted = fit(model, rows, settings(), 0, ComputeConfig(layout=layout), tmp_path,
                     console=Console(rich=RichConsole(file=said, width=200)))
        assert fitted.layout == "padded"
        assert not model.training
        results[layout] = (weights(model), said.getvalue())
    before, (auto, said), (padded, silence) = weights(gemma()), results[Layout.auto], results[Layout.padded]
    assert "rows are padded: Gemma2ForCausalLM cannot take them end to end (attention with softcap)" in said
    assert "padded" not in silence
    assert all(torch.equal(auto[name], padded[name]) for name in auto)
    assert any(not torch.equal(auto[name], before[name]) for name in auto)
    with pytest.raises(ConfigError, match=r"compute\.layout=packed: Gemma2ForCausalLM .*softcap") as caught:
        fit(gemma(), rows, settings(), 0, ComputeConfig(layout=Layout.packed), tmp_path)
    assert "compute.layout=padded" in caught.value.remedy


@pytest.mark.slow
def test_compiled_layers_train_to_the_same_weights(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    """AdamW's epsilon is large here, as its division makes rounding of a gradient near 0 visible otherwise."""
    from torch._dynamo.utils import counters

    results, graphs = [], []
    before = weights(tiny())
    for compiled in (False, True):
        model = tiny()
        counters.clear()
        fit(model, make_rows(12), settings(epochs=2, eps=1e-3, lr=1e-3), 0,
            ComputeConfig(compile=compiled, micro_batch_tokens=60), tmp_path)
        results.append(weights(model))
        graphs.append(counters["stats"]["unique_graphs"])
        assert all(layer._compiled_call_impl is None for layer in model.model.layers), "the layers are left as they were"
    assert graphs[0] == 0 < graphs[1]
    for name, p in results[0].items():
        assert (results[1][name] - p).norm() < 1e-4 * (p - before[name]).norm(), name


def test_gradient_checkpointing_changes_rounding_only_and_is_taken_back(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    """With it the library's own modules run, without it those of `upft.lean`, whose backward pass sums in another order."""
    results, calls, before = [], [], weights(tiny())
    for checkpointing in (False, True):
        model, count = tiny(), []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        fit(model, make_rows(6), settings(eps=1e-3), 0, ComputeConfig(gradient_checkpointing=checkpointing), tmp_path)
        results.append(weights(model))
        calls.append(len(count))
        assert not model.is_gradient_checkpointing
        assert not model.training
    assert calls[1] == calls[0] + 1, "the layer is computed once more, in the backward pass"
    for name, p in results[0].items():
        assert (results[1][name] - p).norm() < 1e-5 * (p - before[name]).norm(), name


def test_a_weight_that_is_nan_stops_the_run_and_names_the_questions(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    """The embedding of one token is NaN, so only the questions that hold it can be to blame."""
    rows, model = make_rows(12), tiny()
    rows[7] = Row("poisoned", "prefix", [1, 2, 319, 4, 5], [-100, -100, -100, 4, 5])
    for i, row in enumerate(rows):
        if i != 7 and 319 in row.input_ids:
            rows[i] = Row(row.question_id, row.kind, [t % 319 for t in row.input_ids], row.labels)
    with torch.no_grad():
        model.model.embed_tokens.weight[319] = math.nan
    records: list[dict] = []
    with pytest.raises(TrainError) as caught:
        fit(model, rows, settings(), 0, ComputeConfig(micro_batch_tokens=1), tmp_path, records.append)
    order = packing.epoch_order(12, 0, 0).tolist()
    step = order.index(7) // 6 + 1
    assert f"the loss of step {step}" in caught.value.what
    assert "poisoned" in caught.value.what
    assert len(records) == step - 1
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert written["question_ids"] == ["poisoned"]
    assert written["step"] == step
    assert all(p.isfinite().all() for n, p in model.named_parameters() if "embed" not in n), "no weight was touched by it"


def test_numbers_that_overflow_stop_the_run(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight *= 1e38
    with pytest.raises(TrainError, match="is not a finite number") as caught:
        fit(model, make_rows(12), settings(lr=0.1), 0, ComputeConfig(), tmp_path)
    assert "train.lr" in caught.value.remedy
    assert (tmp_path / "nonfinite.json").is_file()


@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
def test_out_of_memory_names_the_micro_batch_and_the_remedy(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path, layout: Layout) -> None:
    """The allocator itself refuses: a layer asks for more than any machine has."""
    model, rows = tiny(), make_rows(6)

    def greedy(module: object, inputs: tuple, output: object) -> None:
        if torch.is_grad_enabled():
            torch.empty(2**60, dtype=torch.uint8)

    model.model.layers[1].register_forward_hook(greedy)
    tokens, width = sum(len(row.input_ids) for row in rows), max(len(row.input_ids) for row in rows)
    shape = rf"\d+ rows x {width}" if layout is Layout.padded else f"{tokens}"
    with pytest.raises(TrainError, match=f"micro-batch of {shape} tokens") as caught:
        fit(model, rows, settings(), 0, ComputeConfig(micro_batch_tokens=10_000, layout=layout), tmp_path)
    assert "compute.micro_batch_tokens" in caught.value.remedy
    assert "compute.gradient_checkpointing=true" in caught.value.remedy


def test_other_errors_are_not_taken_for_a_lack_of_memory(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    model = tiny()

    def broken(module: object, inputs: tuple, output: object) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("a defect")

    model.model.layers[1].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="a defect"):
        fit(model, make_rows(6), settings(), 0, ComputeConfig(), tmp_path)


def test_what_cannot_be_trained_is_said_before_anything_starts(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no rows"):
        fit(tiny(), [], settings(), 0, ComputeConfig(), tmp_path)
    low, full = (Precision.bf16, Precision.bf16_stochastic), (Precision.fp32, Precision.bf16_mixed)
    for fitting, wrong, others in (("float32", torch.bfloat16, full), ("bfloat16", torch.float32, low)):
        for precision in others:
            short = "fp32" if fitting == "float32" else "bf16"
            said = f"the model's weights are {wrong}, but train.precision={precision.name} trains {short} ones"
            with pytest.raises(TrainError, match=said) as caught:
                fit(tiny().to(wrong), make_rows(2), settings(precision=precision), 0, ComputeConfig(), tmp_path)
            assert f"dtype=torch.{fitting}" in caught.value.remedy
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU"):
            fit(tiny(), make_rows(2), settings(), 0, ComputeConfig(accelerator=Accelerator.gpu), tmp_path)


def test_long_rows_are_spoken_of_once(
        tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = make_rows(12)
    long = sum(len(row.input_ids) > 20 for row in rows)
    fit(tiny(), rows, settings(epochs=2), 0, ComputeConfig(micro_batch_tokens=20), tmp_path)
    assert capsys.readouterr().err.count(f"{long} of 12 rows are longer than compute.micro_batch_tokens=20") == 1


def test_interrupting_is_still_an_interrupt(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    """Lightning would exit with status 1 and leave the process deaf to the next Ctrl+C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), make_rows(6), settings(epochs=50), 0, ComputeConfig(), tmp_path,
                lambda record: signal.raise_signal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_outside_the_main_thread(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    done: list[Fitted] = []
    thread = threading.Thread(
        target=lambda: done.append(fit(tiny(), make_rows(6), settings(), 0, ComputeConfig(), tmp_path)))
    thread.start()
    thread.join()
    assert done[0].steps == 1


QUIET = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from pathlib import Path
from upft.training import TrainConfig
from upft.machine import ComputeConfig
from upft.fit import fit
from upft.prefix import Row
model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                     num_attention_heads=1))
threads = torch.get_num_threads()
fit(model, [Row("a", "prefix", [1, 2, 3], [-100, 2, 3])] * 4, TrainConfig(epochs=1, lr=1e-3, max_length=9), 0,
    ComputeConfig(threads=threads + 1), Path("."))
assert torch.get_num_threads() == threads
"""


def test_lightning_says_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, with every warning shown; also inside a SLURM allocation that is not ours to read."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "default",
           "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
           "SLURM_JOB_NAME": "x"}
    done = subprocess.run([sys.executable, "-c", QUIET], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    ours = ("lightning", "trainer", "tip", "seed", "warn")
    assert [line for line in done.stderr.splitlines() if any(word in line.lower() for word in ours)] == []
    assert list(tmp_path.iterdir()) == []


def test_log_levels_are_given_back(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> None:
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    fit(tiny(), make_rows(2), settings(), 0, ComputeConfig(), tmp_path)
    assert logger.level == before
