"""Where training acts: divergence by position, on the prefix and behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upft.analyses import bands
from upft.statistics.means import Array

WAYS = ("forward", "reverse")


@dataclass(frozen=True)
class Apart:
    """One trace. forward: KL(base || trained), reverse: KL(trained || base), of the distributions of its 1st, 2nd, ... token:
    [tokens], nats."""

    question: str
    forward: Array
    reverse: Array


def summary(traces: Sequence[Apart], prefix_len: int, longest: int, seed: int) -> dict[str, Any]:
    """Plain JSON. t, known: positions up to `longest` and how many questions reach each; forward, reverse: lists mean, low,
    high by t, over questions (their traces' mean); prefix, continuation: the same of the mean of a token's divergence up to
    prefix_len and behind it, as numbers (null where no trace goes on); share: of a trace's summed KL(base || trained), how much
    lies on the prefix, ratio of means over questions, bootstrap interval (BCa, Efron 1987, doi:10.2307/2289144); tokens_share:
    the same of its tokens, for comparison. sequence: mean summed KL of a trace: the divergence of the two models' whole
    solutions, where the traces were drawn at temperature 1 without a cut.
    """
    known = min(longest, max(len(trace.forward) for trace in traces))
    out: dict[str, Any] = {"prefix_len": prefix_len, "traces": len(traces), "tokens": sum(len(t.forward) for t in traces),
                           "questions": len({t.question for t in traces}), "t": list(range(1, known + 1))}
    for way in WAYS:
        at = _by_question(traces, [bands.padded([getattr(t, way)], known)[0] for t in traces])
        out[way] = bands.amounts(at)
    out["known"] = [int(k) for k in (~np.isnan(at)).sum(axis=0)]
    for name, part in (("prefix", slice(None, prefix_len)), ("continuation", slice(prefix_len, None))):
        out[name] = {}
        for way in WAYS:
            parts = [getattr(trace, way)[part] for trace in traces]
            values = _by_question(traces, [np.array([values.mean() if len(values) else np.nan]) for values in parts])
            band = None if np.isnan(values).all() else bands.amounts(values)
            out[name][way] = None if band is None else {key: one[0] for key, one in band.items()}
    sums = _by_question(traces, [np.array([t.forward[:prefix_len].sum(), t.forward.sum(), min(prefix_len, len(t.forward)),
                                           len(t.forward)]) for t in traces])
    out["share"] = _ratio(sums[:, 0], sums[:, 1], seed)
    out["tokens_share"] = float(sums[:, 2].sum() / sums[:, 3].sum())
    total = bands.amounts(sums[:, 1:2])
    out["sequence"] = {key: one[0] for key, one in total.items()}
    return out


def _by_question(traces: Sequence[Apart], rows: Sequence[Array]) -> Array:
    """[questions, columns]: mean over each question's traces, of those that are known."""
    found: dict[str, list[Array]] = {}
    for trace, row in zip(traces, rows, strict=True):
        found.setdefault(trace.question, []).append(row)
    means = []
    for some in found.values():
        block = np.array(some)
        there = ~np.isnan(block)
        count = there.sum(axis=0)
        means.append(np.where(count > 0, np.where(there, block, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan))
    return np.array(means)


def _ratio(part: Array, whole: Array, seed: int) -> dict[str, float] | None:
    """Of two means over questions, with its interval; None where there is nothing to divide, or one question."""
    from scipy import stats

    if whole.sum() <= 0 or len(whole) < 2:
        return None
    value = float(part.sum() / whole.sum())
    if np.allclose(part, value * whole):
        return {"value": value, "low": value, "high": value}
    found = stats.bootstrap((part, whole), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, vectorized=True,
                            n_resamples=9999, batch=1000, rng=np.random.default_rng(seed)).confidence_interval
    return {"value": value, "low": float(found.low), "high": float(found.high)}
