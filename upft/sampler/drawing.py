"""From logits to tokens: filters and inverse-CDF sampling on uniform numbers fixed by (seed, step).

Floor 4. Everything here is a function of one row alone, so a token never depends on what else shares the
batch. Knows nothing of models or requests.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_FIRST_LOOK = 256
"""Most likely tokens looked at first for a nucleus; a flat distribution makes it look at more."""


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for the steps of one request, float32 `[count]`.

    Philox is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the number at
    step j depends on (seed, j) only, so fewer steps give a prefix of more. 24 bits each, what float32 holds.
    """
    raw = np.random.Philox(key=seed).random_raw(count)
    return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def draw(logits: Tensor, uniform: Tensor | None, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One token a row, `[batch]`; see `draw_scored`."""
    return draw_scored(logits, uniform, temperature, top_k, top_p, scored=False)[0]


def draw_scored(logits: Tensor, uniform: Tensor | None, temperature: float, top_k: int, top_p: float,
                scored: bool = True) -> tuple[Tensor, Tensor | None]:
    """(one token a row, its log-probability), `[batch]` each; logits: `[batch, vocab]`, uniform: `[batch]` in [0, 1),
    unused when greedy.

    temperature 0 takes the most likely token. Otherwise the softmax at that temperature is cut to the top_k
    most likely tokens (0 = all), then to the smallest set of tokens with mass top_p of what is left, and
    inverted at `uniform` in vocabulary order. Tokens that tie with the last one kept are kept too: half
    precision ties often, and which of two equal logits a sort puts first is nobody's choice. The log-probability is
    that in the distribution drawn from; greedy, in the model's own. None unless `scored`.
    """
    if temperature == 0:
        tokens = logits.argmax(dim=-1)
        return tokens, logits.float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1) if scored else None
    assert uniform is not None
    scores = logits.float() / temperature
    k = top_k if 0 < top_k < scores.shape[-1] else 0
    if k:
        kth = scores.topk(k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    probs = scores.softmax(dim=-1)
    if top_p < 1:
        probs = probs.masked_fill(probs < _nucleus_edge(probs, top_p, k), 0.0)
    cdf = probs.cumsum(dim=-1)
    total = cdf[:, -1:]
    # Rounding may lift u * total to total itself, beyond the last token.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target, right=True).squeeze(-1)
    return tokens, (probs.gather(-1, tokens[:, None]) / total).log().squeeze(-1) if scored else None


def _nucleus_edge(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probability of the least likely token in the nucleus, `[batch, 1]`; probs: `[batch, vocab]`.

    Sorts only as many tokens as the widest nucleus of the batch needs; how many it sorts changes nothing in
    the value, so batches do not leak into each other.
    """
    vocab = probs.shape[-1]
    looked = min(top_k or _FIRST_LOOK, vocab)
    while True:
        top = probs.topk(looked, dim=-1).values
        mass = top.cumsum(dim=-1)
        if looked in (vocab, top_k) or bool((mass[:, -1] >= top_p).all()):
            break
        looked = min(8 * looked, vocab)
    last = (mass < top_p).sum(dim=-1, keepdim=True).clamp_(max=looked - 1)
    return top.gather(-1, last)
