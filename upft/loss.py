"""Cross-entropy of chosen positions, its gradient computed with it: no logits where nothing is supervised, none in fp32
for longer than a block, none computed twice.

Floor 4. What a micro-batch is and what its weights mean is the module's to know; this room knows hidden states,
targets and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upft.models import Parts

CHUNK_LOGITS = {"cpu": 2**23, "gpu": 2**27}
"""Logits of a chunk, in the format the head gives, where the head's own gradient does not ask for more (`positions`)."""
BLOCK_LOGITS = {"cpu": 2**20, "gpu": 2**25}
"""Logits that are widened to fp32 at once: 4 MiB on a CPU, which stay in its cache; 128 MiB on a GPU."""


def weighted_cross_entropy(parts: Parts, hidden: torch.Tensor, target: torch.Tensor, weight: torch.Tensor,
                           chunk_logits: int | None = None) -> torch.Tensor:
    """Sum of weight * cross-entropy: scalar, fp32 at least. hidden: [n, hidden]; target: [n]; weight: [n] fp64.

    chunk_logits: most logits at once, null = what `positions` says.
    """
    weights = [p for p in parts.output.parameters() if p.requires_grad]
    if chunk_logits is None:
        size = positions(parts.vocabulary, hidden.shape[-1], hidden.element_size(), bool(weights), hidden.device.type)
    else:
        size = max(1, chunk_logits // parts.vocabulary)
    if not torch.is_grad_enabled():
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for start in range(0, len(target), size):
            some = slice(start, start + size)
            total += slope(parts.head(hidden[some]), target[some], weight[some])
        return total
    loss = _Chunked.apply(parts.head, size, target, weight, hidden, *weights)
    assert isinstance(loss, torch.Tensor)
    return loss


def positions(vocabulary: int, width: int, bytes_each: int, trained: bool, device: str) -> int:
    """How many positions go through the head together.

    Where the head is trained, several chunks need a sum of its gradients in fp32: 4 bytes * vocabulary * width.
    As many positions as take that space go through at once instead; most micro-batches then are one chunk.
    """
    size = CHUNK_LOGITS["cpu" if device == "cpu" else "gpu"] // vocabulary
    return max(1, size, 4 * width // bytes_each if trained else 1)


def slope(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of weight * cross-entropy of logits [n, vocabulary], which are overwritten with its gradient:
    weight * (softmax(logits) - one-hot(target)). In fp32 (or wider) block by block, whatever the logits are in."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, BLOCK_LOGITS["cpu" if logits.device.type == "cpu" else "gpu"] // logits.shape[-1])
    total = torch.zeros((), dtype=wide, device=logits.device)
    for start in range(0, len(target), rows):
        part = logits[start:start + rows]
        aim, share = target[start:start + rows, None], weight[start:start + rows, None].to(wide)
        block = part.to(wide)  # the logits themselves where they are wide already
        highest, picked = block.amax(-1, keepdim=True), block.gather(-1, aim)
        sums = block.sub_(highest).exp_().sum(-1, keepdim=True)
        total += ((sums.log() + highest - picked) * share).sum()
        block.mul_(share / sums).scatter_add_(-1, aim, -share)
        if block is not part:
            part.copy_(block)
    return total


class _Chunked(torch.autograd.Function):
    """A sum over positions whose gradients are computed with it, chunk by chunk. `weights` are what `head` uses beside
    its argument."""

    @staticmethod
    def forward(ctx: Any, head: Callable[[torch.Tensor], torch.Tensor], size: int, target: torch.Tensor,
                weight: torch.Tensor, hidden: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | float = 0.0
        to_hidden: list[torch.Tensor] = []
        to_weights: list[torch.Tensor] = []
        for start in range(0, len(target), size):
            some = slice(start, start + size)
            with torch.enable_grad():
                h = hidden[some].detach().requires_grad_()
                logits = head(h)
            gradient = logits.detach()  # nothing of the head's backward pass needs what the head gave
            total = slope(gradient, target[some], weight[some]) + total
            mine, *more = torch.autograd.grad(logits, [h, *weights], gradient)
            to_hidden.append(mine)
            if not to_weights:  # one chunk: as they are; the first of several: where the others are added up
                alone = len(target) <= size
                to_weights = more if alone else [g.to(torch.promote_types(g.dtype, torch.float32)) for g in more]
            else:
                for sum_, g in zip(to_weights, more, strict=True):
                    sum_ += g
            del logits, gradient, mine, more
        ctx.gradients = [torch.cat(to_hidden) if len(to_hidden) > 1 else to_hidden[0],
                         *(g.to(w.dtype) for g, w in zip(to_weights, weights, strict=True))]
        assert isinstance(total, torch.Tensor)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, None, None, *(g.mul_(grads[0]) for g in gradients))
