"""How alike solutions begin: against counting by hand, against known probabilities, and the suggestion's rules."""

from __future__ import annotations

import json
import random
import statistics
import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from upft.diagnosis import Curve, Diagnosis, Trace, beginnings, suggest, suggested_length
from upft.errors import DataError

STOP = 9


def ended(*ids: int) -> Trace:
    return Trace((*ids, STOP), "stop", False)


def cut(*ids: int) -> Trace:
    return Trace(ids, "length", False)


def whole(*ids: int, boxed: bool = False, finish_reason: str = "stop") -> Trace:
    return Trace(ids, finish_reason, True, boxed=boxed)


def by_hand(traces: list[Trace], t: int) -> tuple[float, float, float]:
    """(agreement, distinct prefixes, traces a prefix) at t, pair by pair."""
    seen = [tuple(trace.ids[:t]) for trace in traces]
    pairs = list(combinations(seen, 2))
    return sum(a == b for a, b in pairs) / len(pairs), len(set(seen)), len(seen) / len(set(seen))


def test_one_question_worked_out_on_paper() -> None:
    """1 2 3, 1 2 4, 1 5 and the end, 6 and the end: pairs that share 1, 2, 3 tokens are 3, 1, 0 of 6."""
    found = beginnings([cut(1, 2, 3), cut(1, 2, 4), ended(1, 5), ended(6)], longest=8)
    assert found.tolist() == [[3 / 6, 1 / 6, 0], [2, 3, 4], [2, 4 / 3, 1]]


def test_a_trace_that_ended_agrees_with_its_equals_alone() -> None:
    found = beginnings([ended(1, 2), ended(1, 2), ended(1), Trace((1, 2, 3, 4, 5, STOP), "stop", False)], longest=5)
    # 1 | 1 2, 1 2, 1 end, 1 2 | the two that are equal, for good
    assert found[0].tolist() == [1, 3 / 6, 1 / 6, 1 / 6, 1 / 6]
    assert found[1].tolist() == [1, 2, 3, 3, 3]


def test_an_ended_trace_is_no_prefix_of_one_that_goes_on() -> None:
    """Whatever it goes on with, also where the stop token of one is an ordinary token of the other."""
    for token in range(200):
        found = beginnings([Trace((1, 7), "stop", False), Trace((1, 7, token), "stop", False)], longest=3)
        assert found[0].tolist() == [1, 1, 0]


def test_nothing_is_said_beyond_the_shortest_cut_trace() -> None:
    traces = [cut(1, 2), cut(1, 2, 3, 4), ended(1, 2, 3), ended(1, 2, 3)]
    assert beginnings(traces, longest=8)[0].tolist() == [1, 1]
    assert beginnings(traces[1:], longest=8)[0].tolist() == [1, 1, 1, 1 / 3]
    assert beginnings(traces[2:], longest=6)[0].tolist() == [1] * 6
    assert beginnings(traces[:1], longest=8).size == 0, "one trace agrees with nothing"


def random_question(rng: random.Random, n: int, longest: int, tokens: tuple[int, ...] = (1, 2, STOP)) -> list[Trace]:
    out = []
    for _ in range(n):
        ids = rng.choices(tokens, (5, 3, 1), k=longest)
        stop = ids.index(STOP) if STOP in ids else None
        out.append(cut(*ids) if stop is None else ended(*ids[:stop]))
    return out


@pytest.mark.parametrize("n", [2, 3, 16])
def test_means_and_intervals_over_questions_are_those_of_counting_pairs(n: int) -> None:
    rng, longest = random.Random(n), 7
    questions = [random_question(rng, n, longest) for _ in range(30)]
    # Whole traces that are less alike: the two kinds are summed apart and put together in the end.
    questions += [[replace(trace, whole=True) for trace in random_question(rng, n, longest, (1, 1 + k % 6, STOP))]
                  for k in range(20)]
    found = Diagnosis(longest)
    for traces in questions:
        found.add(traces)
    curve = found.curve()
    for t in range(1, longest + 1):
        agreement, distinct, shared = (np.array(x) for x in zip(*(by_hand(q, t) for q in questions), strict=True))
        assert curve.questions[t - 1] == 50
        assert curve.agreement[t - 1] == pytest.approx(agreement.mean())
        assert curve.distinct_prefixes[t - 1] == pytest.approx(distinct.mean())
        assert curve.traces_a_prefix[t - 1] == pytest.approx(shared.mean())
        low, high = stats.t.interval(0.95, 49, agreement.mean(), agreement.std(ddof=1) / np.sqrt(50))
        assert (curve.low[t - 1], curve.high[t - 1]) == (pytest.approx(max(low, 0)), pytest.approx(min(high, 1)))


def test_where_all_questions_agree_the_interval_has_a_width() -> None:
    found = Diagnosis(3)
    for _ in range(30):
        found.add([ended(1, 2), ended(1, 2)])
    curve = found.curve()
    assert curve.agreement == curve.high == [1, 1, 1]
    # 30 questions of which none differs: stats.binomtest(0, 30) at 95%, two-sided
    assert curve.low == pytest.approx([1 - stats.binomtest(0, 30).proportion_ci(method="exact").high] * 3)


def test_beyond_the_length_of_prefixes_only_whole_traces_count() -> None:
    """A prefix question whose traces happened to end early would be an odd one out."""
    found = Diagnosis(6)
    found.add([cut(1, 2), cut(1, 3)])
    found.add([ended(4), ended(4)])  # known for good, yet left out beyond 2
    found.add([whole(5, 6, 7, STOP), whole(5, 6, 8, STOP)])
    curve = found.curve()
    assert curve.questions == [3, 3, 1, 1, 1, 1]
    assert curve.agreement == pytest.approx([1, 2 / 3, 0, 0, 0, 0])
    assert curve.distinct_prefixes == pytest.approx([1, 4 / 3, 2, 2, 2, 2])
    only_ended = Diagnosis(6)
    only_ended.add([ended(4), ended(4)])
    assert only_ended.curve().agreement == [1] * 6


def test_the_interval_covers_a_known_probability_and_the_estimate_is_unbiased() -> None:
    """Each question has its own distribution over 3 first tokens, Dirichlet(1, 1, 1): E sum p² = 3 * 2/(3*4) = 1/2.
    The second token is fair, so at two tokens it is 1/4."""
    rng = np.random.default_rng(0)
    studies, questions, n = 600, 30, 4
    covered, estimates = np.zeros(2), np.zeros((studies, 2))
    for study in range(studies):
        found = Diagnosis(2)
        for p in rng.dirichlet([1, 1, 1], size=questions):
            first, second = rng.choice(3, size=n, p=p).tolist(), rng.integers(2, size=n).tolist()
            found.add([cut(*ids) for ids in zip(first, second, strict=True)])
        curve = found.curve()
        estimates[study] = curve.agreement
        covered += [low <= truth <= high for low, truth, high in zip(curve.low, (0.5, 0.25), curve.high, strict=True)]
    error = estimates.std(axis=0, ddof=1) / np.sqrt(studies)
    assert np.abs(estimates.mean(axis=0) - [0.5, 0.25]).max() < 4 * error.max()
    assert (covered / studies > 0.95 - 4 * np.sqrt(0.95 * 0.05 / studies)).all(), covered
    assert (covered / studies < 0.95 + 4 * np.sqrt(0.95 * 0.05 / studies)).all(), covered


def test_entropy_at_each_position_is_that_of_the_distribution() -> None:
    rng = np.random.default_rng(1)
    distributions = [np.array([0.7, 0.2, 0.1]), np.array([0.25] * 4), np.array([1.0])]
    draws, found = 4000, Diagnosis(8)
    for _ in range(draws // 2):
        traces = []
        for _ in range(2):
            ids = [int(rng.choice(len(p), p=p)) for p in distributions]
            traces.append(Trace(ids, "length", False, [float(np.log(p[i])) for p, i in zip(distributions, ids, strict=True)]))
        found.add(traces)
    nats, tokens = found.entropy() or ([], [])
    assert tokens == [draws] * 3
    for estimate, p in zip(nats, distributions, strict=True):
        entropy = stats.entropy(p)
        assert abs(estimate - entropy) <= 4 * np.sqrt(max((p * np.log(p) ** 2).sum() - entropy**2, 0) / draws) + 1e-12


def test_entropy_counts_the_traces_that_have_a_position() -> None:
    found = Diagnosis(2)
    found.add([Trace((1, 2, 3), "length", False, (-1.0, -2.0, -99.0)), Trace((STOP,), "stop", False, (-3.0,))])
    found.add([cut(1, 2, 3), cut(1, 2, 3)])
    assert found.entropy() == ([2.0, 2.0], [2, 1])
    silent = Diagnosis(2)
    silent.add([cut(1, 2)])
    assert silent.entropy() is None


def test_lengths_boxes_and_ends() -> None:
    rng, found = random.Random(2), Diagnosis(4)
    lengths = [rng.randint(1, 40) for _ in range(31)]
    for n, length in enumerate(lengths):
        found.add([whole(*range(length), boxed=n < 12, finish_reason="length" if n < 3 else "stop")])
    found.add([cut(1, 2), ended(1, 2, 3)])
    told = found.found(0.2)
    assert told["whole"] == {"traces": 31, "finished": 28 / 31, "boxed": 12 / 31,
                             "mean_tokens": pytest.approx(statistics.mean(lengths)),
                             "median_tokens": statistics.median(lengths)}
    assert told["prefixes"] == {"traces": 2, "finished": 0.5, "mean_tokens": 3.0}
    assert (told["questions"], told["traces"]) == (32, 33)


@pytest.mark.parametrize("lengths", [[5], [5, 5], [1, 4], [1, 1, 2, 9], [3, 3, 3, 8, 8, 8], [2, 2, 2, 7]])
def test_median_of_whole_traces(lengths: list[int]) -> None:
    found = Diagnosis(4)
    for length in lengths:
        found.add([whole(*range(length))])
    assert found.found(0.2)["whole"]["median_tokens"] == statistics.median(lengths)


def test_memory_does_not_grow_with_the_questions() -> None:
    rng, found = random.Random(3), Diagnosis(16)

    def feed(count: int) -> int:
        for _ in range(count):
            found.add([Trace(t.ids, t.finish_reason, False, [-1.0] * len(t.ids)) for t in random_question(rng, 4, 16)])
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        few = feed(100)
        assert feed(2000) < few + 10_000, "bytes; one trace of each question would be over 200,000"
    finally:
        tracemalloc.stop()


def curve(*agreement: float) -> Curve:
    a = list(agreement)
    return Curve([50] * len(a), a, [x - 0.05 for x in a], [x + 0.05 for x in a], [2.0] * len(a), [2.0] * len(a))


@pytest.mark.parametrize(("agreement", "longest", "median", "length", "said"), [
    ((0.9, 0.5, 0.3, 0.1), 8, None, 3, "At 3 tokens 30.0% of the pairs of a question's traces agree (95% interval 25.0% to "
     "35.0%, 50 questions); at 4 10.0% do, which is less than diagnose.agreement=0.2."),
    ((0.9, 0.2, 0.19999), 8, None, 2, "At 2 tokens 20.0%"),  # the share asked for is enough
    ((0.9, 0.1, 0.4), 8, None, 1, "At 1 token 90.0%"),  # a later rise is not believed
    ((0.15, 0.1), 8, None, 1, "At the first token 15.0% of the pairs"),
    ((0.15, 0.1), 8, None, 1, "already less than diagnose.agreement=0.2"),
    ((0.9, 0.8, 0.7), 3, None, 3, "At 3 tokens, the longest looked at (diagnose.longest=3), 70.0%"),
    ((0.9, 0.8, 0.7), 8, None, 3, "At 3 tokens, where the samples end (sample.max_tokens), 70.0%"),
    ((0.9, 0.5, 0.3, 0.1), 8, 5.0, 2, "Shortened to 2 tokens, half the median whole trace of 5."),
    ((0.9, 0.5, 0.3, 0.1), 8, 1.0, 1, "Shortened to 1 token, half the median whole trace of 1."),
])
def test_suggestion(agreement: tuple[float, ...], longest: int, median: float | None, length: int, said: str) -> None:
    found, reason = suggest(curve(*agreement), 0.2, longest, median)
    assert found == length
    assert said in reason
    assert ("Shortened" in reason) == (median is not None)


def test_half_a_trace_that_is_long_enough_changes_nothing() -> None:
    assert suggest(curve(0.9, 0.5, 0.1), 0.2, 8, 4.0) == suggest(curve(0.9, 0.5, 0.1), 0.2, 8, None)


def test_one_trace_a_question_suggests_nothing_and_says_what_would() -> None:
    found = Diagnosis(8)
    for n in range(5):
        found.add([cut(n, 1, 2)])
    told = found.found(0.2)
    assert told["suggested"] is None
    assert "sample.n=8" in told["reason"]
    assert "prefix.len=auto, which samples a pilot" in told["reason"]
    assert told["curve"] == {"t": [], "questions": [], "agreement": [], "low": [], "high": [], "distinct_prefixes": [],
                             "traces_a_prefix": []}
    assert (told["entropy"], told["whole"], told["prefixes"]["mean_tokens"]) == (None, None, 3.0)


def test_what_is_found_is_plain_json_and_is_read_again(tmp_path: Path) -> None:
    found = Diagnosis(4)
    found.add([Trace((1, 2), "length", False, (-0.5, -0.25)), Trace((1, 3), "length", False, (-0.5, -0.75))])
    found.add([whole(*range(9), boxed=True), whole(*range(8), 8)])
    told = found.found(0.4)
    (tmp_path / "diagnosis.json").write_text(json.dumps(told, allow_nan=False))
    assert json.loads((tmp_path / "diagnosis.json").read_text()) == told
    assert told["curve"]["t"] == [1, 2, 3, 4]
    assert told["entropy"] == {"t": [1, 2], "nats": [0.5, 0.5], "tokens": [2, 2]}
    assert (told["agreement_threshold"], told["longest"]) == (0.4, 4)
    assert suggested_length(tmp_path) == told["suggested"] == 4


def test_a_diagnosis_without_a_suggestion_is_refused_with_its_reason(tmp_path: Path) -> None:
    found = Diagnosis(4)
    found.add([cut(1, 2)])
    (tmp_path / "diagnosis.json").write_text(json.dumps(found.found(0.2)))
    with pytest.raises(DataError, match="One trace of each question") as caught:
        suggested_length(tmp_path)
    assert caught.value.remedy == "give prefix.len=N"
