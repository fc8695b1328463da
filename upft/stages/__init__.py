"""Stages: each turns the artifacts before it into one more. None imports another.

Floor 5. `run(spec, inputs, out, host)`: `spec` holds the science, `inputs` the folders upstream by role,
`out` the empty folder to fill, `host` the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from upft.choices import Accelerator
from upft.console import Console
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import SampleSpec
from upft.sampler import EnginePool


@dataclass(frozen=True)
class Host:
    """The machine a stage runs on; nothing in it may change a result."""

    compute: ComputeConfig
    tracker: TrackerConfig
    console: Console
    engines: EnginePool
    relatives: Callable[[SampleSpec], Sequence[Path]] = lambda spec: ()
    """Finished samplings of the same model, prompt and settings, whatever their questions and counts."""

    @property
    def gpus(self) -> int:
        """GPUs a stage holds: 0 on a CPU."""
        if self.compute.accelerator is Accelerator.cpu:
            return 0
        import torch

        return self.compute.devices if torch.cuda.is_available() else 0
