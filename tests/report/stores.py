"""Example stores of many cells, as sweeps leave them. No model runs here."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from artifacts import answer, diagnose, write
from tokenizers import Tokenizer, models, pre_tokenizers

from upft.analyses import branching, consistency, divergences
from upft.analyses.branching import CELLS, Sides, Solved
from upft.analyses.consistency import Counted
from upft.analyses.divergences import Apart
from upft.diagnosis import Trace
from upft.hashing import canonical
from upft.ledger import Ledger

QUESTIONS = {"gsm8k": 60, "math500": 40, "aime24": 20, "gpqa": 30}


@dataclass(frozen=True)
class Setting:
    """What a cell is made to look like. gain: added to the probability of a right answer."""

    method: str = "upft"
    label: str = "UPFT"
    prefix_len: int | None = 8
    ratio: float = 0.1
    seed: int = 0
    train_seed: int | None = None
    gain: float = 0.2
    lr: float = 2e-6
    model: str = "qwen_math"
    data: str = "prm12k"
    tasks: tuple[str, ...] = ("gsm8k", "math500", "aime24", "gpqa")
    shared: bool = False
    """Whether its sampling is that of 16 whole traces a question, which all methods share."""
    taken: float = 0.0
    """Share of its sampled tokens that other samplings had paid for."""
    looked: bool = field(default=False, repr=False)
    """Whether it was asked for all analyses."""


PAPER = tuple(Setting(method, label, length, ratio, seed, gain=gain) for method, label, length, ratio, gain in (
    ("sft", "SFT", None, 1.0, 0.0), ("rft", "RFT", None, 1.0, 0.15), ("upft", "UPFT", 8, 0.1, 0.2),
    ("upft", "UPFT", 32, 0.1, 0.45),
    ("upft", "UPFT", 8, 0.5, -0.3), ("upft", "UPFT + label filter", 8, 0.1, 0.25)) for seed in (0, 1))


def key(*what: object) -> str:
    """20 hex digits."""
    return hashlib.sha256(repr(what).encode()).hexdigest()[:20]


def rows(task: str, seed: object, gain: float) -> list[dict[str, Any]]:
    """Two answers to each question; hard questions come last."""
    rng, found = random.Random(repr((task, seed))), []
    n = QUESTIONS[task]
    for q in range(n):
        for index in range(2):
            right = rng.random() < 0.75 - 0.5 * q / n + gain
            text = f"step{q} then \\boxed{{{5 if right else 6}}}"
            found.append(answer(f"{task}{q:03d}", right, index, completion=text, ids=[q, 60, 61 + right], tokens=3))
    return found


def tokenizer() -> Tokenizer:
    """Whole words."""
    words = [*(f"step{q}" for q in range(60)), "then", "\\boxed{6}", "\\boxed{5}"]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="then"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def cell(root: Path, s: Setting, finished: str = "2026-03-01T10:04:05Z") -> Path:
    """One cell's artifacts and the folder of its report, which only says what it is made from."""
    inputs: dict[str, str] = {}
    whole = s.prefix_len is None
    length = s.prefix_len or 300

    def put(stage: str, role: str, name: str, files: dict[str, Any], ledger: Ledger, spec: dict[str, Any],
            lines: dict[str, Any] | None = None) -> Path:
        inputs[role] = name
        folder = root / stage / name
        if not folder.is_dir():
            write(folder, files, ledger, lines, {"stage": stage, "spec": spec, "inputs": {}})
        return folder

    sampled = 16 * 12_000 * 300 if s.method == "rft" or "filter" in s.label else 12_000 * (300 if whole else length)
    drawn = 16 * 12_000 * 300 if s.shared else sampled
    put("sample", "samples", key("sample", s.seed, *(() if s.shared else (s.method, s.prefix_len, s.label))), {"samples.json": {
        "questions": 12_000, "duplicates": 0, "too_long": 0, "prefix_requests": 10, "trace_requests": 10}},
        Ledger(prompt_tokens=900_000, sampled_tokens=drawn, flops=drawn * 1e10, seconds=900, device_seconds=1800,
               reused_tokens=int(s.taken * drawn),
               peak_memory_bytes=2**30, peak_device_bytes=40 * 2**30),
        {"n": 1, "sampling": {"temperature": 0.6, "seed": s.seed}})
    put("diagnose", "diagnosis", key("diagnosis", s.seed), {"diagnosis.json": diagnose(1, 10)}, Ledger(seconds=1),
        {"longest": 64})
    put("build", "rows", key("rows", s), {"rows.json": {
        "prefix_len": s.prefix_len, "prefix_len_from": None if whole else "config", "prefix_rows": 0 if whole else 10_800,
        "trace_rows": 12_000 if whole else 1_200, "left_out": {}, "mean_supervised": float(length), "mean_prompt": 90.0,
        "supervised_tokens": 12_000 * length, "used_tokens": 12_000 * length, "examples": [],
        "alone": {"prompt_tokens": 900_000, "sampled_tokens": sampled, "flops": sampled * 1e10}}}, Ledger(seconds=3),
        {"prefix_len": s.prefix_len, "ratio": s.ratio})
    train = put("train", "train", key("train", s), {"train.json": {
        "rows": 12_000, "steps": 30, "epochs": 2, "first_loss": 1.2, "last_loss": 0.4, "lr": s.lr, "parameters": 7}},
        Ledger(supervised_tokens=24_000 * length, forward_tokens=24_000 * (length + 90),
               flops=24_000 * (length + 90) * 4e10, seconds=60 + length, device_seconds=120 + 2 * length,
               peak_memory_bytes=2**31, peak_device_bytes=60 * 2**30),
        {"lr": s.lr, "seed": s.seed if s.train_seed is None else s.train_seed},
        {"metrics.jsonl": [{"step": n + 1, "loss": 0.4 + 0.8 * 0.9**n + 0.01 * s.seed} for n in range(30)]})
    if not (train / "model").is_dir():
        (train / "model").mkdir()
        tokenizer().save(str(train / "model" / "tokenizer.json"))
    for task in s.tasks:
        asked = {"task": task, "protocol": "paper", "temperature": 0.6}
        spec = {"task": task, "sampling": {"seed": s.seed}, "protocol": "paper"}
        cost = Ledger(prompt_tokens=4_000, sampled_tokens=5_000, flops=3e10, seconds=20, peak_memory_bytes=2**30)
        put("evaluate", f"base:{task}", key("base", task, s.seed), {"scores.json": asked}, cost, spec,
            {"answers.jsonl": rows(task, ("base", s.seed), 0.0)})
        put("evaluate", f"trained:{task}", key("trained", task, s), {"scores.json": asked}, cost, spec,
            {"answers.jsonl": rows(task, s, s.gain)})
    if s.looked:
        for role, (stage, name, files, lines) in analysed(s).items():
            put(stage, role, name, files, Ledger(seconds=5), {"of": role, "margin": 0.1}, lines)
    spec = {"type": "ReportSpec", "title": f"{s.label} of {s.model} on {s.data}", "model": s.model, "data": s.data,
            "method": s.method, "prefix_len": s.prefix_len, "ratio": s.ratio, "seed": s.seed, "tasks": list(s.tasks),
            "label": s.label}
    assert spec == canonical(spec)
    folder = root / "report" / key("report", s, finished)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"stage": "report", "version": 4, "spec": spec, "inputs": inputs}))
    (folder / "provenance.json").write_text(json.dumps({
        "finished": finished, "host": "node-7", "git": "0f" * 20, "versions": {"torch": "2.13.0"},
        "command": f"python run.py -m model={s.model} seed=0,1"}))
    return folder


def counted(seed: int) -> list[Counted]:
    """What prefix self-consistency counts under a seed."""
    rng = random.Random(repr(("counted", seed)))
    return [Counted.of(f"q{q:02d}", [Trace([rng.choices(range(3), (q + 1, 4, 2))[0] for _ in range(9)], "length", True)
                                     for _ in range(12)], q / 20, 8) for q in range(20)]


def sides(seed: int) -> list[Sides]:
    """Where errors begin, of questions that depend on the seed."""
    rng = np.random.default_rng(seed)
    return [Sides(f"q{q:02d}", np.clip(rng.normal([0.5, 0.6, 0.9], 0.1), 0, 1), np.clip(rng.normal([0.5, 0.4, 0.1], 0.1), 0, 1),
                  (2, 2), np.array([[0, 0, 1], [0, 0, 2]])) for q in range(seed, 20 + seed)]


def solved(s: Setting) -> list[Solved]:
    """Continuations of base and trained model, which goes on better by half the setting's gain and opens better by the rest."""
    rng = np.random.default_rng([s.seed, s.prefix_len or 0, int(1000 * (s.gain + 1))])
    better = {"base": 0.0, "trained": s.gain / 2}
    return [Solved(f"q{q:02d}", {(i, j): np.clip(rng.normal([0.4, 0.45], 0.1) + better[i] + better[j], 0, 1) for i, j in CELLS})
            for q in range(20)]


def apart(s: Setting) -> list[Apart]:
    """Divergences that are ten times as large on the prefix."""
    rng = np.random.default_rng([s.seed, s.prefix_len or 0])
    return [Apart(f"q{q:02d}", *(rng.gamma(3, 0.1, (2, 20)) * np.where(np.arange(20) < (s.prefix_len or 8), 1.0, 0.1)))
            for q in range(15)]


def analysed(s: Setting) -> dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Role -> (stage, key, files, lines) of the analyses of a cell; those of the base model alone are all methods' alike."""
    told = {"consistency": consistency.summary(counted(s.seed), 8, (0.25, 0.75)),
            "errors": branching.errors(sides(s.seed), [2, 4, 8], 4, 0.1, 0),
            "coverage": branching.coverage([solved(s)], [4, 8], 4, 0),
            "kl": divergences.summary(apart(s), s.prefix_len or 8, 16, 0)}
    lines = {"consistency": counted(s.seed), "errors": sides(s.seed), "coverage": solved(s)}
    found = {}
    for name, one in told.items():
        who = key(name, s.seed) if name in lines and name != "coverage" else key(name, s)
        rows: dict[str, Any] = {"values.jsonl": [each.told() for each in lines[name]]} if name in lines else {
            "divergences.jsonl": [{"question": each.question, "forward": each.forward.tolist(),
                                   "reverse": each.reverse.tolist()} for each in apart(s)]}
        found[f"analysis:{name}"] = (name, who, {f"{name}.json": one}, rows)
    return found


def store(root: Path, settings: Sequence[Setting] = PAPER) -> list[Path]:
    """The reports of a store with these cells."""
    return [cell(root, one) for one in settings]
