"""Stages: each turns the artifacts before it into one more. None imports another.

Floor 5. `run(spec, inputs, out, host)`: `spec` holds the science, `inputs` the folders upstream by role,
`out` the empty folder to fill, `host` the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft.choices import Accelerator
from upft.console import Console
from upft.machine import ComputeConfig, TrackerConfig
from upft.sampler import EnginePool
from upft.specs import BranchSpec, EvaluateSpec, SampleSpec


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

    @property
    def gpus(self) -> int:
        """GPUs a stage holds: 0 on a CPU."""
        if self.compute.accelerator is Accelerator.cpu:
            return 0
        import torch

        return self.compute.devices if torch.cuda.is_available() else 0


def told(artifacts: Sequence[Path], file: str) -> dict[str, Any] | None:
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
