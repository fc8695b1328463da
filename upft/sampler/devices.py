"""Which devices each of several sampling engines gets.

Floor 4. Knows counts and the variables by which processes are shown devices; starts nothing.
"""

from __future__ import annotations

import os

from upft.choices import Accelerator
from upft.machine import ComputeConfig


def shares(compute: ComputeConfig) -> list[dict[str, str]]:
    """Environment of each vLLM process: its GPUs, and the cores it may use where it runs on a CPU.

    One engine alone keeps what the process has.
    """
    count = compute.devices // compute.tensor_parallel
    if count == 1:
        return [{}]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",") if shown else [str(i) for i in range(compute.devices)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    out = []
    for i in range(count):
        mine = cores[i * len(cores) // count:(i + 1) * len(cores) // count] or [cores[i % len(cores)]]
        out.append({
            "CUDA_VISIBLE_DEVICES": ",".join(gpus[i * compute.tensor_parallel:(i + 1) * compute.tensor_parallel]),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, mine)),
            "OMP_NUM_THREADS": str(len(mine) if compute.threads is None else compute.threads)})
    return out


def gpus(compute: ComputeConfig) -> list[int]:
    """Number of the GPU of each embedded engine; a CPU has one engine, whose threads use all cores."""
    import torch

    on_gpu = compute.accelerator is not Accelerator.cpu and torch.cuda.is_available()
    return list(range(min(compute.devices, torch.cuda.device_count()))) if on_gpu else [0]
