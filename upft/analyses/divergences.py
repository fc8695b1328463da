"""Where training acts: divergence by position, on the prefix and behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upft.analyses import bands
from upft.statistics.means import Array
from upft.statistics.several import seeds_amount

WAYS = ("forward", "reverse")


@dataclass(frozen=True)
class Apart:
    """One trace. forward: KL(base || trained), reverse: KL(trained || base), of the distributions of its 1st, 2nd, ... token:
    [tokens], nats."""

    question: str
    forward: Array
    reverse: Array

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Apart:
        """From a line of divergences.jsonl."""
        return cls(str(line["question"]), np.array(line["forward"]), np.array(line["reverse"]))


@dataclass(frozen=True)
class Parted:
    """The questions of one training, means over their traces. at: way of WAYS -> divergence by position, [questions, known]
    (NaN behind a question's last); parts: way -> mean a token on the prefix and behind it, [questions, 2] (NaN where no trace
    goes on); sums: forward divergence on the prefix and of whole traces, tokens of both, [questions, 4]."""

    questions: tuple[str, ...]
    traces: int
    tokens: int
    at: Mapping[str, Array]
    parts: Mapping[str, Array]
    sums: Array

    @classmethod
    def of(cls, traces: Sequence[Apart], prefix_len: int, longest: int) -> Parted:
        """From one trace or more."""
        known = min(longest, max(len(trace.forward) for trace in traces))
        at = {way: _by_question(traces, [bands.padded([getattr(t, way)], known)[0] for t in traces]) for way in WAYS}
        parts = {way: _by_question(traces, [np.array([_mean(getattr(t, way)[:prefix_len]), _mean(getattr(t, way)[prefix_len:])])
                                            for t in traces]) for way in WAYS}
        sums = _by_question(traces, [np.array([t.forward[:prefix_len].sum(), t.forward.sum(), min(prefix_len, len(t.forward)),
                                               len(t.forward)]) for t in traces])
        return cls(tuple(dict.fromkeys(t.question for t in traces)), len(traces), sum(len(t.forward) for t in traces), at,
                   parts, sums)

    @classmethod
    def mean(cls, several: Sequence[Parted]) -> Parted:
        """Trainings compared with their base on the same traces, as one. Raises ValueError for other traces."""
        first = several[0]
        if any((one.questions, one.traces, one.tokens) != (first.questions, first.traces, first.tokens) for one in several):
            raise ValueError("the trainings were compared on different traces")
        return cls(first.questions, first.traces, first.tokens,
                   {way: np.mean([one.at[way] for one in several], axis=0) for way in WAYS},
                   {way: np.mean([one.parts[way] for one in several], axis=0) for way in WAYS},
                   np.mean([one.sums for one in several], axis=0))

    def of_questions(self, questions: Sequence[str], known: int) -> Parted:
        """Only these, in this order, up to that position."""
        place = {question: number for number, question in enumerate(self.questions)}
        rows = [place[question] for question in questions]
        return Parted(tuple(questions), self.traces, self.tokens,
                      {way: values[rows, :known] for way, values in self.at.items()},
                      {way: values[rows] for way, values in self.parts.items()}, self.sums[rows])


def summary(traces: Sequence[Apart], prefix_len: int, longest: int, seed: int) -> dict[str, Any]:
    """Plain JSON. t, known: positions up to `longest` and how many questions reach each; forward, reverse: lists mean, low,
    high by t, over questions (their traces' mean; low and high None where one question alone is known); prefix, continuation:
    the same of the mean of a token's divergence up to prefix_len and behind it, as numbers (None where no trace goes on);
    share: of a trace's summed KL(base || trained), how much lies on the prefix, ratio of means over questions, bootstrap
    interval (BCa, Efron 1987, doi:10.2307/2289144); tokens_share: the same of its tokens, for comparison. sequence: mean summed
    KL of a trace: the divergence of the two models' whole solutions, where the traces were drawn at temperature 1 and not cut.
    """
    found = Parted.of(traces, prefix_len, longest)
    return {**_told([found], prefix_len), "share": _ratio(found.sums[:, 0], found.sums[:, 1], seed)}


def over_seeds(seeds: Sequence[Parted], prefix_len: int) -> dict[str, Any]:
    """`summary` of trainings under several seeds, on the questions that all of them have. Question and seed are crossed random
    effects (`statistics.over_seeds`); the share's interval is that of a ratio of means by linearisation (Cochran 1977, Sampling
    Techniques, 6.4): t·SE of part - share·whole over the mean of the whole. Raises ValueError unless 2 questions or more are
    common to all."""
    common = [question for question in seeds[0].questions if all(question in one.questions for one in seeds)]
    if len(common) < 2:
        raise ValueError(f"the seeds have {len(common)} questions in common")
    known = min(one.at["forward"].shape[1] for one in seeds)
    cut = [one.of_questions(common, known) for one in seeds]
    part, whole = (np.array([one.sums[:, column] for one in cut]) for column in (0, 1))
    share: dict[str, float] | None = None
    if whole.sum() > 0:
        value = float(part.sum() / whole.sum())
        mean, _, high = seeds_amount(part - value * whole)
        half = float(high - mean) / float(whole.mean())
        share = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
    return {**_told(cut, prefix_len), "share": share}


def _told(seeds: Sequence[Parted], prefix_len: int) -> dict[str, Any]:
    """What is told of one training, or of several that have the same questions."""
    out: dict[str, Any] = {"prefix_len": prefix_len, "traces": sum(one.traces for one in seeds),
                           "tokens": sum(one.tokens for one in seeds), "questions": len(seeds[0].questions)}
    for way in WAYS:
        out[way] = _band(np.array([one.at[way] for one in seeds]))
    known = len(out["forward"]["mean"])
    out["t"] = list(range(1, known + 1))
    there = np.array([~np.isnan(one.at["forward"][:, :known]) for one in seeds]).all(axis=0)
    out["known"] = [int(k) for k in there.sum(axis=0)]
    for column, name in enumerate(("prefix", "continuation")):
        out[name] = {}
        for way in WAYS:
            values = np.array([one.parts[way][:, column:column + 1] for one in seeds])
            band = None if np.isnan(values).all() else _band(values)
            out[name][way] = {key: one[0] for key, one in band.items()} if band is not None and band["mean"] else None
    sums = np.array([one.sums for one in seeds])
    out["tokens_share"] = float(sums[..., 2].sum() / sums[..., 3].sum())
    out["sequence"] = {key: one[0] for key, one in _band(sums[..., 1:2]).items()}
    return out


def _band(values: Array) -> dict[str, list[float | None]]:
    """Of values: [seeds, questions, t]."""
    return bands.amounts(values[0]) if len(values) == 1 else bands.amounts_over_seeds(values)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


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
    if np.allclose(part, value * whole, atol=0):  # however small the divergences are
        return {"value": value, "low": value, "high": value}
    found = stats.bootstrap((part, whole), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), paired=True, vectorized=True,
                            n_resamples=9999, batch=1000, rng=np.random.default_rng(seed)).confidence_interval
    return {"value": value, "low": float(found.low), "high": float(found.high)}
