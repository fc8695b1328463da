"""Distinct prefixes against sets, by difficulty."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from upft.analyses.consistency import Counted, summary, together
from upft.diagnosis import Trace


def drawn(seed: int, n: int, length: int) -> list[Trace]:
    rng = random.Random(seed)
    return [Trace([rng.choices(range(3), (8, 1, 1))[0] for _ in range(length)], "length", False) for _ in range(n)]


def test_counts_are_those_of_sets():
    questions = [drawn(seed, 20, 6) for seed in range(8)]
    found = summary([Counted.of(str(number), traces, None, 6) for number, traces in enumerate(questions)], 6, ())
    [group] = found["groups"]
    assert (found["questions"], found["traces"], group["t"], group["known"]) == (8, 20, [1, 2, 3, 4, 5, 6], [8] * 6)
    for t in group["t"]:
        distinct = [len({tuple(trace.ids[:t]) for trace in traces}) for traces in questions]
        assert group["distinct"]["mean"][t - 1] == pytest.approx(np.mean(distinct))
        assert group["traces_a_prefix"]["mean"][t - 1] == pytest.approx(np.mean([20 / d for d in distinct]))
        for name in ("distinct", "traces_a_prefix"):
            band = group[name]
            assert 1 <= band["low"][t - 1] <= band["mean"][t - 1] <= band["high"][t - 1] <= 20


def test_questions_fall_into_the_group_of_their_share():
    counted = []
    shares = {0.0: "hard", 0.2: "hard", 0.25: "middle", 0.5: "middle", 0.75: "easy", 1.0: "easy"}
    for number, share in enumerate(shares):
        alike = [Trace([number, 0], "length", False)] * 4
        counted.append(Counted.of(str(number), alike if shares[share] == "easy" else drawn(number, 4, 2), share, 2))
    counted.append(Counted.of("unknown", drawn(99, 4, 2), None, 2))
    groups = summary(counted, 2, (0.25, 0.75))["groups"]
    assert [(g["from"], g["to"], g["questions"]) for g in groups] == [(None, None, 7), (0, 0.25, 2), (0.25, 0.75, 2),
                                                                      (0.75, 1, 2)]
    assert groups[3]["right"] == pytest.approx(0.875)
    assert groups[3]["distinct"]["mean"] == [1, 1]
    assert groups[3]["traces_a_prefix"]["mean"] == [4, 4]
    assert groups[3]["alike"] == [True, True]
    assert groups[0]["alike"] == [False, False]


def test_a_question_that_ends_early_counts_as_far_as_it_is_known():
    [group] = summary([Counted.of("a", drawn(0, 3, 4), None, 4), Counted.of("b", [
        Trace([1, 2], "length", True), Trace([1, 2, 3], "stop", True)], None, 4)], 4, ())["groups"]
    assert group["known"] == [2, 2, 1, 1]


def test_a_line_is_what_was_counted():
    one = Counted.of("a", drawn(3, 7, 4), 0.25, 4)
    back = Counted.read(json.loads(json.dumps(one.told())))
    assert (back.question, back.traces, back.right) == ("a", 7, 0.25)
    np.testing.assert_array_equal(back.counts, one.counts)


def test_several_samplings_are_one_of_their_means():
    seeds = [[Counted.of(str(q), drawn(10 * seed + q, 12, 5), (q + seed) / 10, 5) for q in range(4 + seed)]
             for seed in (0, 1, 2)]
    found = {one.question: one for one in together(seeds)}
    assert list(found) == ["0", "1", "2", "3", "4", "5"]
    assert found["2"].right == pytest.approx(0.3)
    distinct = [len({tuple(trace.ids[:3]) for trace in drawn(10 * seed + 2, 12, 5)}) for seed in (0, 1, 2)]
    assert found["2"].counts[1, 2] == pytest.approx(np.mean(distinct))
    np.testing.assert_array_equal(found["5"].counts, seeds[2][5].counts)
    assert summary(list(found.values()), 5, (0.25,))["groups"][1]["questions"] == 2, "shares of right traces are means, too"
    with pytest.raises(ValueError, match="different numbers of traces"):
        together([seeds[0], [Counted.of("0", drawn(5, 9, 5), None, 5)]])
