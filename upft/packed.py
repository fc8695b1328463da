"""Rows end to end: no padding, and tokens that several rows begin with computed once.

Floor 3: numpy on ids. Knows no model and no device. The rows of a micro-batch form a tree: a *segment* is a
run of tokens, its ancestors are the runs that come before it in its rows. A system prompt that all rows
share is one segment, each row's rest another. A segment's tokens see their ancestors, and each other
causally; positions count from the start of the row. So every row gets what it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from upft import packing
from upft.prefix import Row

GRID = 64
"""Large micro-batches are filled up to a multiple of this many tokens: sizes then recur, so that memory freed by one fits
the next, and matrix kernels get round shapes (docs/log.md)."""
LARGE = 16 * GRID
"""Tokens from which a micro-batch is filled up; a smaller one would hold too many tokens for nothing."""
WORTH_SHARING = 8
"""Shared tokens below which a segment of its own costs more (an attention call) than it saves."""


@dataclass(frozen=True)
class Tile:
    """Segments whose attention is computed as one padded batch.

    queries: [batch, q], keys: [batch, q + before], indices of tokens; padding points at token 0 and what it
    yields is never read. `before` ancestors stand in front of the keys, so query i sees keys 0 to before + i.
    """

    queries: np.ndarray
    keys: np.ndarray
    before: int


@dataclass(frozen=True)
class Packed:
    """A micro-batch end to end.

    input_ids, positions: [tokens]. Segment s is the tokens starts[s] to starts[s + 1] and its keys are
    key_index[key_starts[s]:key_starts[s + 1]] (its ancestors' tokens, then its own; the same as the queries
    where nothing is shared). predictor, target, row, supervised, lengths: as in `packing.Padded`; predictor
    is an index of a token, which may serve several rows. filler: tokens at the end that stand for no row, a segment of
    their own.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    key_index: np.ndarray
    key_starts: np.ndarray
    predictor: np.ndarray
    target: np.ndarray
    row: np.ndarray
    supervised: np.ndarray
    lengths: np.ndarray
    filler: int = 0

    @property
    def pairs(self) -> int:
        """Pairs of tokens (one sees the other, or itself) that attention computes for the rows."""
        sizes = np.diff(self.starts)
        pairs = sizes * (np.diff(self.key_starts) - sizes) + sizes * (sizes + 1) // 2
        return int(pairs.sum()) - self.filler * (self.filler + 1) // 2

    @property
    def shared(self) -> int:
        """Tokens of rows that another row's tokens stand for."""
        return int(self.lengths.sum()) - (len(self.input_ids) - self.filler)

    @property
    def shares(self) -> bool:
        """Whether any tokens serve several rows."""
        return len(self.key_index) > len(self.input_ids)

    def tiles(self) -> tuple[list[Tile], np.ndarray]:
        """(tiles, places): `places` [tokens] is where each token's query lies in the tiles laid end to end."""
        sizes = np.diff(self.starts)
        before = np.diff(self.key_starts) - sizes
        tiles: list[Tile] = []
        places = np.zeros(len(self.input_ids), dtype=np.int64)
        laid = 0
        for depth in np.unique(before):
            for part in packing.split(np.flatnonzero(before == depth), sizes, len(self.input_ids) * 2):
                batch, width = len(part.rows), part.width
                queries = np.zeros((batch, width), dtype=np.int64)
                keys = np.zeros((batch, width + int(depth)), dtype=np.int64)
                for i, s in enumerate(part.rows):
                    own = np.arange(self.starts[s], self.starts[s + 1])
                    queries[i, :len(own)] = own
                    keys[i, :depth + len(own)] = self.key_index[self.key_starts[s]:self.key_starts[s + 1]]
                    places[own] = laid + i * width + np.arange(len(own))
                tiles.append(Tile(queries, keys, int(depth)))
                laid += batch * width
        return tiles, places


def pack(rows: Sequence[Row], share: bool = True, fill: bool = False) -> Packed:
    """Lay rows end to end; with `share`, what they have in common at their beginning only once. fill: to a multiple of
    GRID tokens, where there are many.

    Raises what `packing.predictions` raises.
    """
    ids = [np.asarray(row.input_ids, dtype=np.int64) for row in rows]
    tree = _Tree(ids)
    if share:
        tree.grow(sorted(range(len(ids)), key=lambda i: rows[i].input_ids), 0, 0, ())
    else:
        for i in range(len(ids)):
            tree.add([i], 0, len(ids[i]), ())
    count = sum(map(len, tree.ids))
    filler = -count % GRID if fill and count >= LARGE else 0
    if filler:
        tree.fill(filler)
    found = [packing.predictions(row) for row in rows]
    supervised = np.array([len(places) for places, _ in found])
    return Packed(
        np.concatenate(tree.ids), np.concatenate(tree.positions), np.cumsum([0, *map(len, tree.ids)]),
        np.concatenate(tree.keys), np.cumsum([0, *map(len, tree.keys)]),
        np.concatenate([tree.path_of[i][places] for i, (places, _) in enumerate(found)]),
        np.concatenate([targets for _, targets in found]), np.repeat(np.arange(len(rows)), supervised), supervised,
        np.array([len(i) for i in ids]), filler)


class _Tree:
    """Segments in the making. path_of[i]: index of each token of row i, once its last segment is there."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        self._rows = rows
        self._count = 0
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.keys: list[np.ndarray] = []
        self.path_of: dict[int, np.ndarray] = {}

    def add(self, members: list[int], begin: int, end: int, ancestors: tuple[np.ndarray, ...]) -> np.ndarray:
        """Tokens begin to end of the rows `members`, which have them in common; returns their indices."""
        own = np.arange(self._count, self._count + end - begin)
        self._count += end - begin
        path = np.concatenate([*ancestors, own])
        self.ids.append(self._rows[members[0]][begin:end])
        self.positions.append(np.arange(begin, end))
        self.keys.append(path)
        for i in members:
            if end == len(self._rows[i]):
                self.path_of[i] = path
        return own

    def fill(self, count: int) -> None:
        """Tokens that stand for nothing, as a segment of their own."""
        self.ids.append(np.zeros(count, dtype=np.int64))
        self.positions.append(np.arange(count))
        self.keys.append(np.arange(self._count, self._count + count))
        self._count += count

    def grow(self, members: list[int], begin: int, known: int, ancestors: tuple[np.ndarray, ...]) -> None:
        """Segments for rows in lexical order that agree in their first `known` tokens and are laid up to `begin`."""
        if len(members) == 1:
            i = members[0]
            if begin < len(self._rows[i]):
                self.add([i], begin, len(self._rows[i]), ancestors)
            return
        shared = _common(self._rows[members[0]], self._rows[members[-1]], known)  # in lexical order: what all share
        if shared - begin >= WORTH_SHARING:
            ancestors = (*ancestors, self.add(members, begin, shared, ancestors))
            begin = shared
        ended = [i for i in members if len(self._rows[i]) == shared]
        for i in ended:  # they are the beginning of the others
            if begin < shared:
                self.add([i], begin, shared, ancestors)
        rest = members[len(ended):]
        while rest:
            token = self._rows[rest[0]][shared]
            size = next((n for n, i in enumerate(rest) if self._rows[i][shared] != token), len(rest))
            self.grow(rest[:size], begin, shared + 1, ancestors)
            rest = rest[size:]


def _common(a: np.ndarray, b: np.ndarray, known: int) -> int:
    """How many first tokens two rows share, given that they share `known`."""
    size = min(len(a), len(b))
    unlike = np.flatnonzero(a[known:size] != b[known:size])
    return size if len(unlike) == 0 else known + int(unlike[0])
