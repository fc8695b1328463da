"""Training speed and memory against what one would pick instead, on the same rows, model and machine.

    python bench/train.py --model DIR --data FILE              # this trainer, TRL's SFTTrainer, a plain loop
    python bench/train.py --gpu                                # Qwen2.5 shapes on one GPU

Each contestant trains the same rows in the same steps in a process of its own, one after the other; the
losses of each step must agree. bench/README.md says what is counted and how to read it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import comparison
import measure
import rows as bench_rows
from entries import LINE_UP
from rich.console import Console

from upft.choices import Precision
from upft.errors import UpftError


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 the losses do not agree or a contestant failed, 2 it cannot be run here."""
    options = parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    if options.gpu:
        import gpu

        return gpu.main(options, console)
    if options.data is None:
        console.print("--data is missing: give a file with the columns question and answer, such as GSM8K's train.jsonl")
        return 2
    try:
        return comparison.compare(options, console)
    except (UpftError, OSError, ValueError) as error:
        console.print(f"[red]{error}[/]")
        return 2
    except measure.WorkerError as error:
        console.print(str(error), markup=False)
        return 1


def parser() -> argparse.ArgumentParser:
    """All options; those of --gpu are explained in gpu.py."""
    p = argparse.ArgumentParser(prog="bench/train.py", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="tiny", help="folder of a Hugging Face model, or tiny (the embedded one)")
    p.add_argument("--data", type=Path, help="file (or folder with train.jsonl) of questions and worked answers")
    p.add_argument("--rows", choices=[k.value for k in bench_rows.Kind], default="upft", help="prefix rows, or whole traces")
    p.add_argument("--steps", type=int, default=8, help="optimiser steps, each its own rows (default 8 = 512 rows)")
    p.add_argument("--warmup", type=int, default=1, help="first steps left out of the timing")
    p.add_argument("--batch-size", type=int, default=64, help="rows of a step")
    p.add_argument("--precision", choices=[x.value for x in Precision], default="bf16_stochastic",
                   help="bf16_stochastic and bf16: weights in bf16 for all; bf16_mixed: fp32 weights for all")
    p.add_argument("--lr", type=float, default=2e-5, help="constant rate")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, help="CPU threads of each contestant (default: torch's choice)")
    p.add_argument("--contestants", default=",".join(LINE_UP),
                   help="which, in this order: " + ", ".join(LINE_UP))
    p.add_argument("--set", action="append", default=[], metavar="NAME.SETTING=VALUE",
                   help="a setting of one contestant, such as trl.micro_batch_rows=16 (see contestants.Settings)")
    p.add_argument("--tune", action="store_true", help="first try each contestant's settings on one step, keep the fastest")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    p.add_argument("--out", type=Path, help="result as JSON (default bench/results/DATE-ROWS.json)")
    g = p.add_argument_group("--gpu")
    g.add_argument("--gpu", action="store_true", help="random-initialised Qwen2.5 shapes on one GPU; no download")
    g.add_argument("--shapes", default="qwen2.5-7b,qwen2.5-1.5b")
    g.add_argument("--methods", default="full,full_mixed,lora", help="of full (bf16_stochastic), full_mixed (bf16_mixed), lora")
    g.add_argument("--micro-batch-tokens", default="4096,8192,16384")
    g.add_argument("--checkpointing", default="off,on")
    g.add_argument("--compile", default="off,on", help="on: tried on the fastest setting without it")
    g.add_argument("--shape", choices=["tiny"], help=argparse.SUPPRESS)  # the whole path on a CPU, for development
    return p


if __name__ == "__main__":
    sys.exit(main())
