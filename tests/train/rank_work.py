"""What ranks are started with where little is imported: a spawned process imports the module of its work before it begins, and
the trainer's imports alone take six seconds of processor time, in whoever starts the ranks as in each rank."""

from __future__ import annotations

import os
import time
from pathlib import Path

from upft.ranks import World


def defective(world: World) -> None:
    """A mistake in the program, on one rank."""
    if world.rank == 1:
        raise ZeroDivisionError("a defect")
    time.sleep(3600)


def lasting(world: World, model_folder: Path, out: Path) -> None:
    """Trains until it is stopped."""
    from test_ranks import LIMIT, ROWS, fresh

    from upft.choices import Precision
    from upft.fit import fit
    from upft.machine import ComputeConfig
    from upft.training import TrainConfig

    settings = TrainConfig(epochs=10**6, lr=1e-3, max_length=256, batch_size=6, grad_clip=None, warmup_ratio=0.0,
                           precision=Precision.fp32)
    (out / f"pid-{world.rank}").write_text(str(os.getpid()))
    fit(fresh(model_folder, False), ROWS, settings, 0, ComputeConfig(devices=2, micro_batch_tokens=LIMIT, threads=1), out,
        lambda record: (out / "step").write_text(str(record["step"])), world=world)
