"""Several processes that train together: who is who, how they start, how they share a model.

Floor 4. Uses Lightning's own strategies: DDP, and FSDP2 through `ModelParallelStrategy`. A rank is one
process with one device. Knows no rows and no loss.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from upft import slurm
from upft.choices import Precision, Strategy
from upft.errors import ConfigError, TrainError, UpftError
from upft.machine import ComputeConfig

if TYPE_CHECKING:
    import torch
    from pytorch_lightning.strategies import Strategy as LightningStrategy
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

GRACE_S = 3
"""How long the other ranks may take to end by themselves when one has failed, and again before they are killed."""


@dataclass(frozen=True)
class World:
    """One process among those that train together."""

    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0


def planned(compute: ComputeConfig) -> int:
    """Processes that a training asks for."""
    return compute.devices * compute.nodes


def here(compute: ComputeConfig) -> World | None:
    """This process's place where a cluster has started one process a device; None where they are to be started.

    Raises ConfigError for several nodes without such a start.
    """
    ranks = planned(compute)
    if ranks == 1:
        return World()
    started = slurm.task()
    if started is not None and started[1] == ranks:
        return World(*started)
    if compute.nodes > 1:
        raise ConfigError(f"compute.nodes={compute.nodes}: no process has been started on the other nodes",
                          f"start this stage with srun --ntasks={ranks} --nodes={compute.nodes}, or set compute.nodes=1")
    return None


def launch(target: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Run `target(world, *arguments)` in `ranks` new processes on this machine and wait for all.

    When one fails the others are stopped and its UpftError is raised here; one that dies without a word
    becomes a TrainError; any other error is a defect and keeps its traceback. target and arguments must be
    importable and picklable (they travel to the processes).
    """
    import torch.multiprocessing as processes
    from torch.distributed import TCPStore
    from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

    # This process holds the meeting point: a port that was free a moment ago and is left to a rank may be taken by then.
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = processes.get_context("spawn").SimpleQueue()
    context = processes.start_processes(_rank, (target, arguments, ranks, meeting.port, said), ranks, join=False,
                                        start_method="spawn")
    assert context is not None
    killed: list[int] = []
    try:
        while True:
            wait([process.sentinel for process in context.processes if process.is_alive()], timeout=1)
            # Looked at before `join`, which kills the others; and a peer of a dead one fails too, a moment later.
            killed = [i for i, process in enumerate(context.processes) if (process.exitcode or 0) < 0]
            if context.join(timeout=0, grace_period=GRACE_S):
                break
    except ProcessException as error:
        if not said.empty():
            raise said.get() from error
        if not killed and not isinstance(error, ProcessExitedException):
            raise
        dead = killed[0] if killed else error.error_index
        raise TrainError(f"rank {dead} of {ranks} died ({_ending(context.processes[dead].exitcode)})",
                         "if it was killed, the machine had too little memory: lower compute.devices or "
                         "compute.micro_batch_tokens; the same command goes on from the last checkpoint") from error
    finally:
        for process in context.processes:  # also on Ctrl+C
            if process.is_alive():
                process.kill()


def _ending(code: int) -> str:
    """An exit status in words."""
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _rank(rank: int, target: Callable[..., None], arguments: tuple[Any, ...], ranks: int, port: int, said: Any) -> None:
    """One process: tell Lightning where it stands, run, hand an error over."""
    threading.Thread(target=_end_with_starter, daemon=True).start()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0",
                      WORLD_SIZE=str(ranks), RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True")
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:  # else gloo takes the interface that this machine's name resolves to, where it does
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    status = 0
    try:
        target(World(rank, ranks), *arguments)
    except UpftError as error:
        said.put(error)
        status = 1
    finally:
        import torch.distributed as dist

        if dist.is_initialized():
            with suppress(Exception):  # a peer may be gone
                dist.destroy_process_group()
    # Without the finalisers: gloo's threads are sometimes still there when they run, and the process then aborts
    # (SIGABRT) with its work done, which would count as a failed training.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_starter() -> None:
    """End this process when the one that started it is gone: it would write into the folder of the training that takes over.

    At once: what PyTorch does then (SIGINT) is ignored where the starter ignored it, as jobs in the background do, and
    leaves a rank waiting for a peer that has ended first.
    """
    starter = parent_process()
    if starter is not None:
        starter.join()
        os._exit(1)


def chosen(compute: ComputeConfig) -> Strategy:
    """The strategy with `auto` resolved."""
    if compute.strategy is not Strategy.auto:
        return compute.strategy
    return Strategy.single if planned(compute) == 1 else Strategy.ddp


def lightning(compute: ComputeConfig) -> LightningStrategy | str:
    """Lightning's strategy for these settings."""
    from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

    match chosen(compute):
        case Strategy.ddp:
            return DDPStrategy()
        case Strategy.fsdp:
            return ModelParallelStrategy(data_parallel_size=planned(compute), tensor_parallel_size=1)
        case _:
            return "auto"


def shard(root: torch.nn.Module, model: PreTrainedModel, mesh: DeviceMesh, precision: Precision) -> None:
    """Cut `root`'s parameters over the mesh with FSDP2: one unit a decoder layer, the rest in the root.

    With bf16_mixed, layers are gathered and computed in bf16 and gradients summed in fp32, while each rank
    keeps its part of the fp32 weights.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mixed = precision is Precision.bf16_mixed
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=torch.float32, output_dtype=None)
    for layer in layers(model):
        fully_shard(layer, mesh=mesh["data_parallel"], mp_policy=policy)
    fully_shard(root, mesh=mesh["data_parallel"], mp_policy=policy)


def layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers: the blocks that the architecture says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__.removeprefix("FSDP") in names]
    return [m for m in found if not any(m is not other and m in set(other.modules()) for other in found)]


def gathered(model: PreTrainedModel, fresh: Callable[[], PreTrainedModel], world: World) -> PreTrainedModel | None:
    """The trained model whole, on the first rank; None on the others. Every rank calls this.

    `fresh` makes the model as it was before it was cut; what was trained is copied into it. A model that was
    not cut is returned as it is.
    """
    import torch
    from torch.distributed.tensor import DTensor

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not any(isinstance(p, DTensor) for _, p in trained):
        return model if world.first else None
    whole = fresh() if world.first else None
    places = {} if whole is None else dict(whole.named_parameters())
    with torch.no_grad():
        for name, p in trained:
            full = p.full_tensor() if isinstance(p, DTensor) else p
            if whole is not None:
                places[name].copy_(full)
    return whole
