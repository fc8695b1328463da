"""What training and sampling do to the process around them, and how it is put back.

Floor 4. Lightning is kept quiet; threads, random state, the model's mode and the handling of Ctrl+C are left
as they were found.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from upft.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's banners and tips stay off the console; its errors, and all other warnings, do not."""
    loggers = [logging.getLogger(name) for name in (
        "pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda",
        "lightning_fabric", "lightning_fabric.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*GPU available but not used.*")  # compute.accelerator=cpu says so
            # Where SLURM is installed: ranks are launched by `upft.ranks`, or by srun where a job has several tasks.
            warnings.filterwarnings("ignore", message=r"The `srun` command is available on your system but is not used\.")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def give_back() -> None:
    """Return memory that was freed to the operating system (glibc; elsewhere nothing happens).

    Batches differ a little in size, so what one leaves free is often a little too small for the next; within some
    steps of a training a third of the memory would be such holes (docs/log.md).
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    import ctypes

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def training_mode(model: PreTrainedModel, gradient_checkpointing: bool) -> Iterator[None]:
    """Lightning leaves a model in the mode it has, and a loaded one is in evaluation mode."""
    was_training = model.training
    gradient_checkpointing = gradient_checkpointing and not model.is_gradient_checkpointing
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"compute.gradient_checkpointing=true: {type(model).__name__} cannot do it",
                              "set compute.gradient_checkpointing=false and lower compute.micro_batch_tokens")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.train(was_training)
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()


@contextmanager
def interruptible() -> Iterator[None]:
    """Lightning turns Ctrl+C into exit status 1 and makes the process deaf to it; give both back."""
    import signal
    import threading

    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def compiled(blocks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """torch.compile for each of these blocks; blocks of one class share the compiled code."""
    for block in blocks:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
