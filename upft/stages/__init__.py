"""Stages: each turns the artifacts before it into one more. None imports another.

Floor 5. `run(spec, inputs, out, host)`: `spec` holds the science, `inputs` the folders upstream by role,
`out` the empty folder to fill, `host` the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft.choices import Accelerator
from upft.console import Console
from upft.ledger import Ledger, Meter
from upft.machine import ComputeConfig, TrackerConfig
from upft.rollouts import Elsewhere
from upft.sampler import EnginePool
from upft.shards import Share
from upft.specs import BranchSpec, EvaluateSpec, SampleSpec
from upft.store import RESUME
from upft.wandb_run import Card


@dataclass(frozen=True)
class Host:
    """The machine a stage runs on; nothing in it may change a result."""

    compute: ComputeConfig
    tracker: TrackerConfig
    console: Console
    engines: EnginePool
    relatives: Callable[[SampleSpec | EvaluateSpec | BranchSpec, Mapping[str, Path]], Sequence[Path]] = (
        lambda spec, inputs: ())
    """Finished samplings (evaluations, continuations) of the same model and settings, whatever their questions and counts."""
    share: Share | None = None
    """Draw this share of the stage's questions and no more: the job is a shard."""
    shards: Sequence[Path] = ()
    """Finished shards of the stage."""
    command: str | None = None
    """What a person types to have the stage and all it needs."""
    shown: Card | None = None
    """What a tracker calls the stage's run, where it shows one while the stage goes on."""

    @property
    def gpus(self) -> int:
        """GPUs a stage holds: 0 on a CPU."""
        if self.compute.accelerator is Accelerator.cpu:
            return 0
        import torch

        return self.compute.devices if torch.cuda.is_available() else 0

    def elsewhere(self, spec: SampleSpec | EvaluateSpec | BranchSpec, inputs: Mapping[str, Path]) -> Elsewhere:
        """Where completions may lie that the stage need not draw."""
        return Elsewhere(self.shards, self.relatives(spec, inputs))

    def meter(self, out: Path) -> Meter:
        """The clock of a stage that goes on after an interruption."""
        return Meter(out / RESUME, self.gpus)

    def settle(self, cost: Ledger, meter: Meter, out: Path) -> None:
        """Write the ledger of such a stage: what its engine held and what its shards took is its own."""
        meter.fill(cost)
        cost.peak_device_bytes = max(cost.peak_device_bytes, self.engines.peak_device_bytes())
        if self.share is None:
            for paid in map(Ledger.read, self.shards):
                cost.seconds += paid.seconds
                cost.device_seconds += paid.device_seconds
                cost.peak_memory_bytes = max(cost.peak_memory_bytes, paid.peak_memory_bytes)
                cost.peak_device_bytes = max(cost.peak_device_bytes, paid.peak_device_bytes)
        cost.write(out)


def told(artifacts: Iterable[Path], file: str) -> dict[str, Any] | None:
    """The summary of the first of these artifacts that says how long its engine's context was; None where none does."""
    for artifact in artifacts:
        summary = json.loads((artifact / file).read_text(encoding="utf-8"))
        if "context" in summary:
            assert isinstance(summary, dict)  # written by our own stages
            return summary
    return None


def keep(out: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write values.jsonl: what an analysis found of each question, from which reports on many cells start."""
    with (out / "values.jsonl").open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")
