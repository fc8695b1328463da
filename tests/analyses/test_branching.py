"""Where errors begin and what training moved, against worlds whose truth is known in closed form or counted by hand."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest

from upft import statistics
from upft.analyses import branching
from upft.analyses.branching import MODELS, Point, Sides, Solved, critical, means, sides, solved, together
from upft.report import analyses, panels


def errors(points, continuations, margin, seed):
    return branching.errors(sides(points), sorted({p.t for p in points}), continuations, margin, seed)


def coverage(cells, continuations, seed):
    return branching.coverage([solved(cells)], sorted({p.t for p in cells["base", "base"]}), continuations, seed)


def test_means_are_over_traces_of_a_question():
    points = [Point("a", 0, 1, True, False, 0.5), Point("a", 1, 1, True, False, 1.0), Point("a", 0, 2, True, False, 0.0),
              Point("a", 1, 2, True, False, 0.5), Point("b", 0, 1, None, False, 0.25), Point("b", 0, 2, None, True, 1.0)]
    found = means(points, [1, 2])
    assert found["a"].tolist() == [0.75, 0.25]
    assert found["b"].tolist() == [0.25, 1.0]


def test_errors_counts_only_questions_with_both_and_finds_the_length():
    points = []
    for number in range(20):
        for t, (right, wrong) in {1: (0.5, 0.5), 2: (0.5, 0.45), 4: (0.6, 0.45), 8: (1.0, 0.0)}.items():
            points += [Point(f"q{number}", 0, t, True, t == 8, right), Point(f"q{number}", 1, t, False, False, wrong)]
    points += [Point("one-sided", 0, t, True, False, 0.0) for t in (1, 2, 4, 8)]
    found = errors(points, 20, 0.1, 0)
    assert (found["questions"], found["t"]) == (20, [1, 2, 4, 8])
    assert found["right"]["mean"] == pytest.approx([0.5, 0.5, 0.6, 1.0])
    assert found["wrong"]["mean"] == pytest.approx([0.5, 0.45, 0.45, 0.0])
    assert found["difference"]["mean"] == pytest.approx([0, 0.05, 0.15, 1])
    assert found["critical"] == {"t": 4, "low": 4, "high": 4, "reached": 1.0}
    assert errors(points, 20, 0.05, 0)["critical"]["t"] == 2, "at least the margin, not above it"
    assert errors(points, 20, 0.5, 0)["critical"]["t"] == 8
    assert found["ended"] == {"right": [0, 0, 0, 1], "wrong": [0, 0, 0, 0]}
    assert found["traces"] == {"right": 20, "wrong": 20}, "of questions that have both"
    with pytest.raises(ValueError, match="both right and wrong"):
        errors([p for p in points if p.right], 20, 0.1, 0)


def test_lines_are_what_was_found():
    points = [Point("a", trace, t, trace > 0, t > 2, trace / 4 + t / 16) for trace in range(3) for t in (1, 2, 4)]
    [one] = sides(points)
    back = Sides.read(json.loads(json.dumps(one.told())))
    assert (back.question, back.traces) == ("a", (2, 1))
    for name in ("right", "wrong", "ended"):
        np.testing.assert_array_equal(getattr(back, name), getattr(one, name))
    [other] = solved({(i, j): [Point("b", 0, 1, None, False, 0.5 + 0.125 * (i < j))] for i in MODELS for j in MODELS})
    again = Solved.read(json.loads(json.dumps(other.told())))
    assert again.by == {cell: pytest.approx(values) for cell, values in other.by.items()}


def test_traces_under_several_seeds_are_of_one_model():
    """A question counts once, with the mean of what the seeds that have it found; ended traces are shares of all traces."""
    rng = np.random.default_rng(1)

    def points(questions):
        return [Point(q, trace, t, trace < 2, t == 4 and trace == 0, float(rng.random()))
                for q in questions for trace in range(4) for t in (2, 4)]

    seeds = [points("abcd"), points("bcde")]
    found = branching.errors(together([sides(one) for one in seeds]), [2, 4], 8, 0.1, 0)
    values = {}
    for one in seeds:
        for p in one:
            values.setdefault((p.question, p.t, p.right), {}).setdefault(id(one), []).append(p.outcome)
    for i, t in enumerate((2, 4)):
        for side, name in ((True, "right"), (False, "wrong")):
            by_question = [np.mean([np.mean(v) for v in values[q, t, side].values()]) for q in "abcde"]
            assert found[name]["mean"][i] == pytest.approx(np.mean(by_question))
    assert (found["questions"], found["traces"], found["ended"]["right"]) == (5, {"right": 16, "wrong": 16}, [0, 0.5])


def test_critical_agrees_with_a_bootstrap_written_out():
    rng = np.random.default_rng(3)
    lengths = [1, 2, 4, 8, 16]
    differences = rng.normal([0.02, 0.06, 0.1, 0.14, 0.2], 0.25, (60, 5))
    value, low, high, reached = critical(differences, lengths, 0.1, 1)
    mean = differences.mean(axis=0)
    assert value == next(t for t, d in zip(lengths, mean, strict=True) if d >= 0.1)
    other = random.Random(9)
    firsts = []
    for _ in range(4000):
        drawn = differences[[other.randrange(60) for _ in range(60)]].mean(axis=0)
        firsts.append(next((t for t, d in zip(lengths, drawn, strict=True) if d >= 0.1), 99))
    firsts.sort()
    assert low == firsts[100]
    assert high == (firsts[3900] if firsts[3900] < 99 else None)
    assert reached == pytest.approx(np.mean([f < 99 for f in firsts]), abs=0.02)
    assert critical(np.zeros((5, 2)), [1, 2], 0.1, 0) == (None, None, None, 0.0)


def test_coverage_is_kitagawas_split_where_every_prefix_is_counted():
    """Points that hold each prefix as often as its probability says give the two sums as they are defined."""
    rng = np.random.default_rng(0)
    cells: dict = {cell: [] for cell in itertools.product(MODELS, MODELS)}
    wanted = {"change": [], "coverage": [], "accuracy": []}
    for number in range(12):
        counts = {model: rng.multinomial(10, [0.25] * 4) for model in MODELS}
        right = {model: rng.random(4) for model in MODELS}
        for i, j in cells:
            drawn = np.repeat(np.arange(4), counts[i])
            cells[i, j] += [Point(f"q{number}", k, 8, None, False, float(right[j][x])) for k, x in enumerate(drawn)]
        p, q, a, b = counts["base"] / 10, counts["trained"] / 10, right["base"], right["trained"]
        wanted["change"].append((q * b).sum() - (p * a).sum())
        wanted["coverage"].append(((q - p) * (a + b) / 2).sum())
        wanted["accuracy"].append(((b - a) * (p + q) / 2).sum())
    found = coverage(cells, 4, 0)
    for name, values in wanted.items():
        assert found[name][0]["difference"] == pytest.approx(np.mean(values), abs=1e-12)
        assert found[name][0]["low"] < np.mean(values) < found[name][0]["high"]
    assert found["coverage"][0]["difference"] + found["accuracy"][0]["difference"] == pytest.approx(
        found["change"][0]["difference"], abs=1e-12)
    assert found["questions"] == 12


def test_coverage_tells_a_model_that_only_chooses_from_one_that_only_goes_on_better():
    """Openings 0 and 1 end right in 20% and 80%. One training doubles the share of 1; another lifts 0 to 80%."""
    def cells(shares: dict, right: dict) -> dict:
        return {(i, j): [Point(f"q{n}", k, 4, None, False, right[j][int(k < shares[i])]) for n in range(30) for k in range(10)]
                for i in MODELS for j in MODELS}

    same = (0.2, 0.8)
    chose = coverage(cells({"base": 4, "trained": 8}, {"base": same, "trained": same}), 4, 0)
    assert chose["coverage"][0]["difference"] == pytest.approx(0.24)
    assert chose["accuracy"][0]["difference"] == pytest.approx(0)
    better = coverage(cells({"base": 4, "trained": 4}, {"base": same, "trained": (0.8, 0.8)}), 4, 0)
    assert better["coverage"][0]["difference"] == pytest.approx(0)
    assert better["accuracy"][0]["difference"] == pytest.approx(0.36)
    broken = cells({"base": 4, "trained": 4}, {"base": same, "trained": same})
    with pytest.raises(ValueError, match="different questions"):
        coverage({**broken, ("base", "trained"): broken["base", "trained"][:20]}, 4, 0)


def test_a_part_of_which_no_question_moved_gets_no_bar():
    """One model proposes and both continue alike: no spread, and no interval made of what one question in seven might do."""
    rng = np.random.default_rng(2)
    rows = [branching.Solved(f"q{n}", {cell: np.full(2, value) for cell in branching.CELLS})
            for n, value in enumerate(rng.integers(0, 17, 20) / 16)]
    moves = [replace(one, by=dict(one.by)) for one in rows]
    for one in moves[:5]:  # what training made of it goes on better, from whosever prefixes of 4 tokens
        one.by["base", "trained"] = one.by["trained", "trained"] = one.by["base", "base"] + np.array([1 / 16, 0])
    found = branching.coverage([moves], [4, 8], 16, 0)
    assert [[found[part][i]["moved"] for part in ("change", "coverage", "accuracy")] for i in (0, 1)] == [[5, 0, 5], [0, 0, 0]]
    assert branching.coverage([rows, moves], [4, 8], 16, 0)["accuracy"][0]["moved"] == 5, "under one seed of two"
    [section] = analyses.sections({"coverage": found}, "UPFT")
    assert "0.0 (no question moved) are coverage and +1.6 [" in section.text[1]
    assert section.text[2] == "Split at 8 tokens: no question moved."
    cells = section.tables[0].rows[0].cells
    assert (cells[-2].text, cells[-2].interval, cells[-2].below) == ("0.0", "", "no question moved")
    assert cells[-2].data["low"] is None
    assert cells[-1].interval
    lines = [line.get_xdata() for line in panels.coverage([("", found)]).axes[0].lines]
    bars = [ends for ends in lines if len(ends) == 2 and ends[0] != ends[1]]
    assert len(bars) == 2, "the change at 4 tokens, and its accuracy"


def test_coverage_over_seeds_is_crossed_and_seeds_that_disagree_widen_it():
    rng = np.random.default_rng(2)

    def seeds(apart):
        out = []
        for seed in range(3):
            values = {(i, j): rng.random(25) * 0.5 + (j == "trained") * (0.1 + apart * seed) for i in MODELS for j in MODELS}
            out.append([Solved(f"q{n}", {cell: v[n:n + 1] for cell, v in values.items()}) for n in range(25)])
        return out

    drawn = seeds(0.0)
    found = branching.coverage(drawn, [8], 4, 0)
    value = {cell: np.array([[one.by[cell][0] for one in some] for some in drawn]) for cell in drawn[0][0].by}
    bb, bt, tb, tt = (value[i, j] for i in MODELS for j in MODELS)
    wanted = statistics.paired_over_seeds((bb + tb) / 2, (bt + tt) / 2)
    assert found["accuracy"] == [pytest.approx(vars(wanted) | {"moved": 25})]
    assert found["accuracy"][0]["test"] == "t, crossed random effects"
    assert found["coverage"][0]["difference"] + found["accuracy"][0]["difference"] == pytest.approx(
        found["change"][0]["difference"])
    assert found["accuracy_of"]["base by trained"]["mean"] == [pytest.approx(bt.mean())]
    wide = branching.coverage(seeds(0.2), [8], 4, 0)["accuracy"][0]
    assert wide["high"] - wide["low"] > 3 * (wanted.high - wanted.low)
    with pytest.raises(ValueError, match="different questions"):
        branching.coverage([drawn[0], drawn[1][1:]], [8], 4, 0)


def test_coverage_intervals_cover_the_truth_of_simulated_trainings():
    """400 studies of 40 questions, 3 prefixes, 4 continuations: the truth lies in the intervals about 95 times in 100."""
    rng, inside, studies = np.random.default_rng(5), {"coverage": 0, "accuracy": 0}, 400
    share = {"base": 0.4, "trained": 0.6}
    for _ in range(studies):
        hard = rng.beta(2, 2, 40)
        right = {"base": np.stack([0.5 * hard, hard]), "trained": np.stack([0.7 * hard, hard])}
        opened = {i: rng.random((40, 3)) < share[i] for i in MODELS}
        cells = {(i, j): [Point(str(n), k, 4, None, False, rng.binomial(4, right[j][int(opened[i][n, k]), n]) / 4)
                          for n in range(40) for k in range(3)] for i in MODELS for j in MODELS}
        found = coverage(cells, 4, 0)
        mean = 0.5  # of the population's beta; p, q = 0.4, 0.6
        truth = {"coverage": 0.2 * ((1 + 1) / 2 - (0.5 + 0.7) / 2) * mean, "accuracy": 0.2 * (0.6 + 0.4) / 2 * mean}
        for name, value in truth.items():
            inside[name] += found[name][0]["low"] <= value <= found[name][0]["high"]
    for name, count in inside.items():
        assert 0.915 <= count / studies <= 0.98, name
