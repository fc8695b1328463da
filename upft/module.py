"""The Lightning module: optimiser, what a step reports; nothing else.

Floor 4. One "batch" is one optimiser step (`upft.steps`). Where rows come from, where the reports
go and how a model is loaded or saved is not known here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.distributed.tensor import DTensor

from upft import manners
from upft.errors import Stopped, TrainError
from upft.steps import RowsLoss, StepBatch

OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
NONFINITE = "nonfinite.json"


class Journey(Protocol):
    """What goes on around the steps: where the run stands, its reports, its checkpoints."""

    def begin(self, module: PrefixModule) -> None:
        """Called once before the first step, the optimiser being there."""

    def report(self, values: dict[str, float | int]) -> None:
        """Called after each step with its numbers, on every rank."""

    def due(self) -> bool:
        """Whether this rank wants a checkpoint now."""

    def told(self) -> bool:
        """Whether this rank was told to stop: all of them then do, after a checkpoint."""

    def save(self, module: PrefixModule) -> None:
        """Called on every rank when one of them is due."""


class PrefixModule(pl.LightningModule):
    """Next-token cross-entropy on supervised tokens, or DPO on pairs of rows; warm-up, then a constant rate.

    optimizer: makes it, once the parameters are where they will be trained. lr: the peak. steps: of the whole
    run; done: those already behind. grad_clip: largest gradient norm, None = any. folder: where the question
    ids of a step that broke down are written. shard: cuts the loss module over a device mesh (FSDP).
    """

    def __init__(self, loss: RowsLoss, optimizer: Callable[[], torch.optim.Optimizer], *, lr: float, steps: int, done: int,
                 warmup_ratio: float, grad_clip: float | None, journey: Journey, folder: Path,
                 shard: Callable[[RowsLoss, Any], None] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.loss = loss
        self.done = done
        self._optimizer, self._shard = optimizer, shard
        self._lr, self._steps, self._warmup_ratio, self._grad_clip = lr, steps, warmup_ratio, grad_clip
        self._journey, self._folder = journey, folder
        self._begun = False

    def configure_model(self) -> None:
        """Lightning's hook to cut the model; it may be called twice."""
        if self._shard is not None:
            self._shard(self.loss, self.device_mesh)
            self._shard = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser over the parameters as the strategy has placed them."""
        return self._optimizer()

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimiser step. Raises TrainError when memory runs out or a number is no longer finite."""
        optimizer = self.optimizers()
        if not self._begun:
            self._journey.begin(self)
            self._begun = True
        lr = self._lr * warmup(self.done, self._steps, self._warmup_ratio)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        losses = []
        last = len(batch.micro_batches) - 1
        for i, micro in enumerate(batch.micro_batches):
            tokens = micro.input_ids.numel()
            shape = f"{tokens}" if micro.rows is not None else " rows x ".join(map(str, micro.input_ids.shape))
            with _memory(f"in a micro-batch of {shape} tokens", f"lower compute.micro_batch_tokens (this one took {tokens}), "
                         "or set compute.gradient_checkpointing=true"), self._gathering(i == last):
                loss = self.loss(micro)
                self.manual_backward(loss)
            losses.append(loss.detach())
        limit = self._grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.loss.parameters(), math.inf if limit is None else limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        seen = [m.pairs.rewards for m in batch.micro_batches if m.pairs is not None and m.pairs.rewards is not None]
        rewards = torch.stack(seen).sum(dim=0).to(losses[0]).unbind() if seen else ()
        told = torch.stack([*losses, norm.to(losses[0]), *rewards]).tolist()  # the step's one wait for the device
        parts, grad_norm, mine = told[:len(losses)], told[len(losses)], told[len(losses) + 1:] or [0.0] * 3
        broken = not all(map(math.isfinite, [*parts, grad_norm]))
        total, chosen, rejected, accuracy, bad_ranks, due_ranks, told_ranks, *counts = self._together(
            [0.0 if broken else math.fsum(parts), *mine],
            [broken, self._journey.due(), self._journey.told(), batch.tokens, batch.padding, batch.shared, batch.pairs])
        if bad_ranks:
            self._stop(batch, parts, grad_norm)
        with _memory("in the optimiser, which keeps two numbers for each parameter",
                     "use train.precision=bf16_stochastic (half the size), compute.strategy=fsdp, or a smaller model"):
            optimizer.step()
        if norm.device.type == "cpu":
            manners.give_back()
        self.done += 1
        tokens, padding, shared, pairs = map(int, counts)
        self._journey.report({"step": self.done, "loss": total, "lr": lr, "grad_norm": grad_norm,
                              "rows": batch.rows, "supervised_tokens": batch.supervised, "tokens": tokens,
                              "padding_tokens": padding, "shared_tokens": shared, "pairs": pairs,
                              **({"rewards/chosen": chosen, "rewards/rejected": rejected, "rewards/margins": chosen - rejected,
                                  "rewards/accuracies": accuracy} if batch.preference else {})})
        if due_ranks or told_ranks:
            self._journey.save(self)
        if told_ranks:
            raise Stopped(f"told to stop; a checkpoint is written after step {self.done} of {self._steps}",
                          "the same command goes on from there; a job in a queue does so by itself")

    def _gathering(self, last: bool) -> AbstractContextManager[None]:
        """DDP sums gradients over ranks in the step's last backward pass only. FSDP does in each: it keeps no whole ones."""
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, DDPStrategy):
            return nullcontext()
        return strategy.block_backward_sync()

    def _together(self, means: list[float], sums: list[float]) -> list[float]:
        """Means over the ranks, then sums over them. The loss is a mean: its weights are made for one."""
        ranks = self.trainer.world_size
        if ranks == 1:
            return [*means, *sums]
        summed = torch.tensor([*means, *sums], dtype=torch.float64, device=self.trainer.strategy.root_device)  # NCCL wants it
        torch.distributed.all_reduce(summed)
        found = summed.tolist()
        return [*(value / ranks for value in found[:len(means)]), *found[len(means):]]

    def _stop(self, batch: StepBatch, losses: list[float], grad_norm: float) -> None:
        """Leave the weights as they are, write down which questions it was, and say so."""
        step = self.done + 1
        bad = [m for m, loss in zip(batch.micro_batches, losses, strict=True) if not math.isfinite(loss)]
        mine = {"losses": [str(x) for x in losses], "bad": [i for m in bad for i in m.question_ids],
                "all": [i for m in batch.micro_batches for i in m.question_ids]}
        ranks = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, mine)
        some = any(rank["bad"] for rank in ranks)
        what = "loss" if some else "gradient norm"
        ids = [i for rank in ranks for i in rank["bad" if some else "all"]]
        file = self._folder / NONFINITE
        if self.trainer.is_global_zero:
            file.write_text(json.dumps({"step": step, "what": what, "losses": [x for rank in ranks for x in rank["losses"]],
                                        "grad_norm": str(grad_norm), "question_ids": ids}, indent=1) + "\n", encoding="utf-8")
        raise TrainError(
            f"the {what} of step {step} is not a finite number; questions {', '.join(ids[:3])}"
            f"{f' and {len(ids) - 3} more' if len(ids) > 3 else ''} (all in {file})",
            "lower train.lr, set train.grad_clip, or train in train.precision=fp32; look at those rows")


def warmup(done: int, steps: int, ratio: float) -> float:
    """Share of the peak rate in force after `done` steps: linear over the first ceil(ratio * steps), then 1.

    The first step moves already (a rate of 0 would waste it); the last of the warm-up has the peak rate.
    """
    rising = math.ceil(ratio * steps)
    return min(1.0, (done + 1) / rising) if rising else 1.0


@contextmanager
def _memory(where: str, remedy: str) -> Iterator[None]:
    """An allocation that fails becomes a TrainError."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a bare one
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        raise TrainError(f"out of memory {where}", remedy) from error
