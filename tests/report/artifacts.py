"""Example artifacts of a whole cell, as the stages before the report leave them. No model runs here."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from upft.choices import MethodName
from upft.console import Console
from upft.diagnosis import Diagnosis, Trace
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.sampler import EnginePool
from upft.specs import ReportSpec
from upft.stages import Host
from upft.toy.arithmetic import Difficulty, problems, solution

KEY = "0123456789abcdef0123"
HOST = Host(ComputeConfig(), TrackerConfig(), Console(quiet=True), EnginePool(ComputeConfig()))
"""A report looks at no machine."""


def write(folder: Path, files: Mapping[str, Any], ledger: Ledger, lines: Mapping[str, Iterable[Any]] | None = None,
          spec: Mapping[str, Any] | None = None) -> Path:
    """One artifact folder: JSON files, JSON-lines files, its ledger, spec and provenance."""
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    for name, rows in (lines or {}).items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ledger.write(folder)
    if spec is not None:
        (folder / "spec.json").write_text(json.dumps(spec))
        (folder / "provenance.json").write_text(json.dumps({
            "started": "2026-03-01T10:00:00Z", "finished": "2026-03-01T10:04:05Z", "seconds": ledger.seconds, "host": "node-7",
            "platform": "Linux-6.1-x86_64", "cpus": 8, "python": "3.11.7", "git": "0f" * 20 + "+changes",
            "versions": {"torch": "2.13.0", "transformers": "5.19.0", "numpy": "2.3.5"}}))
    return folder


def spec(*tasks: str) -> ReportSpec:
    return ReportSpec(title="upft of tiny on arithmetic", model="tiny", data="arithmetic", method=MethodName.upft,
                      prefix_len=8, ratio=0.1, seed=0, tasks=tasks)


def answer(id: str, right: bool, index: int = 0, **more: Any) -> dict[str, Any]:
    """A row of answers.jsonl."""
    return {"id": id, "index": index, "question": f"Question {id}?", "gold": "5", "completion": "so \\boxed{5}",
            "extracted": "5" if right else "6", "vote": "5" if right else "6", "right": right, "reason": "same number",
            "finish_reason": "stop",
            "tokens": 10, **more}


def diagnose(n: int, longest: int, logprobs: bool = False) -> dict[str, Any]:
    """diagnosis.json of 40 prefix questions and 8 whole ones, `n` traces each, that go apart at random."""
    rng, found = random.Random(5), Diagnosis(longest)
    for question in range(48):
        traces = []
        for _ in range(n):
            ids = [rng.choices(range(4), (90, 5, 3, 2))[0] for _ in range(longest if question < 40 else 150 + question)]
            traces.append(Trace(ids, "length" if question < 40 else "stop", question >= 40,
                                [-0.5 / (1 + t) for t in range(len(ids))] if logprobs else None, question > 41))
        found.add(traces)
    return found.found(0.2)


def making(root: Path, examples: list[Any] | None = None, steps: int = 4,
           diagnosed: dict[str, Any] | None = None) -> dict[str, Path]:
    """The folders of sample, diagnose, build and train."""
    sample = write(root / "sample" / KEY, {"samples.json": {
        "questions": 96, "duplicates": 2, "too_long": 0, "prefix_requests": 86, "trace_requests": 10, "engine": "vllm"}},
        Ledger(prompt_tokens=9_600, sampled_tokens=1_500, flops=4.4e10, seconds=12.5, peak_memory_bytes=900 * 2**20),
        spec={"stage": "sample", "spec": {"n": 1, "max_tokens": 8}})
    diagnosis = write(root / "diagnose" / KEY, {"diagnosis.json": diagnosed or diagnose(1, 10)},
                      Ledger(seconds=0.25, peak_memory_bytes=200 * 2**20), spec={"stage": "diagnose", "spec": {"longest": 64}})
    rows = write(root / "build" / KEY, {"rows.json": {
        "prefix_len": 8, "prefix_len_from": "config",
        "prefix_rows": 86, "trace_rows": 9, "left_out": {"the whole trace was cut by the length limit": 1},
        "mean_supervised": 15.25, "mean_prompt": 101.5, "examples": examples or []}},
        Ledger(discarded_tokens=120, seconds=0.75, peak_memory_bytes=300 * 2**20),
        spec={"stage": "build", "spec": {"prefix_len": 8}})
    rng = random.Random(1)
    metrics = [{"step": n + 1, "loss": 0.4 + 0.8 * 0.97**n + rng.gauss(0, 0.04), "lr": 5e-4, "grad_norm": 1.0,
                "tokens_per_s": 9000.0, "seconds": 0.1 * n} for n in range(steps)]
    train = write(root / "train" / KEY, {"train.json": {
        "rows": 95, "steps": steps, "epochs": 2, "first_loss": 1.234, "last_loss": 0.456, "lr": 5e-4, "parameters": 2_100_000}},
        Ledger(supervised_tokens=2_900, forward_tokens=22_000, padding_tokens=640, flops=2.5e11, seconds=65.0,
               peak_memory_bytes=1200 * 2**20), {"metrics.jsonl": metrics}, spec={"stage": "train", "spec": {"lr": 5e-4}})
    return {"samples": sample, "diagnosis": diagnosis, "rows": rows, "train": train}


def evaluated(root: Path, name: str, rows: Iterable[Any], **asked: Any) -> Path:
    """The folder of one evaluation; asked: how, for its scores.json."""
    return write(root / "evaluate" / name, {"scores.json": {"task": name, **asked}},
                 Ledger(prompt_tokens=4_000, sampled_tokens=5_000, flops=3.6e10, seconds=20.0, peak_memory_bytes=800 * 2**20),
                 {"answers.jsonl": rows}, spec={"stage": "evaluate", "spec": {"task": name}})


def realistic(root: Path) -> tuple[ReportSpec, dict[str, Path]]:
    """A cell as a person would see it: 400 problems with opening styles, and 30 hard questions answered 8 times."""
    drawn = list(problems("test", 400, 3, Difficulty()))

    def answers(shares: Mapping[str, float], seed: int) -> list[dict[str, Any]]:
        rng, rows = random.Random(seed), []
        for number, problem in enumerate(drawn):
            style = rng.choices(list(shares), list(shares.values()))[0]
            text = solution(problem, style, rng)
            given = text.rpartition("\\boxed{")[2].rstrip("}")
            cut = rng.random() < 0.01
            rows.append({"id": f"{number * 7919 % 10007:05d}", "index": 0, "question": problem.question, "gold": problem.answer,
                         "completion": text[:-9] if cut else text, "extracted": None if cut else given,
                         "right": given == problem.answer and not cut, "reason": "same number",
                         "finish_reason": "length" if cut else "stop", "tokens": len(text) // 3, "style": style})
        return rows

    def hard(seed: int) -> list[dict[str, Any]]:
        rng = random.Random(seed)
        return [answer(f"h{q:02d}", rng.random() < (q / 60), index, completion="Let $x$ be the unknown. " * 90 + "\\boxed{5}",
                       tokens=900) for q in range(30) for index in range(8)]

    suffix = " Please provide the initial step towards resolving the question."
    examples = [
        {"kind": "prefix", "segments": [
            [f"<|bos|><|user|>{drawn[0].question}{suffix}<|assistant|>", False],
            ["Let's work step by step. First,<|eos|>", True]]},
        {"kind": "trace", "segments": [
            [f"<|bos|><|user|>{drawn[1].question}<|assistant|>", False],
            [solution(drawn[1], "careful", random.Random(0)) + "<|eos|>", True]]}]
    inputs = making(root, examples, steps=180, diagnosed=diagnose(8, 24, logprobs=True))
    greedy = {"protocol": "standard", "temperature": 0.0}
    sampled = {"protocol": "standard", "temperature": 0.6}
    inputs["base:arithmetic"] = evaluated(root, "a0", answers({"careful": 0.45, "hasty": 0.33, "guess": 0.22}, 1), **greedy)
    inputs["trained:arithmetic"] = evaluated(root, "a1", answers({"careful": 0.78, "hasty": 0.16, "guess": 0.06}, 2), **greedy)
    inputs["base:aime24"] = evaluated(root, "b0", hard(3), **sampled)
    inputs["trained:aime24"] = evaluated(root, "b1", hard(4), **sampled)
    return spec("arithmetic", "aime24"), inputs
