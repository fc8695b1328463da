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
    is an index of a token, which may serve several rows.
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

    @property
    def pairs(self) -> int:
        """Pairs of tokens (one sees the other, or itself) that attention computes."""
        sizes = np.diff(self.starts)
        return int((sizes * (np.diff(self.key_starts) - sizes) + sizes * (sizes + 1) // 2).sum())

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


def pack(rows: Sequence[Row], share: bool = True) -> Packed:
    """Lay rows end to end; with `share`, what they have in common at their beginning only once.

    Raises what `packing.predictions` raises.
    """
    ids = [np.asarray(row.input_ids, dtype=np.int64) for row in rows]
    tree = _Tree(ids)
    if share:
        tree.grow(sorted(range(len(ids)), key=lambda i: rows[i].input_ids), 0, 0, ())
    else:
        for i in range(len(ids)):
            tree.add([i], 0, len(ids[i]), ())
    found = [packing.predictions(row) for row in rows]
    supervised = np.array([len(places) for places, _ in found])
    return Packed(
        np.concatenate(tree.ids), np.concatenate(tree.positions), np.cumsum([0, *map(len, tree.ids)]),
        np.concatenate(tree.keys), np.cumsum([0, *map(len, tree.keys)]),
        np.concatenate([tree.path_of[i][places] for i, (places, _) in enumerate(found)]),
        np.concatenate([targets for _, targets in found]), np.repeat(np.arange(len(rows)), supervised), supervised,
        np.array([len(i) for i in ids]))


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
