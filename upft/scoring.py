"""How likely a model finds completions: their log-probabilities, without a gradient.

Floor 5, beside training, whose packing and arithmetic it shares, so that a model scores the rows it is about to be trained on
exactly as the training will. What was scored is kept in a log: an interrupted scoring goes on. One device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from upft import fit, packing
from upft.choices import Layout, Precision, Reduction
from upft.console import Console
from upft.errors import StoreError
from upft.machine import ComputeConfig
from upft.packed import pack
from upft.prefix import Row, RowTable
from upft.sample_log import SampleLog

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "logprobs.safetensors"
WINDOW = 256
"""Rows that are laid out together."""


@dataclass
class Scored:
    """logprobs: [rows] fp64, of each row's supervised tokens, summed. tokens: of all rows; flops: operations it took."""

    logprobs: np.ndarray
    tokens: int
    flops: float


def score(load: Callable[[], PreTrainedModel], rows: Sequence[Row] | RowTable, precision: Precision, compute: ComputeConfig,
          keep: Path, console: Console, label: str) -> Scored:
    """Log-probability of every row's completion. load: gives the model, where anything is left to score. keep: folder of the
    log. Raises what packing and the model raise."""
    found = np.full(len(rows), np.nan)
    lengths = rows.lengths if isinstance(rows, RowTable) else np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    flops = 0.0
    with SampleLog(keep) as log:
        for _, record in log.read():
            found[record["rows"]] = record["logprobs"]
            flops += float(record["flops"])
        missing = np.flatnonzero(np.isnan(found))
        if 0 < len(missing) < len(rows):
            console.say(f"  {label}: going on from an earlier run, {len(rows) - len(missing):,} of {len(rows):,} are there")
        if len(missing):
            with console.bar(label, len(missing), "rows") as bar:
                for numbers, sums, spent in _forward(load(), rows, lengths, missing, precision, compute, console):
                    log.append({"rows": numbers, "logprobs": sums.tolist(), "flops": spent})
                    found[numbers] = sums
                    flops += spent
                    bar.advance(len(numbers), tokens=int(lengths[numbers].sum()))
    return Scored(found, int(lengths.sum()), flops)


def _forward(model: PreTrainedModel, rows: Sequence[Row] | RowTable, lengths: np.ndarray, wanted: np.ndarray,
             precision: Precision, compute: ComputeConfig, console: Console) -> Iterator[tuple[list[int], np.ndarray, float]]:
    """(rows, their log-probabilities, operations) a micro-batch at a time."""
    import torch

    from upft import attention, manners, matmul, models
    from upft.ledger import training_flops
    from upft.preference import log_probabilities
    from upft.steps import predicting, step_batch

    device = fit.pick_device(compute.accelerator)
    place = torch.device("cuda" if device == "gpu" else "cpu")
    limit = fit.MICRO_BATCH_TOKENS[device] if compute.micro_batch_tokens is None else compute.micro_batch_tokens
    mixed = precision is Precision.bf16_mixed
    model.eval().to(place)
    head, shape = models.head_parameters(model), model.config.get_text_config()
    body = models.multiplied_parameters(model) - head
    with ExitStack() as stack:
        stack.enter_context(manners.threads(compute.threads))
        parts = models.take_apart(model)
        layout, tiled = fit.lay_out(model, parts, compute.layout, device, mixed, False, 0, console)
        if layout is Layout.packed:
            stack.enter_context(attention.installed(model))
        if device == "cpu" and precision is not Precision.fp32 and not matmul.bf16_is_fast():
            stack.enter_context(matmul.widened(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(place.type, torch.bfloat16, enabled=mixed))
        cut = packing.split if layout is Layout.padded else packing.bins
        for start in range(0, len(wanted), WINDOW):
            for micro in cut(wanted[start:start + WINDOW], lengths, limit):
                these = [rows[i] for i in micro.rows]
                laid = pack(these, compute.share_prompts, fill=True) if micro.packed else packing.pad(these)
                batch = step_batch([(laid, [])], Reduction.sequence, tiled)
                tensors = batch.micro_batches[0].to(place)
                sums = log_probabilities(parts, predicting(parts, tensors), tensors.target,
                                         torch.from_numpy(laid.row).to(place), len(these))
                yield list(micro.rows), sums.cpu().numpy(), training_flops(
                    body, head, int(shape.num_hidden_layers), int(shape.hidden_size), batch.tokens - batch.shared, batch.pairs,
                    batch.supervised) / 3  # a training step is three forward passes


def write(folder: Path, logprobs: np.ndarray) -> None:
    """Keep log-probabilities in an artifact."""
    from safetensors.numpy import save_file

    save_file({"logprobs": logprobs}, folder / FILE)


def read(folder: Path) -> np.ndarray:
    """Log-probabilities of an artifact: [rows] fp64. Raises StoreError when they are not there."""
    from safetensors.numpy import load_file

    try:
        found: np.ndarray = load_file(folder / FILE)["logprobs"]
    except (OSError, KeyError) as error:
        raise StoreError(f"{folder / FILE} cannot be read: {error}", "build the artifact again with run.repair=true") from error
    return found
