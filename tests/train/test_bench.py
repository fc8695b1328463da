"""The benchmark's rows, and that all its contestants train the same thing: on the embedded model, each as a real process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft.prefix import UNSUPERVISED

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "upft" / "toy" / "weights"


@pytest.fixture
def bench_rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench/rows.py."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import rows

    return rows


@pytest.fixture
def questions(write_jsonl: Callable[..., Path]) -> Path:
    """Arithmetic in the words of the embedded model, as GSM8K's file looks, of unlike lengths."""
    return write_jsonl([{"question": f"What is {i} + {i + 1}?" + " Think." * (i % 7),
                         "answer": f"{i} + {i + 1} = {2 * i + 1}." + " So it is." * (5 * (i % 5)) + f"\n#### {2 * i + 1}"}
                        for i in range(40)])


def bench(*arguments: str, threads: str = "1") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "bench" / "train.py"), "--threads", threads, *arguments],
                          capture_output=True, text=True, timeout=600)


def test_rows_are_prefixes_and_whole_traces_of_the_worked_answers(bench_rows: Any, questions: Path) -> None:
    from upft import library

    rows = bench_rows.from_questions(WEIGHTS, questions, bench_rows.Kind.upft, 40)
    tokenizer = library.load("tiny").tokenizer
    given = [json.loads(line) for line in questions.read_text().splitlines()]
    kinds = {row.kind for row in rows}
    for row, record in zip(rows, given, strict=True):
        prompt = tokenizer.decode([i for i, x in zip(row.input_ids, row.labels, strict=True) if x == UNSUPERVISED])
        completion = [x for x in row.labels if x != UNSUPERVISED]
        assert record["question"] in prompt
        assert ("initial step" in prompt) == (row.kind == "prefix")
        answer = tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
        wanted = answer if row.kind == "trace" else answer[:bench_rows.PREFIX_LEN]
        assert completion == [*wanted, tokenizer.eos_token_id]
    assert kinds == {"prefix", "trace"}
    assert all(row.kind == "trace" for row in bench_rows.from_questions(WEIGHTS, questions, bench_rows.Kind.traces, 5))


def test_too_few_questions_are_refused(bench_rows: Any, questions: Path) -> None:
    with pytest.raises(ValueError, match="gives 40 rows, and 41"):
        bench_rows.from_questions(WEIGHTS, questions, bench_rows.Kind.upft, 41)


@pytest.mark.slow
def test_all_contestants_agree_on_the_loss_of_every_step(questions: Path, tmp_path: Path) -> None:
    installed = importlib.util.find_spec("trl") is not None
    names = ["upft", *(["trl"] if installed else []), "plain", "plain_grouped"]
    out = tmp_path / "result.json"
    done = bench("--data", str(questions), "--steps", "3", "--batch-size", "12", "--precision", "fp32", "--lr", "1e-3",
                 "--contestants", ",".join(names), "--set", "trl.micro_batch_rows=4", "--set", "plain.micro_batch_rows=5",
                 "--set", "upft.micro_batch_tokens=300", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert result["agree"]
    assert list(result["contestants"]) == names
    losses = {name: c["losses"] for name, c in result["contestants"].items()}
    assert len({round(x, 1) for x in losses["upft"]}) == 3  # the steps have unlike losses: another order would show
    for name in names:
        assert losses[name] == pytest.approx(losses["plain"], rel=1e-5), name
        assert result["contestants"][name]["tokens_per_s"] > 0
        assert result["contestants"][name]["peak_bytes"] > 2**27
    assert result["contestants"]["plain"]["padding_share"] > result["contestants"]["plain_grouped"]["padding_share"] >= 0
    if not installed:
        pytest.skip("the part about TRL did not run: TRL is not installed (pip install -e '.[bench]')")


@pytest.mark.slow
def test_losses_of_other_rows_do_not_pass_as_equal(bench_rows: Any, questions: Path, tmp_path: Path) -> None:
    """Two seeds give two orders of the same rows: the very program, and losses far beyond every tolerance."""
    import agreement
    import entries
    from contestants import Settings, Task

    from upft import prefix

    rows = bench_rows.from_questions(WEIGHTS, questions, bench_rows.Kind.upft, 24)
    prefix.write_rows(tmp_path / "rows.arrow", rows)
    losses = []
    for seed in (0, 7):
        task = Task("", str(WEIGHTS), str(tmp_path / "rows.arrow"), "bf16_mixed", 1e-5, 12, seed, "cpu", 1)
        losses.append(entries.score(entries.Entry("plain", "plain", Settings()), task, rows, 1, 1).losses)
    assert agreement.difference(losses[0], losses[0]) == 0
    assert agreement.difference(losses[1], losses[0]) > max(agreement.TOLERANCE.values())
    assert agreement.difference([losses[0][0], float("nan")], losses[0]) == float("inf")


def test_without_a_gpu_the_gpu_benchmark_says_so_and_ends_with_2() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = bench("--gpu")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_runs_through_on_a_tiny_shape(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = bench("--gpu", "--shape", "tiny", "--methods", "full,lora", "--micro-batch-tokens", "2048",
                 "--checkpointing", "off", "--compile", "off", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    full, lora = json.loads(out.read_text())["cases"]
    # By hand: Qwen2 of 2 layers, 64 wide: q and o 64 x 64, k and v 64 x 32, their biases 64 + 2 x 32, MLP 3 x 64 x 128,
    # norms 2 x 64 a layer and 64 at the end; head 64 x 320.
    parameters = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 64 + 2 * 32 + 3 * 64 * 128 + 2 * 64) + 64 + 64 * 320
    for case in (full, lora):
        assert case["failed"] is None
        assert case["flops_6nd"] == 6 * parameters
        assert case["mfu_6nd"] == pytest.approx(case["mfu_needed"] * case["flops_6nd"] / case["flops_needed"])
        assert case["mfu_needed"] > 0
    # LoRA: 6 operations for each of rank 16 x (in + out) adapter parameters, and 2 fewer for the frozen ones, of which
    # the head works on supervised tokens only.
    adapters = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    frozen = parameters - 64 * 320 + 64 * 320 * lora["supervised_per_s"] / lora["tokens_per_s"]
    assert lora["flops_needed"] - full["flops_needed"] == pytest.approx(6 * adapters - 2 * frozen)
