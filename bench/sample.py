"""What sampling costs: against bare vLLM, against the embedded engine, prefixes against whole traces, and its memory.

    python bench/sample.py --model DIR --data FILE                   # all parts
    python bench/sample.py --model DIR --data FILE --parts engines   # one of them

Each contestant runs in a process of its own, one after the other; bench/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table
from samplers import WARM_UP, Task

from upft.errors import UpftError

HERE = Path(__file__).parent
PREFIX = 32
"""Tokens of a prefix (the paper's Qwen-Math setting)."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a contestant failed, 2 it cannot be run here."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    model = HERE.parent / "upft" / "toy" / "weights" if options.model == "tiny" else Path(options.model)
    result: dict[str, Any] = {"machine": measure.machine(), "options": {k: str(v) for k, v in vars(options).items()}}
    if (busy := result["machine"]["busy_percent"]) > 20:
        console.print(f"[yellow]this machine is {busy:.0f}% busy: rates will be too low[/]")
    parts: dict[str, Callable[[], Any]] = {
        "engines": lambda: engines(options, model, console), "cost": lambda: cost(options, model, console),
        "memory": lambda: memory(options, console)}
    try:
        for name in options.parts.split(","):
            if name not in parts:
                raise ValueError(f"--parts {name}: known are {', '.join(parts)}")
            if name != "memory" and options.data is None:
                raise ValueError("--data is missing: give a file with the column question, such as GSM8K's train.jsonl")
            result[name] = parts[name]()
    except (UpftError, OSError, ValueError) as error:
        console.print(f"[red]{error}[/]")
        return 2
    except measure.WorkerError as error:
        console.print(str(error), markup=False)
        return 1
    out = options.out or HERE / "results" / f"{result['machine']['date'][:10]}-sample.json"
    measure.write(out, result)
    console.print(f"written: {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """All options."""
    p = argparse.ArgumentParser(prog="bench/sample.py", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny", help="folder of a Hugging Face model, or tiny (the embedded one)")
    p.add_argument("--data", type=Path, help="file of questions")
    p.add_argument("--parts", default="engines,cost,memory")
    p.add_argument("--questions", type=int, default=2000, help="of `engines`")
    p.add_argument("--repeats", type=int, default=2, help="of `engines`: the contestants take turns, the best run counts")
    p.add_argument("--contestants", default="vllm.LLM,stage,transformers",
                   help="of `engines`; also known: 'vllm.LLM in process'")
    p.add_argument("--cost-questions", type=int, default=64, help="of `cost`")
    p.add_argument("--trace-tokens", type=int, default=512, help="of `cost`: longest whole trace")
    p.add_argument("--memory-questions", default="10000,100000", help="of `memory`, which takes the embedded model and engine")
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--threads", type=int)
    p.add_argument("--compiled", action="store_true", help="vLLM with compilation")
    p.add_argument("--logprobs", action="store_true", help="keep log-probabilities (stage and transformers)")
    p.add_argument("--out", type=Path, help="result as JSON (default bench/results/DATE-sample.json)")
    return p


def engines(options: argparse.Namespace, model: Path, console: Console) -> list[dict[str, Any]]:
    """Prefixes of `--questions` questions, drawn by each contestant."""
    runs: dict[str, list[measure.Measured]] = {}
    for _ in range(options.repeats):
        for name in options.contestants.split(","):
            rounds = (WARM_UP, (options.questions, 1, PREFIX))
            task = Task(name, str(model), str(options.data), rounds, options.dtype, options.threads, not options.compiled,
                        options.logprobs)
            runs.setdefault(name, []).append(seen := run(task))
            one = seen.outcome["rounds"][-1]
            console.print(f"{name}: {one['sampled_tokens'] / one['seconds']:.1f} tokens/s")
    table = Table(title=f"{options.questions:,} prefixes of {PREFIX} tokens")
    for column in ("contestant", "sampled tokens/s", "x first", "seconds", "start, s", "prompt tokens", "of them cached",
                   "sampled tokens", "peak GiB"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    lines = []
    for name, measured in runs.items():
        best = max(measured, key=lambda m: m.outcome["rounds"][-1]["sampled_tokens"] / m.outcome["rounds"][-1]["seconds"])
        one = best.outcome["rounds"][-1]
        lines.append({"contestant": name, "tokens_per_s": one["sampled_tokens"] / one["seconds"], **one,
                      "opened": best.outcome["opened"], "peak_bytes": best.peak_bytes,
                      "all_seconds": [m.outcome["rounds"][-1]["seconds"] for m in measured]})
        table.add_row(name, f"{lines[-1]['tokens_per_s']:.1f}", f"{lines[-1]['tokens_per_s'] / lines[0]['tokens_per_s']:.3f}",
                      f"{one['seconds']:.1f}", f"{best.outcome['opened']:.1f}", f"{one['prompt_tokens']:,}",
                      f"{one['cached_tokens']:,}", f"{one['sampled_tokens']:,}", f"{best.peak_bytes / 2**30:.2f}")
    console.print(table)
    return lines


def cost(options: argparse.Namespace, model: Path, console: Console) -> list[dict[str, Any]]:
    """The paper's claim: what a prefix a question costs, and a whole trace, and 16 of them (one engine for all)."""
    count, longest = options.cost_questions, options.trace_tokens
    rounds = {"1 prefix": (count, 1, PREFIX), "1 whole trace": (count, 1, longest), "16 whole traces": (count, 16, longest)}
    warm = (min(8, options.cost_questions), 1, 4)
    seen = run(Task("stage", str(model), str(options.data), (warm, *rounds.values()), options.dtype, options.threads,
                    not options.compiled))
    table = Table(title=f"what is sampled of each of {options.cost_questions} questions")
    for column in ("a question", "seconds", "share", "sampled tokens", "share", "with prompts", "share", "FLOPs", "share"):
        table.add_column(column, justify="left" if column == "a question" else "right")
    _, *measured = seen.outcome["rounds"]
    whole, lines = measured[-1], []
    for name, one in zip(rounds, measured, strict=True):
        lines.append({"what": name, **one})
        cells = []
        for text, key in (("{:.1f}", "seconds"), ("{:,}", "sampled_tokens"), ("{:,}", "all_tokens"), ("{:.2e}", "flops")):
            values = [r["sampled_tokens"] + r["prompt_tokens"] if key == "all_tokens" else r[key] for r in (one, whole)]
            cells += [text.format(values[0]), f"{values[0] / values[1]:.2%}"]
        table.add_row(name, *cells)
    console.print(table)
    return lines


def memory(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Peak memory of the stage as questions grow: embedded model and engine, prefixes of 8 tokens."""
    from upft.toy.arithmetic import Difficulty, problems

    counts = [int(x) for x in options.memory_questions.split(",")]
    table = Table(title="peak memory of the stage, embedded model")
    for column in ("questions", "peak GiB", "x first", "seconds", "questions/s"):
        table.add_column(column, justify="right")
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.jsonl"
        with file.open("w") as stream:
            for problem in problems("train", max(counts), 0, Difficulty(2, 6, 60)):
                stream.write(json.dumps({"question": problem.question}) + "\n")
        for count in counts:
            task = Task("transformers", str(HERE.parent / "upft" / "toy" / "weights"), str(file), ((count, 1, 8),), "float32",
                        options.threads, True)
            seen = run(task)
            [one] = seen.outcome["rounds"]
            lines.append({"questions": count, "peak_bytes": seen.peak_bytes, **one})
            table.add_row(f"{count:,}", f"{seen.peak_bytes / 2**30:.3f}", f"{seen.peak_bytes / lines[0]['peak_bytes']:.3f}",
                          f"{one['seconds']:.1f}", f"{count / one['seconds']:.0f}")
    console.print(table)
    return lines


def run(task: Task) -> measure.Measured:
    """One contestant in a process of its own. Raises measure.WorkerError."""
    return measure.run(HERE / "samplers.py", dataclasses.asdict(task), task.threads)


if __name__ == "__main__":
    sys.exit(main())
