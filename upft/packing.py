"""How rows become optimiser steps and forward passes: order, steps, ranks, micro-batches, padded rows.

Floor 3: numpy on lengths and ids. Knows no model, no loss and no device. A step is `batch_size` rows, dealt
out to the ranks that train together and cut into micro-batches on each; what a step computes depends on its
rows alone. Rows that lie end to end instead of padded are `upft.packed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from upft.choices import Layout
from upft.errors import TrainError
from upft.prefix import UNSUPERVISED, Row

CALL_TOKENS = 128
"""What one more forward pass is held to cost, in padded tokens: less padding than this is not worth a pass."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, padded to `width` tokens, or end to end in `width` tokens.

    `rows` are indices into the table.
    """

    rows: tuple[int, ...]
    width: int
    packed: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the forward pass, padding included."""
        return self.width if self.packed else len(self.rows) * self.width


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return sum(len(m.rows) for m in self.micro_batches)

    @property
    def tokens(self) -> int:
        """Tokens of the step's forward passes, padding included."""
        return sum(m.tokens for m in self.micro_batches)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of one pass; the last one may hold fewer rows than the others."""
    return -(-rows // batch_size)


def epoch_order(rows: int, epoch: int, seed: int) -> np.ndarray:
    """A permutation of range(rows), its own for each epoch and seed: [rows].

    Sorts raw words of a bit generator, because numpy keeps that stream for ever but not the one of
    `Generator.permutation`; an order must not change with a library's version.
    """
    words = np.random.Philox(np.random.SeedSequence([seed % 2**64, epoch])).random_raw(rows)
    return np.argsort(words, kind="stable")


def plan_steps(lengths: np.ndarray, batch_size: int, micro_batch_tokens: int, epochs: int, seed: int,
               layout: Layout = Layout.padded, rank: int = 0, ranks: int = 1) -> Iterator[Step]:
    """The steps of all epochs, in order, as `rank` of `ranks` sees them. lengths: [rows], tokens.

    Every row comes once an epoch, on one rank. Where a step has fewer rows than there are ranks, a rank's
    step holds no micro-batch.
    """
    cut = split if layout is Layout.padded else bins
    for epoch in range(epochs):
        order = epoch_order(len(lengths), epoch, seed)
        for start in range(0, len(order), batch_size):
            mine = deal(order[start:start + batch_size], lengths, ranks)[rank]
            yield Step(cut(mine, lengths, micro_batch_tokens))


def group_sizes(lengths: np.ndarray, group: int, layout: Layout) -> np.ndarray:
    """Tokens of each `group` rows that follow one another and stay together: [rows / group]. Padded, each row is as long as
    the longest."""
    if group == 1:
        return lengths
    together = lengths.reshape(-1, group)
    return together.max(axis=1) * group if layout is Layout.padded else together.sum(axis=1)


def members(micro: MicroBatch, group: int) -> list[int]:
    """The rows of a micro-batch that was planned on groups of `group` rows."""
    return [group * one + place for one in micro.rows for place in range(group)]


def deal(rows: np.ndarray, lengths: np.ndarray, hands: int) -> list[np.ndarray]:
    """Rows in `hands` parts of nearly equal tokens: the longest first, each to the part that has least."""
    if hands == 1:
        return [rows]
    parts: list[list[int]] = [[] for _ in range(hands)]
    load = [0] * hands
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        least = load.index(min(load))
        parts[least].append(int(row))
        load[least] += int(lengths[row])
    return [np.array(part, dtype=np.int64) for part in parts]


def bins(rows: np.ndarray, lengths: np.ndarray, micro_batch_tokens: int) -> tuple[MicroBatch, ...]:
    """Rows that go end to end into micro-batches of nearly equal size, of at most `micro_batch_tokens` tokens.

    A row longer than the limit stands alone. `width` is the sum of the lengths. The fullest comes first.
    """
    if len(rows) == 0:
        return ()
    total = int(lengths[rows].sum())
    for count in range(min(len(rows), -(-total // micro_batch_tokens)), len(rows) + 1):
        parts = deal(rows, lengths, count)
        if count == len(rows) or all(len(p) == 1 or lengths[p].sum() <= micro_batch_tokens for p in parts):
            break
    sizes = [(int(lengths[p].sum()), p) for p in parts]
    return tuple(MicroBatch(tuple(int(r) for r in p), size, packed=True) for size, p in sorted(sizes, key=lambda x: -x[0]))


def split(rows: np.ndarray, lengths: np.ndarray, micro_batch_tokens: int) -> tuple[MicroBatch, ...]:
    """Cut the rows of a step into micro-batches of at most `micro_batch_tokens` padded tokens, longest first.

    Rows are sorted by length and cut where the sum of padded tokens plus CALL_TOKENS a micro-batch is least
    (exact, by dynamic programming over the places to cut). A row longer than the limit stands alone.
    """
    by_length = rows[np.argsort(lengths[rows], kind="stable")].astype(np.int64)
    sizes = lengths[by_length].astype(np.int64)
    count = len(sizes)
    best = np.zeros(count + 1, dtype=np.int64)  # best[j]: least cost of the j shortest rows
    cut = np.zeros(count + 1, dtype=np.int64)  # cut[j]: where their last micro-batch begins
    for j in range(1, count + 1):
        begin = max(0, j - max(1, micro_batch_tokens // int(sizes[j - 1])))
        starts = np.arange(begin, j)
        cost = best[begin:j] + (j - starts) * sizes[j - 1] + CALL_TOKENS
        cut[j] = begin + int(np.argmin(cost))
        best[j] = cost[cut[j] - begin]
    out: list[MicroBatch] = []
    end = count
    while end > 0:  # from the longest rows down: a memory shortage shows in the first forward pass
        start = int(cut[end])
        out.append(MicroBatch(tuple(int(r) for r in by_length[start:end]), int(sizes[end - 1])))
        end = start
    return tuple(out)


def oversized(lengths: np.ndarray, micro_batch_tokens: int) -> int:
    """How many rows are longer than a whole micro-batch may be."""
    return int(np.count_nonzero(lengths > micro_batch_tokens))


def padding_share(steps: Iterable[Step], lengths: np.ndarray) -> float:
    """Share of the forward tokens of `steps` that is padding."""
    real = padded = 0
    for step in steps:
        padded += step.tokens
        real += sum(int(lengths[list(m.rows)].sum()) for m in step.micro_batches)
    return 1.0 - real / padded if padded else 0.0


@dataclass(frozen=True)
class Padded:
    """A micro-batch as arrays.

    input_ids: [rows, width], padded on the right with 0. For each of the n supervised tokens: predictor: [n],
    the flat index (into rows * width) of the position before it, whose hidden state predicts it; target: [n],
    its id; row: [n], its row in the micro-batch. supervised: [rows], their number; lengths: [rows].
    """

    input_ids: np.ndarray
    predictor: np.ndarray
    target: np.ndarray
    row: np.ndarray
    supervised: np.ndarray
    lengths: np.ndarray

    @property
    def pairs(self) -> int:
        """Pairs of real tokens of which one sees the other, or itself."""
        return int((self.lengths * (self.lengths + 1) // 2).sum())


def pad(rows: Sequence[Row]) -> Padded:
    """Put rows side by side. Raises what `predictions` raises."""
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    width = int(lengths.max())
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, :lengths[i]] = row.input_ids
    found = [predictions(row) for row in rows]
    supervised = np.array([len(places) for places, _ in found])
    which = np.repeat(np.arange(len(rows)), supervised)
    place = np.concatenate([places for places, _ in found])
    return Padded(ids, which * width + place, np.concatenate([t for _, t in found]), which, supervised, lengths)


def predictions(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(positions that predict a supervised token, the ids they predict) of a row.

    Raises TrainError where there are none: the first token has nothing before it and cannot be predicted.
    """
    labels = np.asarray(row.labels, dtype=np.int64)
    places = np.flatnonzero(labels[1:] != UNSUPERVISED)
    if len(places) == 0:
        raise TrainError(f"row of question {row.question_id} has no supervised token that a token precedes",
                         "leave the row out, or put the prompt before its completion")
    return places, labels[places + 1]
