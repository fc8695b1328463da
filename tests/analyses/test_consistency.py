"""Distinct prefixes against sets, by difficulty."""

from __future__ import annotations

import random

import numpy as np
import pytest

from upft.analyses.consistency import Consistency
from upft.diagnosis import Trace


def drawn(seed: int, n: int, length: int) -> list[Trace]:
    rng = random.Random(seed)
    return [Trace([rng.choices(range(3), (8, 1, 1))[0] for _ in range(length)], "length", False) for _ in range(n)]


def test_counts_are_those_of_sets():
    looked = Consistency(6, ())
    questions = [drawn(seed, 20, 6) for seed in range(8)]
    for traces in questions:
        looked.add(traces, None)
    found = looked.found()
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
    looked = Consistency(2, (0.25, 0.75))
    shares = {0.0: "hard", 0.2: "hard", 0.25: "middle", 0.5: "middle", 0.75: "easy", 1.0: "easy"}
    for number, share in enumerate(shares):
        alike = [Trace([number, 0], "length", False)] * 4
        looked.add(alike if shares[share] == "easy" else drawn(number, 4, 2), share)
    looked.add(drawn(99, 4, 2), None)
    groups = looked.found()["groups"]
    assert [(g["from"], g["to"], g["questions"]) for g in groups] == [(None, None, 7), (0, 0.25, 2), (0.25, 0.75, 2),
                                                                      (0.75, 1, 2)]
    assert groups[3]["right"] == pytest.approx(0.875)
    assert groups[3]["distinct"]["mean"] == [1, 1]
    assert groups[3]["traces_a_prefix"]["mean"] == [4, 4]


def test_a_question_that_ends_early_counts_as_far_as_it_is_known():
    looked = Consistency(4, ())
    looked.add(drawn(0, 3, 4), None)
    looked.add([Trace([1, 2], "length", True), Trace([1, 2, 3], "stop", True)], None)
    [group] = looked.found()["groups"]
    assert group["known"] == [2, 2, 1, 1]
