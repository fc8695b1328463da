"""Every contestant on the same rows, one after the other: a table, a JSON file, and whether the losses agree."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import agreement
import measure
import rows as bench_rows
from contestants import Task
from entries import Scores, line_up, score, tune
from rich.console import Console
from rich.table import Table

from upft import models, prefix
from upft.ledger import training_flops
from upft.library import EMBEDDED
from upft.prefix import Row

HERE = Path(__file__).parent
def compare(options: argparse.Namespace, console: Console) -> int:
    """Every contestant on the same rows; a table, a JSON file, and whether the losses agree."""
    import torch

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    folder = EMBEDDED.get(options.model, Path(options.model))
    if options.warmup < 1 or options.steps <= options.warmup:
        raise ValueError(f"--warmup {options.warmup} --steps {options.steps}: warm up 1 step or more, and time 1 or more")
    shape = _shape(folder)
    rows = bench_rows.from_questions(folder, options.data, bench_rows.Kind(options.rows), options.steps * options.batch_size,
                                     shape["longest"])
    summary = bench_rows.summarise(rows)
    where = measure.machine()
    console.print(f"{summary.rows} {options.rows} rows, {summary.tokens} tokens: mean prompt {summary.mean_prompt:.1f}, mean "
                  f"completion {summary.mean_completion:.1f}, longest {summary.longest}; {options.steps} steps of "
                  f"{options.batch_size} rows, the first {options.warmup} not timed; {options.precision}, {device}")
    if where["busy_percent"] > 10:
        console.print(f"[yellow]this machine is not idle (CPU {where['busy_percent']:.0f}% busy): the figures mean little[/]")
    entries = line_up(options, device, console)
    with tempfile.TemporaryDirectory(prefix="upft-bench-") as scratch:
        task = Task("", str(folder), str(Path(scratch) / "rows.arrow"), options.precision, options.lr, options.batch_size,
                    options.seed, device, options.threads)
        tuned: dict[str, list[dict[str, Any]]] = {}
        if options.tune:
            entries = tune(task, entries, rows, console, tuned)
        prefix.write_rows(Path(task.rows), rows)
        gpu = device == "cuda"
        products = measure.run(HERE / "ceiling.py", {"device": device, "size": 8192 if gpu else 4096, "dtypes": ["bfloat16"]
                               if gpu else ["bfloat16", "float32"]}, options.threads).outcome
        leg = agreement.in_fp32(task, entries, rows, console) if options.precision == "bf16_stochastic" else []
        scores: dict[str, Scores] = {}
        failed: dict[str, str] = {}
        for entry in entries:
            console.print(f"{entry.name}: running ...")
            try:
                s = scores[entry.name] = score(entry, task, rows, options.warmup, options.threads)
            except measure.WorkerError as error:
                failed[entry.name] = str(error)
                console.print(f"{entry.name} failed, and the others go on: {error}", markup=False)
                continue
            console.print(f"{entry.name}: {s.tokens_per_s:.1f} tokens/s, peak {s.peak_bytes / 2**30:.2f} GiB, last loss "
                          f"{s.losses[-1]:.4f}")
    if not scores:
        return 1
    reference = "trl" if "trl" in scores else next(iter(scores))
    apart = {name: agreement.difference(s.losses, scores[reference].losses) for name, s in scores.items()}
    flops = _flops_per_token(shape, rows)
    console.print(table(scores, reference, options, products, flops))
    complaints = [line.complaint for line in leg if line.complaint] + agreement.judge(scores, reference, options.precision)
    for complaint in complaints:
        console.print(f"[red]losses do not agree: {complaint}[/]")
    if not complaints:
        console.print(agreed(leg, apart))
    ran = [e for e in entries if e.name in scores]
    out = options.out or HERE / "results" / f"{where['date'][:10]}-{options.rows}.json"
    measure.write(out, {
        "machine": where, "device": device, "model": folder.name, "rows": {"kind": options.rows, **dataclasses.asdict(summary)},
        "steps": options.steps, "warmup": options.warmup, "batch_size": options.batch_size, "precision": options.precision,
        "lr": options.lr, "seed": options.seed, "threads": options.threads, "product_flops_per_s": products,
        "flops_per_token": flops, "reference": reference, "agree": not complaints,
        "complaints": complaints, "leg_in_fp32": [dataclasses.asdict(line) for line in leg],
        "tuning": tuned, "failed": failed, "contestants": {
            e.name: {**dataclasses.asdict(scores[e.name]), "settings": dataclasses.asdict(e.settings),
                     "largest_loss_difference": apart[e.name],
                     "speed_ratio": scores[e.name].tokens_per_s / scores[reference].tokens_per_s,
                     "memory_ratio": scores[e.name].peak_bytes / scores[reference].peak_bytes} for e in ran}})
    console.print(f"written: {out}")
    return 0 if not complaints and not failed else 1


def _shape(folder: Path) -> dict[str, Any]:
    """Sizes for the formula of floating-point operations, and the longest row the model takes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head, text = models.head_parameters(model), config.get_text_config()
    return {"head": head, "body": models.multiplied_parameters(model) - head, "layers": text.num_hidden_layers,
            "hidden": text.hidden_size, "longest": text.max_position_embeddings}


def _flops_per_token(shape: dict[str, Any], rows: list[Row]) -> dict[str, float]:
    """Mean over the rows. 6nd: 6 * all parameters that multiply. needed: with attention, the head on supervised tokens."""
    tokens = sum(len(row.input_ids) for row in rows)
    pairs = sum(len(row.input_ids) * (len(row.input_ids) + 1) // 2 for row in rows)
    supervised = sum(row.supervised for row in rows)
    needed = training_flops(shape["body"], shape["head"], shape["layers"], shape["hidden"], tokens, pairs, supervised)
    return {"6nd": 6.0 * (shape["body"] + shape["head"]), "needed": needed / tokens}


def agreed(leg: list[agreement.Leg], apart: dict[str, float]) -> str:
    """The good news in words."""
    if not leg:
        return f"the losses of every step agree within {max(apart.values()):.3%}"
    exact = max(line.apart for line in leg if line.precision == "fp32")
    text = f"the losses of {len(leg[0].losses)} steps in fp32 agree within {exact:.4%}"
    if leg[-1].precision != "fp32":
        text += f", those of {leg[-1].name} in {leg[-1].precision} with them within {leg[-1].apart:.2%}"
    return text + (". In the table the peers round bf16 weights to the nearest, which drops small updates: their later losses "
                   "stay higher")


def table(scores: dict[str, Scores], reference: str, options: argparse.Namespace, products: dict[str, float],
          flops: dict[str, float]) -> Table:
    """The figures side by side."""
    ceiling = max(products.values())
    rates = ", ".join(f"{dtype} {rate / 1e9:,.0f}" for dtype, rate in products.items())
    t = Table(title=f"{options.rows} rows; a matrix product here, GFLOP/s: {rates}; at 6ND the faster one would allow "
                    f"{ceiling / flops['6nd']:,.0f} tokens/s", title_justify="left")
    for name in ("contestant", "real tokens/s", f"x {reference}", "supervised/s", "share of ceiling (6ND, needed)", "peak GiB",
                 f"x {reference}", "padding", "loss of step 1", f"of step {options.steps}", f"step 1 apart from {reference}"):
        t.add_column(name, justify="left" if name == "contestant" else "right")
    base = scores[reference]
    for name, s in scores.items():
        t.add_row(name, f"{s.tokens_per_s:,.1f}", f"{s.tokens_per_s / base.tokens_per_s:.2f}", f"{s.supervised_per_s:,.1f}",
                  f"{s.tokens_per_s * flops['6nd'] / ceiling:.0%}, {s.tokens_per_s * flops['needed'] / ceiling:.0%}",
                  f"{s.peak_bytes / 2**30:.2f}", f"{s.peak_bytes / base.peak_bytes:.2f}", f"{s.padding_share:.1%}",
                  f"{s.losses[0]:.4f}", f"{s.losses[-1]:.4f}",
                  f"{agreement.difference(s.losses[:1], base.losses[:1]):.3%}")
    return t
