"""Train a model in memory on rows: one call, used by the stage `train` and by anyone who imports the package.

Floor 5. Puts packing, attention, the Lightning module, a strategy and a Trainer together. Loads no model and
saves none; where asked it keeps checkpoints and goes on from the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from upft import packing
from upft.choices import Accelerator, Layout, Precision, Reduction, Strategy
from upft.console import Console
from upft.errors import ConfigError, TrainError
from upft.journey import Log
from upft.machine import ComputeConfig
from upft.prefix import UNSUPERVISED, Row, RowTable
from upft.ranks import World

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from upft.checkpoint import Checkpoint
    from upft.models import Parts

MICRO_BATCH_TOKENS = {"cpu": 2048, "gpu": 16384}
"""compute.micro_batch_tokens where it is null. A CPU is as fast with less, and 2048 stay in memory."""


class Settings(Protocol):
    """The science of a training: `specs.TrainSpec` and `config.TrainConfig` both fit."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def grad_clip(self) -> float | None: ...
    @property
    def reduction(self) -> Reduction: ...
    @property
    def precision(self) -> Precision: ...


@dataclass(frozen=True)
class Fitted:
    """What a training did. Token counts are over all epochs and ranks.

    shared_tokens: of forward_tokens, those that another row's computation served. flops leave padding and
    recomputation out. layout: packed or padded. seconds: of all steps, before an interruption too.
    """

    rows: int
    steps: int
    first_loss: float
    last_loss: float
    supervised_tokens: int
    forward_tokens: int
    padding_tokens: int
    shared_tokens: int
    flops: float
    seconds: float = field(compare=False)  # all else follows from the call
    device: str
    layout: str


class Precise(Protocol):
    """Settings that name the arithmetic."""

    @property
    def precision(self) -> Precision: ...


def weights_dtype(settings: Precise, adapters: bool) -> torch.dtype:
    """The number format in which to load a model for `fit`: that of the weights while they are trained.

    With adapters the loaded weights are frozen; in bf16_mixed they may then be bf16 as they are computed with.
    """
    import torch

    if settings.precision is Precision.fp32 or (settings.precision is Precision.bf16_mixed and not adapters):
        return torch.float32
    return torch.bfloat16


def fit(model: PreTrainedModel, rows: Sequence[Row] | RowTable, settings: Settings, seed: int, compute: ComputeConfig,
        folder: Path, report: Callable[[Mapping[str, float | int]], None] | None = None,
        console: Console | None = None, world: World | None = None, checkpoints: Path | None = None,
        resume: Checkpoint | None = None, preference: tuple[float, np.ndarray] | None = None) -> Fitted:
    """Train the parameters of `model` that require gradients, in place, on `rows`.

    The weights must have the format of `weights_dtype`. report: called after each step with step (from 1),
    loss, lr, grad_norm, rows, supervised_tokens, tokens, padding_tokens, shared_tokens, tokens_per_s and
    seconds. folder: where a breakdown leaves the ids of its questions. world: this process among those that
    train together (each calls this with the same arguments). checkpoints: a folder to keep them in, every
    compute.checkpoint_every_s seconds. resume: one of them, to go on from. preference: DPO on pairs instead of cross-entropy
    on rows, see `batches.Steps`. The same call on the same machine gives the same
    weights, bit for bit on a CPU and interrupted or not; compute settings change them by rounding only.
    Raises TrainError (no rows, a number that is not finite, out of memory), ModelError (an architecture that
    cannot be taken apart), ConfigError (a device that is not there, a layout that cannot be).
    """
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.environments import LightningEnvironment
    from pytorch_lightning.utilities.seed import isolate_rng

    from upft import lean, manners, matmul, models, optimizer, ranks
    from upft.batches import Steps
    from upft.module import PrefixModule
    from upft.steps import RowsLoss

    console = console or Console(quiet=True)
    world = world or World()
    if len(rows) == 0:
        raise TrainError("there are no rows to train on", "see what the build stage left out, and why")
    _check_weights(model, settings.precision)
    lengths, supervised = _measure(rows)
    device = pick_device(compute.accelerator)
    limit = MICRO_BATCH_TOKENS[device] if compute.micro_batch_tokens is None else compute.micro_batch_tokens
    units = len(rows) if preference is None else len(rows) // 2
    steps = packing.steps_per_epoch(units, settings.batch_size) * settings.epochs
    if (alone := packing.oversized(lengths, limit)) and world.first:
        console.warn(f"{alone} of {len(rows)} rows are longer than compute.micro_batch_tokens={limit}"
                     f" (the longest has {int(lengths.max())} tokens): each goes through alone")
    mixed = settings.precision is Precision.bf16_mixed
    sharded = ranks.chosen(compute) is Strategy.fsdp

    with ExitStack() as stack:
        stack.enter_context(manners.quiet_lightning())
        stack.enter_context(manners.threads(compute.threads))
        stack.enter_context(isolate_rng())
        stack.enter_context(manners.training_mode(model, compute.gradient_checkpointing))
        pl.seed_everything((seed + world.rank) % 2**32, verbose=False)  # for dropout; the order of rows has its own
        parts = models.take_apart(model)
        layout, tiled = lay_out(model, parts, compute.layout, device, mixed, sharded,
                                world.rank % compute.devices, console if world.first else Console(quiet=True))
        if layout is Layout.packed:
            from upft import attention

            stack.enter_context(attention.installed(model))
        if device == "cpu" and settings.precision is not Precision.fp32 and not matmul.bf16_is_fast():
            stack.enter_context(matmul.widened(model))
        if not (compute.compile or compute.gradient_checkpointing):  # both decide themselves what is computed again
            stack.enter_context(lean.lean(model))
        if compute.compile:
            stack.enter_context(manners.compiled(ranks.layers(model)))
        bar = stack.enter_context((console if world.first else Console(quiet=True)).bar("train", steps, "steps"))
        log = Log(world, bar, report if world.first else None, checkpoints, compute.checkpoint_every_s, resume)
        done = 0 if resume is None else resume.step
        if done < steps:
            module = PrefixModule(
                RowsLoss(model, parts),
                lambda: optimizer.build(
                    model.named_parameters(), settings.precision, lr=settings.lr, betas=(settings.beta1, settings.beta2),
                    eps=settings.eps, weight_decay=settings.weight_decay, seed=seed),
                lr=settings.lr, steps=steps, done=done, warmup_ratio=settings.warmup_ratio, grad_clip=settings.grad_clip,
                journey=log, folder=folder,
                shard=(lambda root, mesh: ranks.shard(root, model, mesh, settings.precision)) if sharded else None)
            trainer = pl.Trainer(
                accelerator=device, devices=compute.devices, num_nodes=compute.nodes, strategy=ranks.lightning(compute),
                precision="bf16-mixed" if mixed and not sharded else "32-true",
                max_steps=steps - done, max_epochs=-1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
                use_distributed_sampler=False, plugins=[LightningEnvironment()])
            with manners.interruptible():
                trainer.fit(module, train_dataloaders=Steps(
                    rows, lengths, supervised, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed,
                    reduction=settings.reduction, micro_batch_tokens=limit, layout=layout, share=compute.share_prompts,
                    tiled=tiled, world=world, start=done, preference=preference))
        elif resume is not None:  # stopped behind its last step, while the model was being saved
            from upft import training_state

            resume.load(training_state.flatten_model(model))
    t = log.totals
    return Fitted(len(rows), steps, float(t.first["loss"]), float(t.last["loss"]), t.supervised_tokens, t.tokens,
                  t.padding_tokens, t.shared_tokens, _flops(model, t.tokens - t.shared_tokens, t.pairs, t.supervised_tokens),
                  t.seconds, device, layout.name)


def _check_weights(model: PreTrainedModel, precision: Precision) -> None:
    """Raise TrainError unless what is trained has the number format that the precision promises."""
    import torch

    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    if precision in (Precision.fp32, Precision.bf16_mixed):
        if trained - {torch.float32}:
            raise TrainError(f"the model's weights are {model.dtype}, but train.precision={precision.name} trains fp32 ones",
                             "load the model with dtype=torch.float32")
    elif torch.bfloat16 not in trained:
        raise TrainError(f"the model's weights are {model.dtype}, but train.precision={precision.name} trains bf16 ones",
                         "load the model with dtype=torch.bfloat16")


def _measure(rows: Sequence[Row] | RowTable) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, supervised tokens that a token precedes) of each row."""
    if isinstance(rows, RowTable):
        return rows.lengths, rows.predicted
    lengths = np.array([len(r.input_ids) for r in rows], dtype=np.int64)
    return lengths, np.array([sum(x != UNSUPERVISED for x in r.labels[1:]) for r in rows], dtype=np.int64)


def lay_out(model: PreTrainedModel, parts: Parts, wanted: Layout, device: str, mixed: bool, sharded: bool,
            local_rank: int, console: Console) -> tuple[Layout, bool]:
    """(packed or padded, whether attention goes by tiles). Raises ConfigError when packed is asked for and cannot be."""
    import torch

    from upft import attention

    if wanted is Layout.padded:
        return Layout.padded, True
    place = torch.device("cuda", local_rank) if device == "gpu" else torch.device("cpu")
    tiled = not attention.kernel_serves(place, torch.bfloat16 if mixed else model.dtype, model)
    # A model that is to be cut may not fit on one GPU whole: what its architecture can do shows on the CPU as well.
    proof = torch.device("cpu") if sharded else place
    if model.device.type != proof.type:
        model.to(proof)  # Lightning would move it a moment later
    with torch.autocast(proof.type, torch.bfloat16, enabled=mixed):
        why = attention.fits(model, parts.body, tiled or proof.type == "cpu")
    if why is None:
        return Layout.packed, tiled
    if wanted is Layout.packed:
        raise ConfigError(f"compute.layout=packed: {type(model).__name__} cannot be trained so: {why}",
                          "use compute.layout=padded (or auto)")
    console.say(f"  rows are padded: {type(model).__name__} cannot take them end to end ({why})")
    return Layout.padded, True


def _flops(model: PreTrainedModel, tokens: int, pairs: int, supervised: int) -> float:
    """Of the whole run: `tokens` computed, the head on `supervised` of them, attention over `pairs`."""
    from upft import models
    from upft.ledger import training_flops

    head, shape = models.head_parameters(model), model.config.get_text_config()
    body = models.multiplied_parameters(model) - head
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = trained == sum(p.numel() for p in model.parameters())
    return training_flops(body if whole else body - trained, head, int(shape.num_hidden_layers), int(shape.hidden_size),
                          tokens, pairs, supervised, None if whole else trained)


def pick_device(accelerator: Accelerator) -> str:
    """cpu or gpu. Raises ConfigError when a GPU is asked for and torch sees none."""
    import torch

    there = torch.cuda.is_available()
    if accelerator is Accelerator.gpu and not there:
        raise ConfigError("compute.accelerator=gpu: torch sees no GPU", "use compute.accelerator=cpu, or a machine with a GPU")
    return "gpu" if there and accelerator is not Accelerator.cpu else "cpu"
