"""`train.py --gpu`: Qwen2.5 shapes with random weights on one GPU, trained at the paper's 64 rows a step.

Speed, model FLOPs utilisation and peak memory of this project's trainer, against the rate of a large matrix
product measured in the same run. Nothing is downloaded: the shapes stand below and weights and rows are
random. Each case runs in a process of its own, as a worker: `gpu.py CASE OUTCOME`; one that runs out of
memory says so in the table and the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import rows as bench_rows
from contestants import Settings, train
from rich.console import Console
from rich.table import Table

from upft import adapters, models
from upft.choices import Precision
from upft.errors import TrainError
from upft.ledger import training_flops
from upft.specs import LoraSpec

QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, **QWEN},
    "qwen2.5-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
                     "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, **QWEN},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 320, "tie_word_embeddings": False, **QWEN},
}
"""Sizes of Qwen/Qwen2.5-7B and Qwen/Qwen2.5-1.5B, and of a toy for trying the path out on a CPU."""
METHODS = {"full": Precision.bf16_stochastic, "full_mixed": Precision.bf16_mixed, "lora": Precision.bf16_mixed}
"""lora: adapters in fp32 over frozen weights in bf16."""
LORA = LoraSpec(rank=16, alpha=32.0, dropout=0.0, targets=None, merge=False)
"""On every linear layer but the head."""
STEPS, WARMUP, BATCH_SIZE = 8, 3, 64
"""Optimiser steps of a case, those left out of the timing, and rows of a step (the paper's)."""


@dataclass(frozen=True)
class Case:
    """One training to time."""

    shape: str
    method: str
    device: str
    seed: int
    settings: Settings

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Case:
        """From JSON."""
        return cls(**{**values, "settings": Settings(**values["settings"])})


@dataclass
class Result:
    """flops are per token: `needed` counts attention, the head on supervised tokens only, and for LoRA no gradients of
    frozen weights, which are not computed."""

    tokens_per_s: float = 0.0
    supervised_per_s: float = 0.0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    parameters: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    flops_6nd: float = 0.0
    flops_needed: float = 0.0
    padding_share: float = 0.0
    failed: str | None = None


def main(options: argparse.Namespace, console: Console) -> int:
    """Sweep, print a table, write JSON. Exit status: 0 done, 1 every case failed, 2 no GPU here."""
    import torch

    if options.shape is None and not torch.cuda.is_available():
        console.print("bench/train.py --gpu: torch sees no GPU on this machine, so nothing was measured. The benchmark is "
                      "ready: run the same command where torch.cuda.is_available() is true (one GPU is enough).")
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = [options.shape] if options.shape is not None else options.shapes.split(",")
    methods = options.methods.split(",")
    for name, known in ((shapes, SHAPES), (methods, METHODS)):
        if unknown := [x for x in name if x not in known]:
            console.print(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
            return 2
    where = measure.machine()
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        where |= {"gpu": torch.cuda.get_device_name(0), "gpu_memory_gib": round(memory / 2**30, 1)}
    ceiling = measure.run(Path(__file__).parent / "ceiling.py", {"device": device, "size": 8192 if device == "cuda" else 1024,
                          "dtypes": ["bfloat16"]}, options.threads).outcome["bfloat16"]
    console.print(f"{where.get('gpu', where['cpu'])}: a bf16 matrix product reaches {ceiling / 1e12:,.3f} TFLOP/s")
    done: list[tuple[Case, Result]] = []
    table_columns = Table()
    for shape in shapes:
        for method in methods:
            done += sweep(shape, method, device, options, console)
    for case, result in done:
        _line(table_columns, case, result, ceiling)
    console.print(table_columns)
    console.print("MFU: share of that product's rate. needed = 6 operations a parameter and token, the head on supervised "
                  "tokens only, and attention (upft.ledger.training_flops; LoRA: 4 for a frozen parameter, whose gradient is "
                  "not computed); 6ND = 6 * all multiplied parameters on all tokens.")
    out = options.out or Path(__file__).parent / "results" / f"{where['date'][:10]}-gpu.json"
    measure.write(out, {"machine": where, "bf16_product_flops_per_s": ceiling, "batch_size": BATCH_SIZE, "steps": STEPS,
                        "warmup": WARMUP, "cases": [{**dataclasses.asdict(c), **dataclasses.asdict(r), **mfu(r, ceiling)}
                                                    for c, r in done]})
    console.print(f"written: {out}")
    return 0 if any(r.failed is None for _, r in done) else 1


def sweep(shape: str, method: str, device: str, options: argparse.Namespace, console: Console) -> list[tuple[Case, Result]]:
    """Micro-batch sizes with and without gradient checkpointing; then torch.compile on the fastest of them."""
    done: list[tuple[Case, Result]] = []
    compile_words = options.compile.split(",")

    def go(settings: Settings) -> None:
        case = Case(shape, method, device, options.seed, settings)
        result = run(case, options.threads)
        done.append((case, result))
        said = result.failed or f"{result.tokens_per_s:,.0f} tokens/s, {result.peak_bytes / 2**30:.1f} GiB"
        console.print(f"  {shape} {method} {_words(settings)}: {said}", markup=False)

    for word in options.checkpointing.split(","):
        for tokens in sorted(int(x) for x in options.micro_batch_tokens.split(",")):
            go(Settings(micro_batch_tokens=tokens, gradient_checkpointing=word == "on"))
            if done[-1][1].failed is not None:
                break  # a larger micro-batch takes more memory still
    fine = [(c, r) for c, r in done if r.failed is None]
    if "on" in compile_words and fine:
        fastest = max(fine, key=lambda x: x[1].tokens_per_s)[0].settings
        go(dataclasses.replace(fastest, compile=True))
    return done


def run(case: Case, threads: int | None) -> Result:
    """A case in a process of its own; what went wrong becomes part of its result."""
    try:
        outcome = measure.run(Path(__file__), dataclasses.asdict(case), threads)
    except measure.WorkerError as error:
        return Result(failed=" ".join(str(error).splitlines()[-1:])[:300])
    result = Result(**outcome.outcome)
    if case.device == "cpu":
        result.peak_bytes = outcome.peak_bytes
    return result


def work(case: Case) -> Result:
    """Build, train, time: what the worker does."""
    import torch

    precision = METHODS[case.method]
    model = build(case.shape, case.device, torch.float32 if case.method == "full_mixed" else torch.bfloat16)
    config = model.config
    head = models.head_parameters(model)
    body = models.multiplied_parameters(model) - head
    result = Result(parameters=sum(p.numel() for p in model.parameters()))
    rows = bench_rows.random_upft(STEPS * BATCH_SIZE, config.vocab_size, case.seed)
    if case.method == "lora":
        adapters.attach(model, LORA, case.seed)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock: list[float] = []
    padding: list[int] = []

    def report(record: Mapping[str, float | int]) -> None:  # the trainer has waited for the device: it read the loss
        if case.device == "cuda":
            torch.cuda.synchronize()  # and for the optimiser, which it has not
        clock.append(time.perf_counter())
        padding.append(int(record["padding_tokens"]))
        result.losses.append(float(record["loss"]))

    try:
        train(model, rows, case.settings, precision, 1e-5, BATCH_SIZE, case.seed, case.device, None, report)
    except TrainError as error:
        result.failed = error.what
        return result
    timed = [rows[i] for step in bench_rows.steps_of(len(rows), BATCH_SIZE, case.seed)[WARMUP:] for i in step]
    seconds = clock[-1] - clock[WARMUP - 1]
    tokens, supervised = sum(len(r.input_ids) for r in timed), sum(r.supervised for r in timed)
    pairs = sum(len(r.input_ids) * (len(r.input_ids) + 1) // 2 for r in timed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result.tokens_per_s, result.supervised_per_s = tokens / seconds, supervised / seconds
    result.flops_6nd = 6.0 * (body + head)
    result.flops_needed = training_flops(body, head, config.num_hidden_layers, config.hidden_size, tokens, pairs, supervised,
                                         trained if case.method == "lora" else None) / tokens
    result.padding_share = sum(padding) / (sum(padding) + sum(len(r.input_ids) for r in rows))
    if case.device == "cuda":
        result.peak_bytes = int(torch.cuda.max_memory_allocated())
        result.reserved_bytes = int(torch.cuda.max_memory_reserved())
    return result


def build(shape: str, device: str, dtype: Any) -> Any:
    """A Qwen2 model with random weights, made on the device in its final format."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(Qwen2Config(**SHAPES[shape]), dtype=dtype, attn_implementation="sdpa")


def mfu(result: Result, ceiling: float) -> dict[str, float | None]:
    """Model FLOPs utilisation against `ceiling` by each count."""
    if result.failed is not None:
        return {"mfu_6nd": None, "mfu_needed": None}
    return {"mfu_6nd": result.tokens_per_s * result.flops_6nd / ceiling,
            "mfu_needed": result.tokens_per_s * result.flops_needed / ceiling}


def _words(settings: Settings) -> str:
    return (f"{settings.micro_batch_tokens} tokens, checkpointing {'on' if settings.gradient_checkpointing else 'off'}, "
            f"compile {'on' if settings.compile else 'off'}")


def _line(table: Table, case: Case, result: Result, ceiling: float) -> None:
    if not table.columns:
        for name in ("shape", "method", "settings", "tokens/s", "supervised/s", "MFU needed", "MFU 6ND", "peak GiB", "padding"):
            table.add_column(name, justify="left" if name in ("shape", "method", "settings") else "right")
    start = (case.shape, case.method, _words(case.settings))
    if result.failed is not None:
        table.add_row(*start, result.failed[:60], *[""] * 5)
        return
    shares = mfu(result, ceiling)
    table.add_row(*start, f"{result.tokens_per_s:,.0f}", f"{result.supervised_per_s:,.0f}", f"{shares['mfu_needed']:.1%}",
                  f"{shares['mfu_6nd']:.1%}", f"{result.peak_bytes / 2**30:.1f}", f"{result.padding_share:.1%}")


if __name__ == "__main__":
    answer = work(Case.read(json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(answer)))
