"""Every contestant on the same rows, one after the other: who runs with what settings, what is counted, who agrees.

Knows the contestants by their outcomes alone; how one trains is in contestants.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import rows as bench_rows
from contestants import Settings, Task
from rich.console import Console
from rich.table import Table

from upft import models, prefix
from upft.ledger import model_flops
from upft.library import EMBEDDED
from upft.prefix import Row

HERE = Path(__file__).parent
TOLERANCE = {"fp32": 1e-4, "bf16_mixed": 1e-2, "bf16_stochastic": 2e-2, "bf16": 2e-2}
"""How far a contestant's loss of a step may lie from TRL's (else the first one's), as a share of it. bf16 has 8
bits, so two orders of the same sums part by some 0.1%; weights kept in bf16 part further step by step, because
rounding to the nearest drops updates that stochastic rounding keeps. Wrong rows, a mask off by one token or
another reduction part by more than 5%."""
LINE_UP = {"upft": ("upft", {}), "trl": ("trl", {}), "plain": ("plain", {"grouped": False}), "plain_grouped": ("plain", {})}
"""Name in the table -> contestant, and what makes this entry differ from the machine's settings."""


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    name: str
    contestant: str
    settings: Settings


@dataclass(frozen=True)
class Scores:
    """What a contestant did after the warm-up. Rates count the tokens of the rows: padding is no work, and a prompt
    that was computed once for several rows counts for each of them."""

    tokens_per_s: float
    supervised_per_s: float
    seconds: float
    peak_bytes: int
    losses: list[float]
    padding_share: float


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
        ceiling = measure.run(HERE / "ceiling.py", {"device": device, "dtype": "bfloat16" if options.precision != "fp32"
                              else "float32", "size": 8192 if device == "cuda" else 4096}, options.threads).outcome
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
    apart = {name: difference(s.losses, scores[reference].losses) for name, s in scores.items()}
    flops = _flops_per_token(shape, rows)
    console.print(table(scores, apart, reference, options, ceiling["flops_per_s"], flops))
    agree = max(apart.values()) <= TOLERANCE[options.precision]
    console.print(f"losses of each step agree with {reference} within {max(apart.values()):.2%} (allowed: "
                  f"{TOLERANCE[options.precision]:.2%})" if agree else
                  f"[red]losses do not agree: {apart} with {reference}, allowed {TOLERANCE[options.precision]:.2%}[/]")
    ran = [e for e in entries if e.name in scores]
    out = options.out or HERE / "results" / f"{where['date'][:10]}-{options.rows}.json"
    measure.write(out, {
        "machine": where, "device": device, "model": folder.name, "rows": {"kind": options.rows, **dataclasses.asdict(summary)},
        "steps": options.steps, "warmup": options.warmup, "batch_size": options.batch_size, "precision": options.precision,
        "lr": options.lr, "seed": options.seed, "threads": options.threads, "ceiling_flops_per_s": ceiling["flops_per_s"],
        "flops_per_token": flops, "reference": reference, "tolerance": TOLERANCE[options.precision], "agree": agree,
        "tuning": tuned, "failed": failed, "contestants": {
            e.name: {**dataclasses.asdict(scores[e.name]), "settings": dataclasses.asdict(e.settings),
                     "largest_loss_difference": apart[e.name],
                     "speed_ratio": scores[e.name].tokens_per_s / scores[reference].tokens_per_s,
                     "memory_ratio": scores[e.name].peak_bytes / scores[reference].peak_bytes} for e in ran}})
    console.print(f"written: {out}")
    return 0 if agree and not failed else 1


def line_up(options: argparse.Namespace, device: str, console: Console) -> list[Entry]:
    """Who runs, with what settings. Raises ValueError for a name or a setting that is not known."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Settings)}
    given: dict[str, dict[str, Any]] = {}
    for text in options.set:
        name, _, value = text.partition("=")
        who, _, setting = name.partition(".")
        if who not in LINE_UP or setting not in kinds or not value:
            raise ValueError(f"--set {text}: use NAME.SETTING=VALUE with a name of {', '.join(LINE_UP)} and a setting of "
                             f"{', '.join(kinds)}")
        given.setdefault(who, {})[setting] = value == "true" if kinds[setting] is bool else kinds[setting](value)
    entries = []
    for name in options.contestants.split(","):
        if name not in LINE_UP:
            raise ValueError(f"--contestants {name}: known are {', '.join(LINE_UP)}")
        if name == "trl" and importlib.util.find_spec("trl") is None:
            console.print('[yellow]TRL is not installed, so it is left out: pip install -e ".[bench]"[/]')
            continue
        contestant, own = LINE_UP[name]
        entries.append(Entry(name, contestant, Settings(**{**defaults(contestant, device), **own, **given.get(name, {})})))
    return entries


def defaults(contestant: str, device: str) -> dict[str, Any]:
    """Settings that measured best (bench/README.md); `--tune` finds those of a machine."""
    if contestant == "trl":
        flash = device == "cuda" and importlib.util.find_spec("flash_attn") is not None
        return {"layout": "padding_free" if flash else "padded", "micro_batch_rows": 64 if device == "cuda" else 8}
    return {"micro_batch_tokens": 16384 if device == "cuda" else 2048, "micro_batch_rows": 64 if device == "cuda" else 8}


def candidates(entry: Entry, device: str) -> list[Settings]:
    """What `--tune` tries."""
    change = dataclasses.replace
    sizes = (16, 32, 64) if device == "cuda" else (4, 8, 16)
    if entry.contestant == "upft":
        tokens = (4096, 8192, 16384) if device == "cuda" else (1024, 2048, 4096)
        return [change(entry.settings, micro_batch_tokens=t, layout=x) for x in ("packed", "padded") for t in tokens]
    plain = [change(entry.settings, micro_batch_rows=n) for n in sizes]
    if entry.contestant == "plain":
        return plain
    return [*plain, change(entry.settings, autocast=True), change(entry.settings, layout="padding_free", micro_batch_rows=4),
            change(entry.settings, layout="padding_free", micro_batch_rows=8)]


def tune(task: Task, entries: list[Entry], rows: list[Row], console: Console,
         tuned: dict[str, list[dict[str, Any]]]) -> list[Entry]:
    """The entries with the fastest of their candidates: 1 warm-up step and 1 timed step of 32 rows for each."""
    chosen = []
    for entry in entries:
        short = dataclasses.replace(task, batch_size=32)
        prefix.write_rows(Path(task.rows), rows[:64])
        best, rate = entry.settings, 0.0
        for settings in candidates(entry, task.device):
            tried = {k: v for k, v in dataclasses.asdict(settings).items() if v != getattr(Settings(), k)}
            try:
                s = score(Entry(entry.name, entry.contestant, settings), short, rows[:64], 1, task.threads)
            except measure.WorkerError as error:
                console.print(f"  {entry.name} {tried}: failed: {str(error).splitlines()[-1][:120]}", markup=False)
                tuned.setdefault(entry.name, []).append({"settings": tried, "error": str(error)[-500:]})
                continue
            console.print(f"  {entry.name} {tried}: {s.tokens_per_s:.1f} tokens/s, {s.peak_bytes / 2**30:.2f} GiB",
                          markup=False)
            tuned.setdefault(entry.name, []).append({"settings": tried, "tokens_per_s": s.tokens_per_s,
                                                     "peak_bytes": s.peak_bytes})
            if s.tokens_per_s > rate:
                best, rate = settings, s.tokens_per_s
        chosen.append(dataclasses.replace(entry, settings=best))
    return chosen


def score(entry: Entry, task: Task, rows: list[Row], warmup: int, threads: int | None) -> Scores:
    """Run one contestant and count. Raises measure.WorkerError."""
    task = dataclasses.replace(task, contestant=entry.contestant, settings=entry.settings)
    seen = measure.run(HERE / "contestants.py", dataclasses.asdict(task), threads)
    timed = [i for step in bench_rows.steps_of(len(rows), task.batch_size, task.seed)[warmup:] for i in step]
    clock = seen.outcome["clock"]
    seconds = clock[-1] - clock[warmup - 1]
    real = sum(len(row.input_ids) for row in rows)
    padding = seen.outcome["padding"]
    return Scores(
        sum(len(rows[i].input_ids) for i in timed) / seconds, sum(rows[i].supervised for i in timed) / seconds, seconds,
        seen.outcome["device_peak_bytes"] or seen.peak_bytes, seen.outcome["losses"], padding / (padding + real))


def difference(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of any step; infinite where a loss is not a number."""
    apart = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    return max(x if math.isfinite(x) else math.inf for x in apart)


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
    context = sum(len(row.input_ids) * (len(row.input_ids) + 1) / 2 for row in rows) / tokens
    supervised = sum(row.supervised for row in rows)
    needed = model_flops(shape["body"], shape["layers"], shape["hidden"], tokens, context, backward=True)
    needed += model_flops(shape["head"], 0, 0, supervised, 0.0, backward=True)
    return {"6nd": 6.0 * (shape["body"] + shape["head"]), "needed": needed / tokens}


def table(scores: dict[str, Scores], apart: dict[str, float], reference: str, options: argparse.Namespace, ceiling: float,
          flops: dict[str, float]) -> Table:
    """The figures side by side."""
    t = Table(title=f"{options.rows} rows; a matrix product reaches {ceiling / 1e9:,.0f} GFLOP/s here, which at 6ND would "
                    f"allow {ceiling / flops['6nd']:,.0f} tokens/s", title_justify="left")
    for name in ("contestant", "real tokens/s", f"x {reference}", "supervised/s", "share of ceiling (6ND, needed)", "peak GiB",
                 f"x {reference}", "padding", f"loss of step {options.steps}", f"largest step apart from {reference}"):
        t.add_column(name, justify="left" if name == "contestant" else "right")
    base = scores[reference]
    for name, s in scores.items():
        t.add_row(name, f"{s.tokens_per_s:,.1f}", f"{s.tokens_per_s / base.tokens_per_s:.2f}", f"{s.supervised_per_s:,.1f}",
                  f"{s.tokens_per_s * flops['6nd'] / ceiling:.0%}, {s.tokens_per_s * flops['needed'] / ceiling:.0%}",
                  f"{s.peak_bytes / 2**30:.2f}", f"{s.peak_bytes / base.peak_bytes:.2f}", f"{s.padding_share:.1%}",
                  f"{s.losses[-1]:.4f}", f"{apart[name]:.3%}")
    return t
