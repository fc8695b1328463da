"""What goes on around the steps of a training: reports, totals, and checkpoints to go on from.

Floor 4. One `Log` accompanies the run on every rank; the first rank's is the one that speaks. Knows no rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import notice
from upft.console import Bar
from upft.ranks import World

if TYPE_CHECKING:
    import torch

    from upft.checkpoint import Checkpoint
    from upft.module import PrefixModule

Report = Callable[[Mapping[str, float | int]], None]


@dataclass
class Totals:
    """Sums over the steps done, interrupted runs included. seconds: what the steps took."""

    supervised_tokens: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    shared_tokens: int = 0
    pairs: int = 0
    seconds: float = 0.0
    first: dict[str, float | int] = field(default_factory=dict)
    last: dict[str, float | int] = field(default_factory=dict)

    def add(self, record: Mapping[str, float | int]) -> None:
        """One more step."""
        for key in ("supervised_tokens", "tokens", "padding_tokens", "shared_tokens", "pairs"):
            setattr(self, key, getattr(self, key) + int(record[key]))
        self.seconds = float(record["seconds"])
        self.first = self.first or dict(record)
        self.last = dict(record)


class Log:
    """`module.Journey`. folder: of checkpoints, None = none; every_s: between two of them."""

    def __init__(self, world: World, bar: Bar, report: Report | None, folder: Path | None, every_s: float | None,
                 found: Checkpoint | None) -> None:
        self.totals = Totals() if found is None else Totals(**found.state["totals"])
        self._world, self._bar, self._report = world, bar, report
        self._folder, self._every_s, self._found = folder, every_s, found
        self._before = self._saved = self._began = 0.0

    def begin(self, module: PrefixModule) -> None:
        """Fill in what the checkpoint holds and start the clocks: what comes before the first step is none's time."""
        if self._found is not None:
            from upft import training_state

            self._found.load(_tensors(module))
            if own := self._found.own(self._world.rank):
                training_state.set_random_state(own)
            self._bar.advance(self._found.step)
            self._found = None
        self._before = self._saved = time.perf_counter()
        self._began = self._before - self.totals.seconds

    def report(self, values: dict[str, float | int]) -> None:
        """Complete a step's numbers with its speed, add them up and pass them on."""
        now = time.perf_counter()
        record = {**values, "tokens_per_s": round(values["tokens"] / (now - self._before), 1),
                  "seconds": round(now - self._began, 3)}
        self._before = now
        self.totals.add(record)
        self._bar.advance(1, tokens=int(values["tokens"]), loss=float(values["loss"]))
        if self._report is not None:
            self._report({key: value for key, value in record.items() if key != "pairs"})

    def due(self) -> bool:
        """On the first rank, when the time has come."""
        return (self._folder is not None and self._every_s is not None and self._world.first
                and time.perf_counter() - self._saved >= self._every_s)

    def told(self) -> bool:
        """On the first rank, when the job has to stop and the training keeps checkpoints."""
        return self._folder is not None and self._every_s is not None and self._world.first and notice.given()

    def save(self, module: PrefixModule) -> None:
        """Write a checkpoint, on every rank."""
        import torch

        from upft import checkpoint, training_state

        assert self._folder is not None
        several = self._world.ranks > 1
        checkpoint.save(self._folder, module.done, _tensors(module), {"totals": asdict(self.totals)}, self._world.rank,
                        self._world.ranks, torch.distributed.barrier if several else _nothing,
                        own=training_state.random_state())
        self._saved = time.perf_counter()


def _nothing() -> None:
    """A barrier of one."""


def _tensors(module: PrefixModule) -> dict[str, torch.Tensor]:
    from upft import training_state

    optimizer: Any = module.optimizers()
    return {**training_state.flatten_model(module.loss.model),
            **training_state.flatten_optimizer(module.loss.model, optimizer.optimizer)}
