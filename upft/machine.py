"""The machine's part of the configuration: nothing here may change a result, so nothing here enters a key.

Floor 0: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from upft.choices import Accelerator, Layout, Strategy, Style, TrackerKind
from upft.errors import ConfigError, demand, nearest

STAGES = ("sample", "diagnose", "grade", "build", "pair", "reference", "train", "evaluate", "judge", "verify", "branch",
          "consistency", "errors", "coverage", "kl", "report")
"""Names of stages, for settings of their own."""
TICK_S = 30
"""SLURM compares clocks and limits this often, seconds."""


@dataclass
class ResourcesConfig:
    """What one kind of job asks SLURM for; null = not said, so the cluster's default (in a stage's own: its kind's)."""

    partition: str | None = None
    """Partition."""
    gpus: int | None = None
    """GPUs of each node; null for a stage that uses one = compute.devices."""
    cpus: int | None = None
    """CPUs of each task."""
    mem_gb: int | None = None
    """Memory of each node, GB."""
    minutes: int | None = None
    """Time limit. A stage that reaches it is sent back to the queue and goes on from what is on disk."""

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("cpus", 1), ("mem_gb", 1), ("minutes", 1)):
            value = getattr(self, name)
            if value is not None:
                demand(value >= least, f"compute.slurm: {name}", value, f"use {least} or more, or null")


@dataclass
class ShardsConfig:
    """Jobs that do one stage's work side by side, each on a share of its questions."""

    sample: int = 1
    """Of a sampling."""
    evaluate: int = 1
    """Of an evaluation."""
    branch: int = 1
    """Of an analysis's continuations."""
    kl: int = 1
    """Of a comparison of base and trained model."""

    def __post_init__(self) -> None:
        for stage in ("sample", "evaluate", "branch", "kl"):
            demand(getattr(self, stage) >= 1, f"compute.shards.{stage}", getattr(self, stage), "use 1 or more")


@dataclass
class SlurmConfig:
    """How jobs are put to SLURM."""

    gpu: ResourcesConfig = MISSING
    """Stages that use a GPU: sample, train, evaluate, judge, reference, verify, branch, kl."""
    cpu: ResourcesConfig = MISSING
    """All others, and what puts shards together."""
    stages: dict[str, ResourcesConfig] = field(default_factory=dict)
    """What a stage asks for instead, by its name, such as compute.slurm.stages.train.minutes=2880."""
    array: int = 16
    """Most jobs of one array that run at a time."""
    signal_s: int = 120
    """Seconds before its end that a job is told of it."""
    requeues: int = 20
    """How often a job that reaches its time limit may go back to the queue."""
    sbatch: dict[str, str] = field(default_factory=dict)
    """Other parameters of sbatch by their long names, such as account, qos, constraint."""
    python: str | None = None
    """Command that starts Python in a job, such as `apptainer exec --nv upft.sif python`; null = the interpreter that
    submits."""
    setup: list[str] = field(default_factory=list)
    """Shell lines to run in a job before anything else, such as `module load cuda`."""

    @property
    def patience_s(self) -> float:
        """How long a stage that was told may take to end, so that its job still has time to go back to the queue."""
        return max(self.signal_s - 15, self.signal_s / 2)

    def __post_init__(self) -> None:
        demand(self.array >= 1, "compute.slurm.array", self.array, "use 1 or more")
        demand(self.signal_s >= 1, "compute.slurm.signal_s", self.signal_s, "use 1 second or more")
        demand(self.requeues >= 0, "compute.slurm.requeues", self.requeues, "use 0 or more")
        for name in self.stages:
            if name not in STAGES:
                raise ConfigError(f"compute.slurm.stages.{name}: there is no such stage", nearest(name, STAGES))
        own = ((f"stages.{name}", asked) for name, asked in self.stages.items())
        for name, asked in (("gpu", self.gpu), ("cpu", self.cpu), *own):
            minutes = asked.minutes if isinstance(asked, ResourcesConfig) else None
            if minutes is not None:  # SLURM looks every half minute, and says it rather too early
                demand(60 * minutes >= self.signal_s + TICK_S, f"compute.slurm.{name}.minutes", minutes,
                       f"with compute.slurm.signal_s={self.signal_s} a job may be told of its end as soon as it begins: give "
                       "it more minutes, or a shorter warning")


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
    """Share of GPU memory vLLM reserves, whatever it needs."""
    cpu_kv_cache_gib: int = 2
    """Key-value cache of vLLM's CPU build, GiB."""
    enforce_eager: bool | None = None
    """vLLM without compilation: starts faster, samples slower; null = so on a CPU, compiled on a GPU."""
    parallel: int = 1
    """With -m, without SLURM: stages of a sweep that run side by side; each has compute.devices GPUs of its own."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """Jobs that one sampling, evaluation or comparison is cut into, with SLURM and with compute.parallel above 1."""
    wait: bool = False
    """With SLURM: stay until the last job is over, and end with an error if a cell has failed."""
    retry: bool = False
    """Submit again what has failed."""
    retries: int = 1
    """How often a stage that breaks down is tried again by itself; not what a person has to mend."""
    slurm: SlurmConfig | None = None
    """How jobs are put to SLURM; null = this machine."""

    def __post_init__(self) -> None:
        demand(self.parallel >= 1, "compute.parallel", self.parallel, "use 1 or more")
        demand(self.retries >= 0, "compute.retries", self.retries, "use 0 or more")
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
    """none, wandb or tensorboard."""
    project: str = "upft"
    """W&B project."""
    entity: str | None = None
    """W&B entity; null = the account's default."""
    group: str | None = None
    """W&B group; null = that of the sweep, where there is one."""
    tags: list[str] = field(default_factory=list)
    """W&B tags beside those of the model, the data, the method and the sweep."""
    folder: str | None = None
    """Folder of TensorBoard's files; null = tensorboard beside the store."""


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
    console: Style = Style.auto
    """How the run speaks: auto (live bars on a terminal, plain lines elsewhere), plain, quiet (warnings only), json (one
    object a line)."""

    def __post_init__(self) -> None:
        demand(bool(self.store.strip()), "run.store", repr(self.store), "give a folder, such as run.store=store")
        if self.export is not None:
            demand(bool(self.export.strip()), "run.export", repr(self.export), "give a folder, or null")
