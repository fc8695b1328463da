"""Attention of packed rows over padded tiles, by PyTorch's fused kernels.

Floor 4. On a CPU its backward pass lays the tiles out again instead of keeping them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from upft.packed import Packed


@dataclass(frozen=True)
class TileTensors:
    """`packed.Tile` on a device. visible: [q, keys] bool, or None where plain causality says it."""

    queries: torch.Tensor
    keys: torch.Tensor
    visible: torch.Tensor | None


@dataclass(frozen=True)
class RowsTensors:
    """Which tokens see which, on a device.

    starts, key_starts: [segments + 1] int32. key_index: [keys], None where each segment's keys are its own
    tokens. longest, longest_keys: most tokens of a segment. tiles, places: None where the variable-length
    kernel serves.
    """

    starts: torch.Tensor
    key_starts: torch.Tensor
    key_index: torch.Tensor | None
    longest: int
    longest_keys: int
    tiles: tuple[TileTensors, ...] | None
    places: torch.Tensor | None

    @classmethod
    def of(cls, packed: Packed, tiled: bool) -> RowsTensors:
        """From a packed micro-batch; tiled: for the padded tiles (CPU, fp32, dropout), not the GPU's kernel."""
        sizes, key_sizes = np.diff(packed.starts), np.diff(packed.key_starts)
        tiles, places = None, None
        if tiled:
            made, where = packed.tiles()
            tiles = tuple(TileTensors(torch.from_numpy(t.queries), torch.from_numpy(t.keys),
                                      _visible(t.queries.shape[1], t.before)) for t in made)
            places = torch.from_numpy(where)
        return cls(
            torch.from_numpy(packed.starts.astype(np.int32)), torch.from_numpy(packed.key_starts.astype(np.int32)),
            torch.from_numpy(packed.key_index) if packed.shares else None, int(sizes.max()), int(key_sizes.max()),
            tiles, places)

    def to(self, device: torch.device) -> RowsTensors:
        """The same on a device."""

        def move(tensor: torch.Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        tiles = None if self.tiles is None else tuple(
            TileTensors(move(t.queries), move(t.keys), move(t.visible)) for t in self.tiles)
        return RowsTensors(move(self.starts), move(self.key_starts), move(self.key_index), self.longest,
                           self.longest_keys, tiles, move(self.places))


def _visible(queries: int, before: int) -> torch.Tensor | None:
    if before == 0:
        return None
    return torch.arange(before + queries)[None, :] <= before + torch.arange(queries)[:, None]


def attend_tiles(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: RowsTensors, scaling: float | None, dropout: float,
           window: int | None) -> torch.Tensor:
    """Padded tiles through PyTorch's fused attention: [tokens, heads, d].

    On a CPU `_CpuTiles`, which keeps nothing that can be laid out again.
    """
    assert rows.tiles is not None
    assert rows.places is not None
    if q.device.type == "cpu" and dropout == 0.0:
        out = _CpuTiles.apply(q, k, v, rows, scaling, window)
        assert isinstance(out, torch.Tensor)
        return out
    heads, width = q.shape[1], q.shape[2]
    done = []
    for tile in rows.tiles:
        tq, tk, tv = (_lay(t, index) for t, index in ((q, tile.queries), (k, tile.keys), (v, tile.keys)))
        visible = _within(tile, window)
        done.append(_fused(tq, tk, tv, visible, dropout, scaling).transpose(1, 2).reshape(-1, heads, width))
    laid = done[0] if len(done) == 1 else torch.cat(done)
    return laid.index_select(0, rows.places)


def _lay(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, d] at index [batch, n]: [batch, heads, n, d]."""
    return tokens.index_select(0, index.reshape(-1)).view(*index.shape, *tokens.shape[1:]).transpose(1, 2)


def _within(tile: TileTensors, window: int | None) -> torch.Tensor | None:
    """Which keys a query sees, [q, keys] bool; None where plain causality says it."""
    length, keys, device = tile.queries.shape[1], tile.keys.shape[1], tile.queries.device
    visible = tile.visible
    if window is not None and keys > window:
        visible = torch.ones(length, keys, dtype=torch.bool, device=device) if visible is None else visible
        distance = torch.arange(keys - length, keys, device=device)[:, None] - torch.arange(keys, device=device)
        visible = visible & (distance >= 0) & (distance < window)
    return visible


class _CpuTiles(torch.autograd.Function):
    """Tiles through PyTorch's fused CPU kernel, in fp32: its backward pass in bf16 takes four times as long (docs/log.md).

    Kept are queries, keys, values and results as they came (bf16 where the model is, key heads not repeated) and
    one number a head and token; the wide padded copies are made again. q: [tokens, heads, d], k, v: [tokens,
    kv heads, d]; out: as q. Padding never reaches a gradient: what its queries yield is not read, and no other
    query sees its keys.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: RowsTensors, scaling: float | None,
                window: int | None) -> torch.Tensor:
        assert rows.tiles is not None
        assert rows.places is not None
        laid = q.new_empty((sum(tile.queries.numel() for tile in rows.tiles), *q.shape[1:]))
        sums, end = [], 0
        for tile in rows.tiles:
            given = _CpuTiles._laid(q, k, v, tile)
            mask = _CpuTiles._mask(tile, window, given[0].dtype)
            out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *given, 0.0, mask is None, attn_mask=mask, scale=scaling)
            begin, end = end, end + tile.queries.numel()
            laid[begin:end].view(*tile.queries.shape, *q.shape[1:]).copy_(out.transpose(1, 2))
            sums.append(total)
        result = laid.index_select(0, rows.places)
        ctx.save_for_backward(q, k, v, result, *sums)
        ctx.rows, ctx.scaling, ctx.window = rows, scaling, window
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, result, *sums = ctx.saved_tensors
        rows: RowsTensors = ctx.rows
        assert rows.tiles is not None
        assert rows.places is not None
        wide = torch.promote_types(q.dtype, torch.float32)
        to_q = q.new_empty((sum(tile.queries.numel() for tile in rows.tiles), *q.shape[1:]))
        to_k, to_v = (torch.zeros_like(t, dtype=wide) for t in (k, v))  # a shared key is seen from several rows
        g, end = grads[0], 0
        for tile, total in zip(rows.tiles, sums, strict=True):
            given = _CpuTiles._laid(q, k, v, tile)
            mask = _CpuTiles._mask(tile, ctx.window, wide)
            begin, end = end, end + tile.queries.numel()
            out, slope = (_lay(t, tile.queries).to(wide) for t in (result, g))
            slope.masked_fill_(_padding(rows.places, begin, tile)[:, None, :, None], 0.0)
            some, *others = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                slope, *given, out, total, 0.0, mask is None, attn_mask=mask, scale=ctx.scaling)
            to_q[begin:end].view(*tile.queries.shape, *q.shape[1:]).copy_(some.transpose(1, 2))
            groups = others[0].shape[1] // k.shape[1]
            for sum_, gradient in zip((to_k, to_v), others, strict=True):
                tokens = gradient.transpose(1, 2)
                tokens = tokens if groups == 1 else tokens.unflatten(2, (-1, groups)).sum(3)
                sum_.index_add_(0, tile.keys.reshape(-1), tokens.reshape(-1, *sum_.shape[1:]))
        return to_q.index_select(0, rows.places), to_k.to(k.dtype), to_v.to(v.dtype), None, None, None

    @staticmethod
    def _laid(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tile: TileTensors) -> list[torch.Tensor]:
        wide = torch.promote_types(q.dtype, torch.float32)
        tq, tk, tv = (_lay(t, index).to(wide) for t, index in ((q, tile.queries), (k, tile.keys), (v, tile.keys)))
        groups = q.shape[1] // k.shape[1]
        if groups > 1 and not _kernel_groups():
            tk, tv = (t.repeat_interleave(groups, 1) for t in (tk, tv))
        return [tq, tk, tv]

    @staticmethod
    def _mask(tile: TileTensors, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        visible = _within(tile, window)
        if visible is None:
            return None
        return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[None, None]


def _padding(places: torch.Tensor, begin: int, tile: TileTensors) -> torch.Tensor:
    """Which queries of a tile stand for no token, [batch, q] bool; begin: where the tile lies among all."""
    empty = torch.ones(tile.queries.numel(), dtype=torch.bool)
    here = places[(places >= begin) & (places < begin + len(empty))] - begin
    empty[here] = False
    return empty.view(tile.queries.shape)


@cache
def _kernel_groups() -> bool:
    """Whether PyTorch's fused CPU kernel takes fewer key heads than query heads, forward and backward (2.13 does)."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 3, 8, generator=draw) for heads in (4, 2, 2))
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    repeated = [t.repeat_interleave(2, 1) for t in (k, v)]
    wanted = forward(q, *repeated, 0.0, True)
    grads = backward(q, q, *repeated, *wanted, 0.0, True)
    try:
        got = forward(q, k, v, 0.0, True)
        mine = backward(q, q, k, v, *got, 0.0, True)
    except RuntimeError:
        return False
    summed = [grads[0], *(g.unflatten(1, (2, 2)).sum(2) for g in grads[1:])]
    pairs = zip((*got, *mine), (*wanted, *summed), strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def _fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None, dropout: float,
           scaling: float | None) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, visible, dropout, is_causal=visible is None, scale=scaling)
