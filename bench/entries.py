"""Who runs, with what settings, and what is counted of a run.

Knows the contestants by their outcomes alone; how one trains is in contestants.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import rows as bench_rows
from contestants import Settings, Task
from rich.console import Console

from upft import prefix
from upft.prefix import Row

HERE = Path(__file__).parent
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


def line_up(options: argparse.Namespace, device: str, console: Console) -> list[Entry]:
    """Who runs, with what settings. Raises ValueError for a name or a setting that is not known."""
    kinds = {f.name: int if f.default is None else type(f.default) for f in dataclasses.fields(Settings)}
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
        return {"layout": "padding_free" if flash else "padded", "micro_batch_rows": 64 if device == "cuda" else 4}
    return {"micro_batch_rows": 64 if device == "cuda" else 8}


def candidates(entry: Entry, device: str) -> list[Settings]:
    """What `--tune` tries."""
    gpu, now = device == "cuda", entry.settings

    def each(**choices: Any) -> list[Settings]:
        [(name, values)] = choices.items()
        return [dataclasses.replace(now, **{name: value}) for value in values]

    if entry.contestant == "upft":
        tokens = each(micro_batch_tokens=(4096, 8192, 16384, 32768) if gpu else (1024, 2048, 4096))
        return [*tokens, *each(layout=("padded",)), *each(share_prompts=(False,)), *(each(compile=(True,)) if gpu else [])]
    rows = each(micro_batch_rows=(16, 32, 64) if gpu else (4, 8, 16))
    if entry.contestant == "plain":
        return rows
    small = [] if gpu else each(micro_batch_rows=(2,))
    return [*small, *rows, *each(autocast=(True,)), *each(layout=("padding_free",))]


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
        console.print(f"{entry.name}: " + " ".join(
            f"--set {entry.name}.{k}={str(v).lower()}" for k, v in dataclasses.asdict(best).items()
            if v != getattr(entry.settings, k)) or "as it was", markup=False)
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
