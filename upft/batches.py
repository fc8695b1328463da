"""The steps of a training as tensors, for one rank.

Floor 4, between packing and the module: reads rows, lays them out, weighs their tokens. A thread of its own
stays a few steps ahead, so that an accelerator does not wait for Python.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from upft import packing
from upft.choices import Layout, Reduction
from upft.packed import Packed, pack
from upft.prefix import Row, RowTable
from upft.ranks import World
from upft.steps import Preference, StepBatch, StepTotals, idle_micro_batch, step_batch

AHEAD = 2
"""Steps prepared while one is computed."""


class Steps:
    """Iterable over the steps from `start` on.

    lengths, supervised: [rows], tokens of each row. layout: packed or padded. share: see `packed.pack`.
    tiled: see `tiles.RowsTensors.of`. preference: (DPO's beta, [rows] log-probabilities under the reference); rows 2n and
    2n + 1 are then a pair, which stays in one micro-batch, and batch_size counts pairs.
    """

    def __init__(self, rows: Sequence[Row] | RowTable, lengths: np.ndarray, supervised: np.ndarray, *, batch_size: int,
                 epochs: int, seed: int, reduction: Reduction, micro_batch_tokens: int, layout: Layout, share: bool,
                 tiled: bool, world: World, start: int, preference: tuple[float, np.ndarray] | None = None) -> None:
        self._rows, self._lengths, self._supervised = rows, lengths, supervised
        self._batch_size, self._epochs, self._seed, self._reduction = batch_size, epochs, seed, reduction
        self._micro_batch_tokens, self._layout, self._share, self._tiled = micro_batch_tokens, layout, share, tiled
        self._world, self._start, self._preference = world, start, preference
        self._group = 1 if preference is None else 2

    def __len__(self) -> int:
        """Steps still to come."""
        return packing.steps_per_epoch(len(self._rows) // self._group, self._batch_size) * self._epochs - self._start

    def __iter__(self) -> Iterator[StepBatch]:
        """Steps in order, prepared ahead."""
        return ahead(self._steps(), AHEAD)

    def _steps(self) -> Iterator[StepBatch]:
        ranks, group = self._world.ranks, self._group
        sizes = packing.group_sizes(self._lengths, group, self._layout)
        plans = [packing.plan_steps(sizes, self._batch_size, self._micro_batch_tokens, self._epochs, self._seed,
                                    self._layout, rank, ranks) for rank in range(ranks)]
        for number, shares in enumerate(zip(*plans, strict=True)):
            if number < self._start:
                continue
            members = [r for step in shares for m in step.micro_batches for r in packing.members(m, group)]
            totals = StepTotals(len(members), int(self._supervised[members].sum()), ranks)
            laid: list[tuple[Packed | packing.Padded, list[str]]] = []
            reference: list[np.ndarray] = []
            for micro in shares[self._world.rank].micro_batches:
                numbers = packing.members(micro, group)
                rows = [self._rows[i] for i in numbers]
                one = pack(rows, self._share, fill=True) if micro.packed else packing.pad(rows)
                laid.append((one, [r.question_id for r in rows]))
                if self._preference is not None:
                    reference.append(self._preference[1][numbers])
            batch = step_batch(laid, self._reduction, self._tiled, totals,
                               None if self._preference is None else Preference(self._preference[0], reference))
            missing = max(len(step.micro_batches) for step in shares) - len(batch.micro_batches)
            batch.micro_batches.extend(idle_micro_batch() for _ in range(missing))
            yield batch


def ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """The same items, up to `count` of them prepared in a thread. What preparing one raises is raised here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(count)
    gone = threading.Event()

    def put(kind: str, thing: Any) -> bool:
        while not gone.is_set():
            try:
                ready.put((kind, thing), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:  # whatever it is, it belongs to the reader
            put("error", error)
        else:
            put("end", None)

    threading.Thread(target=work, name="upft-batches", daemon=True).start()
    try:
        while True:
            kind, thing = ready.get()
            if kind == "error":
                raise thing
            if kind == "end":
                return
            yield thing
    finally:
        gone.set()
