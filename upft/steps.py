"""The tensors of one optimiser step and the loss of its micro-batches.

Floor 4. A step's micro-batches go through one by one, each with a weight that makes the sum over them the loss of the whole
step, whatever the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from upft.choices import Reduction
from upft.loss import weighted_cross_entropy
from upft.models import Parts
from upft.packed import Packed
from upft.packing import Padded
from upft.preference import PairTensors, pair_loss
from upft.tiles import RowsTensors


@dataclass
class MicroBatchTensors:
    """Rows for one forward pass; see `packing.Padded` and `packed.Packed` for the shapes.

    weight: [n] fp64, of each supervised token. positions, rows: None where the rows are padded. pairs: where the rows are
    pairs of completions; weight then means nothing.
    """

    input_ids: torch.Tensor
    predictor: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    question_ids: list[str]
    positions: torch.Tensor | None = None
    rows: RowsTensors | None = None
    pairs: PairTensors | None = None

    def to(self, device: torch.device) -> MicroBatchTensors:
        """The same on a device."""
        ids, predictor, target, weight = (t.to(device, non_blocking=True) for t in (
            self.input_ids, self.predictor, self.target, self.weight))
        return MicroBatchTensors(
            ids, predictor, target, weight, self.question_ids,
            None if self.positions is None else self.positions.to(device, non_blocking=True),
            None if self.rows is None else self.rows.to(device),
            None if self.pairs is None else self.pairs.to(device))


@dataclass
class StepBatch:
    """The micro-batches of one optimiser step on this rank, and what the step holds.

    rows, supervised: of all ranks. tokens: of the rows; padding: computed for nothing; shared: that another
    row's computation serves; pairs: of tokens that see each other, as computed (all four on this rank). preference: rows
    are pairs of completions.
    """

    micro_batches: list[MicroBatchTensors]
    rows: int
    supervised: int
    tokens: int
    padding: int
    shared: int
    pairs: int
    preference: bool = False

    def to(self, device: torch.device, **_: object) -> StepBatch:
        """The same on a device (Lightning moves any batch that can do this)."""
        return replace(self, micro_batches=[m.to(device) for m in self.micro_batches])


@dataclass(frozen=True)
class Preference:
    """DPO instead of cross-entropy: its beta, and the log-probability of each row of a micro-batch (in the order of the
    micro-batches) under the reference model."""

    beta: float
    reference: Sequence[np.ndarray]


def step_batch(micro_batches: Sequence[tuple[Padded | Packed, list[str]]], reduction: Reduction,
               tiled: bool = True, totals: StepTotals | None = None, preference: Preference | None = None) -> StepBatch:
    """Tensors of a step from its micro-batches and their question ids.

    sequence: a token weighs 1 / (supervised tokens of its row * rows of the step); token: 1 / (supervised
    tokens of the step). The weights of a step sum to 1, so no micro-batch is normalised by itself. tiled: see
    `tiles.RowsTensors.of`. totals: rows and supervised tokens of the step where other ranks hold a part
    of it; this rank's weights are then multiplied by the number of ranks, whose gradients are averaged. preference: rows
    2n and 2n + 1 of each micro-batch are then a pair, and each pair weighs 1 / (pairs of the step).
    """
    rows = sum(len(p.lengths) for p, _ in micro_batches) if totals is None else totals.rows
    supervised = sum(len(p.target) for p, _ in micro_batches) if totals is None else totals.supervised
    ranks = 1 if totals is None else totals.ranks
    tensors = []
    for number, (given, question_ids) in enumerate(micro_batches):
        if reduction is Reduction.sequence:
            weight = ranks / (given.supervised[given.row] * float(rows))
        else:
            weight = np.full(len(given.target), ranks / supervised)
        packed = given if isinstance(given, Packed) else None
        pairs = None if preference is None else PairTensors(
            torch.from_numpy(given.row), torch.from_numpy(preference.reference[number]),
            torch.full((len(given.lengths) // 2,), 2 * ranks / rows, dtype=torch.float64), preference.beta)
        tensors.append(MicroBatchTensors(
            torch.from_numpy(given.input_ids), torch.from_numpy(given.predictor), torch.from_numpy(given.target),
            torch.from_numpy(weight), question_ids, None if packed is None else torch.from_numpy(packed.positions),
            None if packed is None else RowsTensors.of(packed, tiled), pairs))
    tokens = sum(int(p.lengths.sum()) for p, _ in micro_batches)
    padding = sum(p.filler if isinstance(p, Packed) else p.input_ids.size - int(p.lengths.sum()) for p, _ in micro_batches)
    shared = sum(p.shared for p, _ in micro_batches if isinstance(p, Packed))
    return StepBatch(tensors, rows, supervised, tokens, padding, shared, sum(p.pairs for p, _ in micro_batches),
                     preference is not None)


@dataclass(frozen=True)
class StepTotals:
    """A step as all `ranks` see it: its rows and supervised tokens."""

    rows: int
    supervised: int
    ranks: int


def idle_micro_batch() -> MicroBatchTensors:
    """A pass of two tokens that weigh nothing, for a rank with fewer micro-batches: all must meet in each pass."""
    one = torch.zeros(1, dtype=torch.int64)
    return MicroBatchTensors(torch.zeros(1, 2, dtype=torch.int64), one, one, torch.zeros(1, dtype=torch.float64), [])


def predicting(parts: Parts, batch: MicroBatchTensors) -> torch.Tensor:
    """Hidden states of the positions that predict a supervised token: [n, hidden].

    Packed rows go through with their own attention. Padded ones are padded on the right and attention is
    causal, so no real token can see padding: no mask is needed (and without one the faster causal kernels
    run).
    """
    if batch.rows is None:
        hidden = parts.body(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    else:
        assert batch.positions is not None
        hidden = parts.body(input_ids=batch.input_ids[None], position_ids=batch.positions[None], use_cache=False,
                            packed_rows=batch.rows).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.predictor)


def weighted_loss(parts: Parts, batch: MicroBatchTensors, chunk_logits: int | None = None) -> torch.Tensor:
    """Sum over supervised tokens of weight * cross-entropy, or over pairs of weight * DPO loss: scalar, fp32 at least. The
    head is applied to predicting positions only (`loss.weighted_cross_entropy`)."""
    chosen = predicting(parts, batch)
    if batch.pairs is not None:
        return pair_loss(parts, chosen, batch.target, batch.pairs)
    return weighted_cross_entropy(parts, chosen, batch.target, batch.weight, chunk_logits)


class RowsLoss(torch.nn.Module):
    """The loss of a micro-batch as one module, so that whoever wraps modules has one to wrap."""

    def __init__(self, model: torch.nn.Module, parts: Parts) -> None:
        super().__init__()
        self.model = model
        self._parts = (parts,)  # in a tuple: the body must not be registered as a second submodule

    def forward(self, micro: MicroBatchTensors) -> torch.Tensor:
        """See `weighted_loss`."""
        return weighted_loss(self._parts[0], micro)
