"""Where errors begin and what training moved, against worlds whose truth is known in closed form or counted by hand."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from upft.analyses.branching import Point, coverage, critical, errors, means

MODELS = ("base", "trained")


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
    assert found["ended"]["right"] == [0, 0, 0, pytest.approx(20 / 21)]
    assert found["traces"] == {"right": 21, "wrong": 20}
    with pytest.raises(ValueError, match="both right and wrong"):
        errors([p for p in points if p.right], 20, 0.1, 0)


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
