"""One measurement in a process of its own: what is asked, what came out, how much memory it took.

Knows processes, clocks and memory; no model and no trainer. A worker is a script that is called with the
path of a task (JSON) and the path where its outcome (JSON) belongs.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

EVERY_S = 0.05
"""Seconds between two looks at memory."""
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "pytorch-lightning", "peft", "numpy", "upft")


class WorkerError(Exception):
    """A worker died; the message ends with the last lines it printed."""


@dataclass(frozen=True)
class Measured:
    """A worker's own outcome, and what was seen of it from outside."""

    outcome: dict[str, Any]
    peak_bytes: int
    """Largest resident memory of the worker and its children together."""
    seconds: float


def run(script: Path, task: dict[str, Any], threads: int | None) -> Measured:
    """Run `script` on `task`, watch its memory, read its outcome. Raises WorkerError when it fails."""
    with tempfile.TemporaryDirectory(prefix="upft-bench-") as folder:
        ask, answer, log = (Path(folder) / name for name in ("task.json", "outcome.json", "log.txt"))
        ask.write_text(json.dumps(task))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1",
                       "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        began = time.perf_counter()
        with log.open("w") as stream:
            worker = subprocess.Popen([sys.executable, str(script), str(ask), str(answer)], stdout=stream,
                                      stderr=subprocess.STDOUT, env=environment)
            try:
                peak = _watch(worker)
            finally:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
        if worker.returncode != 0 or not answer.exists():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise WorkerError(f"{script.name} ended with status {worker.returncode}:\n{tail}")
        outcome = json.loads(answer.read_text())
        return Measured(outcome, max(peak, int(outcome.get("high_water_bytes", 0))), time.perf_counter() - began)


def _watch(worker: subprocess.Popen[bytes]) -> int:
    """Largest resident memory of a process tree until it ends, bytes."""
    peak, looked = 0, 0.0
    tree: list[psutil.Process] = []
    while worker.poll() is None:
        try:
            if time.monotonic() - looked > 1.0:  # listing children walks /proc, so less often than reading memory
                top = psutil.Process(worker.pid)
                tree, looked = [top, *top.children(recursive=True)], time.monotonic()
            total = 0
            for process in tree:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            peak = max(peak, total)
        except psutil.Error:
            pass
        time.sleep(EVERY_S)
    return peak


def high_water_bytes() -> int:
    """The kernel's own mark of this process's largest resident memory; 0 where there is none.

    It sees what falls between two looks, but counts no children. (getrusage would also count the parent
    before exec.)
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def matmul_ceiling(device: str, dtype: str, size: int, seconds: float = 3.0) -> float:
    """Largest rate of a square matrix product seen within `seconds`, floating-point operations a second."""
    import torch

    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    b = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    repeats = 20 if device == "cuda" else 1
    best, end = 0.0, None
    while end is None or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(repeats):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        if end is None:  # the first one pays for the start
            end = time.perf_counter() + seconds
            continue
        best = max(best, repeats * 2.0 * size**3 / (time.perf_counter() - began))
    return best


def machine() -> dict[str, Any]:
    """Date, command, versions, processor and load: what a figure means nothing without."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv),
            "python": platform.python_version(), "versions": versions, "cpu": _cpu(), "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "busy_percent": psutil.cpu_percent(interval=1.0), "load": [round(x, 2) for x in os.getloadavg()]}


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
