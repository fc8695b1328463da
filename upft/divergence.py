"""How far two models' next-token distributions lie apart, token by token, exactly.

Floor 5. Both models read the same rows; logits of the whole vocabulary exist for a few positions at a time only. What was
compared is kept in a log: an interrupted comparison goes on, and shards leave theirs for the whole. One device, which must hold
both models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upft import fit, packing, sample_log
from upft.choices import Reduction
from upft.console import Console
from upft.machine import ComputeConfig
from upft.prefix import Row
from upft.sample_log import SampleLog

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from upft.models import Parts

CHUNK = 2**22
"""Logits of each model that exist at once: 32 MiB in fp64."""
WINDOW = 256
"""Rows that are laid out together."""

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Trace:
    """What is compared: a trace by its question and its number there, as the row that both models read."""

    question: str
    index: int
    row: Row


def compare(load: Callable[[], tuple[PreTrainedModel, PreTrainedModel]], traces: Sequence[Trace], compute: ComputeConfig,
            log: SampleLog, console: Console, shards: Sequence[Path] = ()) -> tuple[list[Pair], float]:
    """([traces] of (KL(base || trained), KL(trained || base)) at each supervised token, in nats, as predicted from those
    before; operations it took). load: gives (base, trained), where anything is left to compare. shards: folders with the logs
    of jobs that compared shares of these."""
    places: dict[tuple[Any, Any], int] = {(trace.question, trace.index): number for number, trace in enumerate(traces)}
    found: list[Pair | None] = [None] * len(traces)
    flops = 0.0

    def take(records: Iterable[tuple[int, dict[str, Any] | None]]) -> int:
        nonlocal flops
        taken = 0
        for _, record in records:
            number = None if record is None else places.get((record.get("question"), record.get("index")))
            if record is None or number is None or found[number] is not None:
                continue
            found[number] = np.array(record["forward"]), np.array(record["reverse"])
            flops += float(record["flops"])
            taken += 1
        return taken

    if reused := take(log.read()):
        console.say(f"  comparing: going on from an earlier run, {reused:,} of {len(traces):,} are there")
    if joined := sum(take(sample_log.lines(shard / sample_log.FILE)) for shard in shards):
        console.say(f"  comparing: {joined:,} of {len(traces):,} were compared by {len(shards)} shards")
    missing = np.array([number for number, pair in enumerate(found) if pair is None], dtype=np.int64)
    if len(missing):
        with console.bar("comparing", len(missing), "traces") as bar:
            for number, pair, spent in _forward(*load(), [trace.row for trace in traces], missing, compute):
                trace = traces[number]
                log.append({"question": trace.question, "index": trace.index, "forward": pair[0].tolist(),
                            "reverse": pair[1].tolist(), "flops": spent})
                found[number] = pair
                flops += spent
                bar.advance(1, tokens=len(trace.row.input_ids))
    return [pair for pair in found if pair is not None], flops


def apart(base: Parts, trained: Parts, base_hidden: torch.Tensor, trained_hidden: torch.Tensor,
          chunk: int = CHUNK) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL(p || q), KL(q || p)): [n] fp64 each, of the two heads' distributions at hidden states [n, hidden], in nats.

    KL(p || q) = sum over the vocabulary of p log(p/q) (Kullback and Leibler 1951, doi:10.1214/aoms/1177729694), from all
    logits, `chunk` of each model at a time, in double precision: the difference of two nearly equal distributions is small
    beside their logits.
    """
    import torch

    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    size = max(1, chunk // max(base.vocabulary, trained.vocabulary))
    for start in range(0, len(base_hidden), size):
        some = slice(start, start + size)
        p = base.head(base_hidden[some]).double().log_softmax(-1)
        q = trained.head(trained_hidden[some]).double().log_softmax(-1)
        found.append(((p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)))
    return torch.cat([one for one, _ in found]), torch.cat([other for _, other in found])


def _forward(base: PreTrainedModel, trained: PreTrainedModel, rows: Sequence[Row], wanted: np.ndarray,
             compute: ComputeConfig) -> Iterator[tuple[int, Pair, float]]:
    """(row, its divergences, operations) of each row wanted."""
    import torch

    from upft import manners, matmul, models
    from upft.ledger import training_flops
    from upft.steps import predicting, step_batch

    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    device = fit.pick_device(compute.accelerator)
    place = torch.device("cuda" if device == "gpu" else "cpu")
    limit = fit.MICRO_BATCH_TOKENS[device] if compute.micro_batch_tokens is None else compute.micro_batch_tokens
    head, shape = models.head_parameters(base), base.config.get_text_config()
    body = models.multiplied_parameters(base) - head
    with ExitStack() as stack:
        stack.enter_context(manners.threads(compute.threads))
        parts: list[Parts] = []
        for model in (base, trained):
            model.eval().to(place)
            if device == "cpu" and model.dtype == torch.bfloat16 and not matmul.bf16_is_fast():
                stack.enter_context(matmul.widened(model))
            parts.append(models.take_apart(model))
        stack.enter_context(torch.no_grad())
        for start in range(0, len(wanted), WINDOW):
            for micro in packing.split(wanted[start:start + WINDOW], lengths, limit):
                these = [rows[i] for i in micro.rows]
                laid = packing.pad(these)
                batch = step_batch([(laid, [])], Reduction.sequence)
                tensors = batch.micro_batches[0].to(place)
                both = apart(parts[0], parts[1], predicting(parts[0], tensors), predicting(parts[1], tensors))
                forward, reverse = (values.cpu().numpy() for values in both)
                for place_, number in enumerate(micro.rows):
                    mine, tokens = laid.row == place_, int(lengths[number])
                    # Two models; a training step is three forward passes.
                    spent = 2 * training_flops(body, head, int(shape.num_hidden_layers), int(shape.hidden_size), tokens,
                                               tokens * (tokens + 1) // 2, int(mine.sum())) / 3
                    yield number, (forward[mine], reverse[mine]), spent
