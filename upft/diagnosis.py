"""How alike a model's solutions of one question begin, and the prefix length that follows from it.

Floor 3: token ids and log-probabilities in, numbers out. Question by question, keeping sums only, so memory does not
grow with the questions. Refuses to know tokenizers, engines, and what a sample was asked for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upft.errors import DataError

FILE = "diagnosis.json"
LEVEL = 0.05
"""Two-sided error rate of the intervals."""
ENDED = -1
"""Stands for the tokens after a trace that ended by itself: no token has this id."""


@dataclass(frozen=True)
class Trace:
    """One sampled completion.

    ids: with the stop token where finish_reason is "stop"; "length": the limit cut them. whole: a whole trace was asked
    for, not a prefix. logprobs: of each id, in the distribution it was drawn from. boxed: a box stands in its text.
    """

    ids: Sequence[int]
    finish_reason: str
    whole: bool
    logprobs: Sequence[float] | None = None
    boxed: bool = False


@dataclass(frozen=True)
class Curve:
    """Means over questions at t = 1, 2, ... tokens, each list [t]. questions: how many are known at t. agreement: with
    its 95% interval low to high, from 0 to 1. See `beginnings`."""

    questions: list[int]
    agreement: list[float]
    low: list[float]
    high: list[float]
    distinct_prefixes: list[float]
    traces_a_prefix: list[float]


def beginnings(traces: Sequence[Trace], longest: int) -> NDArray[np.float64]:
    """How the traces of one question begin: [3, t] for t = 1, 2, ..., at most `longest`.

    Row 0, agreement: pairs of traces that share their first t tokens, as a share of all n(n-1)/2 pairs. It is the
    unbiased estimate of the probability that two independent traces do, sum of p² over prefixes of probability p: with
    n_i traces on prefix i, sum n_i(n_i-1) / n(n-1) (Simpson 1949, doi:10.1038/163688a0). Row 1: distinct prefixes.
    Row 2: traces a prefix, n / distinct.

    A trace that ended by itself before t counts with its whole self, so only its equals agree with it. How a cut one
    goes on is not known, so the columns end with the shortest cut trace: to leave only that trace out would keep those
    that happened to end early. No columns for fewer than two traces.
    """
    n = len(traces)
    known = min([longest, *(len(trace.ids) for trace in traces if trace.finish_reason == "length")]) if n > 1 else 0
    out = np.empty((3, known))
    groups = [[trace.ids for trace in traces]]  # of two or more that have been equal so far
    for t in range(known):
        parted: list[list[Sequence[int]]] = []
        for group in groups:
            by_token: dict[int, list[Sequence[int]]] = {}
            for ids in group:
                by_token.setdefault(ids[t] if t < len(ids) else ENDED, []).append(ids)
            parted += [same for same in by_token.values() if len(same) > 1]
        groups = parted
        distinct = n - sum(len(group) - 1 for group in groups)
        out[:, t] = sum(len(group) * (len(group) - 1) for group in groups) / (n * (n - 1)), distinct, n / distinct
    return out


class Diagnosis:
    """What the samples of many questions show; give it one question at a time."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kinds = {whole: _Kind(longest) for whole in (False, True)}
        self._questions = 0
        self._surprise, self._scored = np.zeros(longest), np.zeros(longest, dtype=np.int64)

    def add(self, traces: Sequence[Trace]) -> None:
        """The traces of one question, all prefixes or all whole."""
        self._questions += 1
        kind = self._kinds[traces[0].whole]
        if len(traces) > 1:
            kind.means.add(beginnings(traces, self._longest))
        for trace in traces:
            kind.lengths[len(trace.ids)] += 1
            kind.boxed += trace.boxed
            if trace.finish_reason == "stop":
                kind.finished += 1
            else:
                kind.cut = max(kind.cut or 0, len(trace.ids))
            if trace.logprobs is not None:
                scores = np.asarray(trace.logprobs[:self._longest], dtype=np.float64)
                self._surprise[:len(scores)] -= scores
                self._scored[:len(scores)] += 1

    def curve(self) -> Curve:
        """Agreement at every t that is known of a question with two or more traces.

        Prefixes count up to the length they were cut at: beyond it only questions whose traces all ended early would
        be left, which are not like the others. Whole traces, given to questions by chance, go on. Interval: mean ±
        t·sd/sqrt(questions) over the questions' agreements (Student's t, questions - 1 degrees of freedom), within
        [0, 1]; where none differs ± 1 - 0.025^(1/questions), the largest share of questions that could be otherwise and
        still not show (Clopper and Pearson 1934).
        """
        means = self._kinds[False].known().plus(self._kinds[True].known())
        known = int((means.count > 0).sum())
        if not known:
            return Curve([], [], [], [], [], [])
        count, mean = means.count[:known], means.mean[:, :known]
        half = _half_widths(count, means.squares[0, :known])
        return Curve(count.tolist(), mean[0].tolist(), np.maximum(mean[0] - half, 0).tolist(),
                     np.minimum(mean[0] + half, 1).tolist(), mean[1].tolist(), mean[2].tolist())

    def entropy(self) -> tuple[list[float], list[int]] | None:
        """(entropy of the sampler at each position in nats, of how many tokens); None without log-probabilities.

        Minus the log-probability of a drawn token has the entropy of the distribution it was drawn from as its
        expectation (Shannon 1948), so its mean at a position is an unbiased estimate of the mean entropy there, over
        questions and beginnings that reach it. Holds for drawn tokens: a greedy one is not.
        """
        reached = int((self._scored > 0).sum())
        if not reached:
            return None
        scored = self._scored[:reached]
        return (self._surprise[:reached] / scored).tolist(), scored.tolist()

    def found(self, threshold: float) -> dict[str, Any]:
        """Everything as plain JSON.

        suggested, reason: see `suggest`. agreement_threshold, longest: as asked. questions, traces: looked at.
        curve: lists by t: t, and those of `Curve`; empty lists where one trace a question was sampled. entropy: lists t,
        nats, tokens, or null. whole: traces; finished (ended by themselves) and boxed, as shares; mean_tokens,
        median_tokens; null where none was sampled. prefixes: traces, finished, mean_tokens, or null.
        """
        curve, entropy, prefixes, whole = self.curve(), self.entropy(), self._kinds[False], self._kinds[True]
        median = whole.median() if whole.traces else None
        suggested, reason = suggest(curve, threshold, self._longest, median)
        return {
            "suggested": suggested, "reason": reason, "agreement_threshold": threshold, "longest": self._longest,
            "questions": self._questions, "traces": prefixes.traces + whole.traces,
            "curve": {"t": list(range(1, len(curve.agreement) + 1)), **vars(curve)},
            "entropy": None if entropy is None else {"t": list(range(1, len(entropy[0]) + 1)), "nats": entropy[0],
                                                     "tokens": entropy[1]},
            "whole": {"traces": whole.traces, "finished": whole.finished / whole.traces, "boxed": whole.boxed / whole.traces,
                      "mean_tokens": whole.mean(), "median_tokens": median} if whole.traces else None,
            "prefixes": {"traces": prefixes.traces, "finished": prefixes.finished / prefixes.traces,
                         "mean_tokens": prefixes.mean()} if prefixes.traces else None,
        }


def suggest(curve: Curve, threshold: float, longest: int, median: float | None) -> tuple[int | None, str]:
    """(prefix length in tokens, why): the longest at which the share `threshold` of pairs still agrees.

    Taken at the first length that falls below, since estimates over fewer and fewer questions may rise again. At most
    half the median whole trace, where that is known, and at least 1. None where one trace a question was sampled.
    """
    if not curve.agreement:
        return None, ("One trace of each question was sampled, so how alike two begin is not known: use sample.n=8, or "
                      "prefix.len=auto, which samples a pilot.")

    def at(t: int) -> str:
        return (f"{_percent(curve.agreement[t - 1])} of the pairs of a question's traces agree (95% interval "
                f"{_percent(curve.low[t - 1])} to {_percent(curve.high[t - 1])}, {_count(curve.questions[t - 1], 'question')})")

    asked = f"diagnose.agreement={threshold:g}"
    below = next((t for t, share in enumerate(curve.agreement, 1) if share < threshold), None)
    if below == 1:
        length, reason = 1, f"At the first token {at(1)}, already less than {asked}; no prefix is shorter."
    elif below is not None:
        length = below - 1
        reason = (f"At {_count(length, 'token')} {at(length)}; at {below} {_percent(curve.agreement[below - 1])} do, which is "
                  f"less than {asked}.")
    else:
        length = len(curve.agreement)
        end = f"the longest looked at (diagnose.longest={longest})" if length == longest else \
            "where the samples end (sample.max_tokens)"
        reason = f"At {_count(length, 'token')}, {end}, {at(length)}, no less than {asked}; a longer prefix may do as well."
    if median is not None and (half := max(1, int(median // 2))) < length:
        length = half
        reason += f" Shortened to {_count(half, 'token')}, half the median whole trace of {median:g}."
    return length, reason


def suggested_length(folder: Path) -> int:
    """The prefix length that the diagnosis in an artifact suggests. Raises DataError where it suggests none."""
    found: Mapping[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    if found["suggested"] is None:
        raise DataError(f"prefix.len=auto: the diagnosis suggests no length. {found['reason']}", "give prefix.len=N")
    return int(found["suggested"])


class _Means:
    """Means and summed squared deviations at each t of the three rows of `beginnings`, over questions of which some end
    early (Welford 1962, doi:10.1080/00401706.1962.10490022): equal values have no deviation at all, not a rounded one."""

    def __init__(self, longest: int) -> None:
        self.count = np.zeros(longest, dtype=np.int64)
        self.mean, self.squares = np.zeros((3, longest)), np.zeros((3, longest))

    def add(self, values: NDArray[np.float64]) -> None:
        t = values.shape[1]
        self.count[:t] += 1
        off = values - self.mean[:, :t]
        self.mean[:, :t] += off / self.count[:t]
        self.squares[:, :t] += off * (values - self.mean[:, :t])

    def cut(self, t: int) -> _Means:
        """The same up to t, nothing beyond."""
        out = _Means(len(self.count))
        out.count[:t], out.mean[:, :t], out.squares[:, :t] = self.count[:t], self.mean[:, :t], self.squares[:, :t]
        return out

    def plus(self, other: _Means) -> _Means:
        """Of both sets of questions together (Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115)."""
        out = _Means(len(self.count))
        out.count = self.count + other.count
        share, off = other.count / np.maximum(out.count, 1), other.mean - self.mean
        out.mean = self.mean + off * share
        out.squares = self.squares + other.squares + off**2 * self.count * share
        return out


class _Kind:
    """Sums over prefixes, or over whole traces. cut: longest one that the limit cut, None where all ended by themselves."""

    def __init__(self, longest: int) -> None:
        self.means = _Means(longest)
        self.lengths: Counter[int] = Counter()
        self.cut: int | None = None
        self.finished = self.boxed = 0

    @property
    def traces(self) -> int:
        return self.lengths.total()

    def known(self) -> _Means:
        return self.means if self.cut is None else self.means.cut(self.cut)

    def mean(self) -> float:
        return sum(length * count for length, count in self.lengths.items()) / self.traces

    def median(self) -> float:
        middle, seen, before = self.traces / 2, 0, 0
        for length in sorted(self.lengths):
            if seen == middle:  # half lie below this length, half at or above it
                return (before + length) / 2
            seen, before = seen + self.lengths[length], length
            if seen > middle:
                break
        return float(before)


def _half_widths(count: NDArray[np.int64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy import stats

    freedom = np.maximum(count - 1, 1)
    spread = np.where(count > 1, np.sqrt(squares / freedom), 0.0)
    return np.where(spread > 1e-9, stats.t.ppf(1 - LEVEL / 2, freedom) * spread / np.sqrt(count),
                    1 - (LEVEL / 2) ** (1 / count))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
