"""Where Hydra looks for plugins; what they do is in `upft.launcher`, imported when a sweep starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CellSweeper(BasicSweeper):
    """Hydra's own sweeper, but for its composing of every cell, which the launcher does, and parses them, too."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Left to the launcher."""

    def sweep(self, arguments: list[str]) -> Any:
        """Hydra's, which writes into the store (`hydra.sweep.dir`) before anybody has looked whether it can be written. Raises
        StoreError where that is what went wrong."""
        try:
            return super().sweep(arguments)
        except OSError:
            from upft.store import Store

            assert self.config is not None
            Store(self.config.run.store).prepare()
            raise


class CellLauncher(Launcher):
    """Hands all cells of a multirun to `upft.launcher` at once."""

    def __init__(self, slurm: bool = False) -> None:
        self.slurm = slurm
        self.given: tuple[HydraContext, DictConfig] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra tells what it has."""
        self.given = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """All cells: compose and parse, then run or submit."""
        from upft import launcher

        assert self.given is not None
        launcher.sweep(*self.given, [list(one) for one in job_overrides], self.slurm)
        return []
