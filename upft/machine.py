"""The machine's part of the configuration: nothing here may change a result, so nothing here enters a key.

Floor 0: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from upft.choices import Accelerator, Layout, Strategy, TrackerKind
from upft.errors import demand


@dataclass
class ComputeConfig:
    """The machine. Nothing here may change a result, so nothing here enters a key."""

    accelerator: Accelerator = Accelerator.auto
    """auto = a GPU where torch sees one."""
    devices: int = 1
    """Devices of each node to train on, and to sample on."""
    tensor_parallel: int = 1
    """GPUs that one sampling engine is spread over; compute.devices / tensor_parallel engines sample side by side."""
    nodes: int = 1
    """Nodes a training spans."""
    strategy: Strategy = Strategy.auto
    """How several devices share a training."""
    threads: int | None = None
    """CPU threads; null = what torch chooses."""
    micro_batch_tokens: int | None = None
    """Most tokens (padding included) in one forward pass of training; null = 16384 on a GPU, 2048 on a CPU. Lower it
    when memory runs out."""
    layout: Layout = Layout.auto
    """How the rows of a micro-batch lie."""
    share_prompts: bool = True
    """Compute tokens that rows of a micro-batch have in common at their beginning (a system prompt) once; packed
    layout only."""
    compile: bool = False
    """torch.compile in training: pays in long trainings on a GPU."""
    checkpoint_every_s: float | None = 600.0
    """Seconds between checkpoints of a training; null = none: an interrupted training starts anew."""
    sample_batch: int = 256
    """Requests the Transformers engine decodes together. Lower it when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gpu_memory_utilization: float = 0.9
    """Share of GPU memory vLLM may take."""
    cpu_kv_cache_gib: int = 2
    """Key-value cache of vLLM's CPU build, GiB."""
    enforce_eager: bool | None = None
    """vLLM without compilation: starts faster, samples slower; null = so on a CPU, compiled on a GPU."""

    def __post_init__(self) -> None:
        demand(self.devices >= 1, "compute.devices", self.devices, "use 1 or more")
        demand(self.nodes >= 1, "compute.nodes", self.nodes, "use 1 or more")
        demand(self.tensor_parallel >= 1 and self.devices % self.tensor_parallel == 0, "compute.tensor_parallel",
               self.tensor_parallel, f"use a divisor of compute.devices={self.devices}")
        if self.strategy is Strategy.single:
            demand(self.devices * self.nodes == 1, "compute.strategy", "single",
                   f"with compute.devices={self.devices} and compute.nodes={self.nodes} use ddp or fsdp")
        if self.checkpoint_every_s is not None:
            demand(self.checkpoint_every_s >= 0, "compute.checkpoint_every_s", self.checkpoint_every_s,
                   "use seconds (0 = after every step), or null")
        if self.threads is not None:
            demand(self.threads >= 1, "compute.threads", self.threads, "use 1 or more, or null")
        if self.micro_batch_tokens is not None:
            demand(self.micro_batch_tokens >= 1, "compute.micro_batch_tokens", self.micro_batch_tokens,
                   "use 1 or more, or null")
        demand(self.sample_batch >= 1, "compute.sample_batch", self.sample_batch, "use 1 or more")
        demand(0 < self.gpu_memory_utilization <= 1, "compute.gpu_memory_utilization",
                self.gpu_memory_utilization, "use a share in (0, 1]")
        demand(self.cpu_kv_cache_gib >= 1, "compute.cpu_kv_cache_gib", self.cpu_kv_cache_gib, "use 1 or more")


@dataclass
class TrackerConfig:
    """Where metrics go beside metrics.jsonl, which is always written."""

    kind: TrackerKind = TrackerKind.none
    """none or wandb."""
    project: str = "upft"
    """W&B project."""
    entity: str | None = None
    """W&B entity; null = the account's default."""
    group: str | None = None
    """W&B group, such as a sweep's name."""


@dataclass
class RunConfig:
    """What this call does with the plan."""

    store: str = "store"
    """Folder of artifacts."""
    repair: bool = False
    """Set a corrupt artifact aside and build it again."""
    export: str | None = None
    """Folder that gets a copy of the trained model, its card with the scores; null = none."""
    ids: bool = False
    """With plan=true: also print token ids and the mask."""
