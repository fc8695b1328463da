"""Direct preference optimisation: the loss of pairs of completions, and its gradient through chunked logits.

Floor 4. L = -log sigmoid(beta * ((log p(c) - log r(c)) - (log p(w) - log r(w)))), with c the chosen and w the rejected
completion of a pair, log p its log-probability (a sum over its tokens) under the model that is trained and log r under the
reference (Rafailov et al. 2023, arXiv:2305.18290, equation 7). What a micro-batch is, is the module's to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from upft.loss import weighted_cross_entropy
from upft.models import Parts

CHUNK = 2**22
"""Logits looked at together: 16 MiB in fp32."""


@dataclass
class PairTensors:
    """The pairs of a micro-batch, whose rows 2n and 2n + 1 are pair n, the chosen one first.

    row: [n], of each supervised token its row; reference: [rows] fp64, log-probability of each row's completion under the
    reference model; weight: [pairs] fp64. The weights of a step sum to 1. rewards: see `rewards`, of the model as `pair_loss`
    last met it; no gradient.
    """

    row: torch.Tensor
    reference: torch.Tensor
    weight: torch.Tensor
    beta: float
    rewards: torch.Tensor | None = None

    def to(self, device: torch.device) -> PairTensors:
        """The same on a device."""
        row, reference, weight = (t.to(device, non_blocking=True) for t in (self.row, self.reference, self.weight))
        return PairTensors(row, reference, weight, self.beta)


def margins(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How much more than the reference the model prefers each pair's chosen completion: [pairs].

    policy, reference: [2 * pairs], log-probabilities of the completions, chosen and rejected in turn.
    """
    gained = policy - reference
    return gained[0::2] - gained[1::2]


def dpo(policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """Loss of each pair: [pairs]. Arguments as in `margins`."""
    return -F.logsigmoid(beta * margins(policy, reference))


def rewards(policy: torch.Tensor, pairs: PairTensors) -> torch.Tensor:
    """Means over the pairs, each by its weight: reward of the chosen and of the rejected completion, share of the pairs whose
    chosen one has the higher: [3], fp64. The reward is beta * (log p - log r) (Rafailov et al. 2023, equation 5 without the
    term that all completions of a prompt share). policy: as in `margins`.
    """
    each = pairs.beta * (policy.detach() - pairs.reference.double())
    chosen, rejected = each[0::2], each[1::2]
    return torch.stack([(pairs.weight * one).sum() for one in (chosen, rejected, (chosen > rejected).double())])


def log_probabilities(parts: Parts, hidden: torch.Tensor, target: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """Of each row's supervised tokens, summed: [rows], fp64. hidden: [n, hidden], of the positions that predict them;
    target, row: [n]. No gradient."""
    with torch.no_grad():
        sums = torch.zeros(rows, dtype=torch.float64, device=hidden.device)
        size = max(1, CHUNK // parts.vocabulary)
        for start in range(0, len(target), size):
            some = slice(start, start + size)
            logits = parts.head(hidden[some])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            tokens = logits.gather(-1, target[some, None])[:, 0] - logits.logsumexp(-1)
            sums.index_add_(0, row[some], tokens.double())
    return sums


def pair_loss(parts: Parts, hidden: torch.Tensor, target: torch.Tensor, pairs: PairTensors) -> torch.Tensor:
    """Sum over pairs of weight * DPO loss: scalar, fp32 at least. hidden, target: as in `log_probabilities`.

    The log-probabilities come first, without a graph; they give each row's slope, d loss / d log p(row). The same for all
    tokens of a row, it is their weight in a sum of cross-entropies, whose gradient is that of the loss.
    """
    policy = log_probabilities(parts, hidden, target, pairs.row, len(pairs.reference)).requires_grad_()
    pairs.rewards = rewards(policy, pairs)
    with torch.enable_grad():
        loss = (pairs.weight * dpo(policy, pairs.reference.double(), pairs.beta)).sum()
    if not hidden.requires_grad:
        return loss.detach().to(torch.promote_types(hidden.dtype, torch.float32))
    (slope,) = torch.autograd.grad(loss, policy)
    surrogate = weighted_cross_entropy(parts, hidden, target, -slope[pairs.row])
    return surrogate + (loss.detach() - surrogate.detach()).to(surrogate.dtype)
