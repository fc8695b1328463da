"""Accuracy against cost: which costs are drawn, and which settings no cheaper one beats."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from stores import PAPER, Setting, store

from upft import dossier
from upft.report import curves


def test_the_front_is_what_nothing_cheaper_reaches() -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [(float(rng.randrange(1, 9)), rng.randrange(10) / 10) for _ in range(rng.randrange(1, 9))]
        least = rng.randrange(10) / 10
        best = {p for p in points if p[1] > least and not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
        assert {points[i] for i in curves.pareto(points, least)} == best
    assert curves.pareto([(1.0, 0.2)], 0.2) == []


def test_accuracy_stands_against_operations_tokens_and_gpu_hours(tmp_path: Path) -> None:
    dossier.write(store(tmp_path / "store", PAPER), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    alt, svg = told["figures"]["pareto-0"], (tmp_path / "out" / "figures" / "pareto-0.svg").read_text()
    for label in ("operations", "tokens sampled", "tokens trained", "GPU-hours"):
        assert label in svg, label
    assert "time to build" not in svg, "GPU-hours say it where there are any"
    for one in told["settings"]:
        if one["method"] == "RFT":
            assert f"RFT: {100 * one['mean']['accuracy']['value']:.1f}% at " in alt
            assert "57.6M tokens sampled, 3.6M tokens trained, " in alt
    assert [t for t in (8, 32) if f"UPFT, t = {t}, p = 0.1: " in alt] == [8, 32]


def test_without_a_gpu_time_stands_for_gpu_hours(tmp_path: Path) -> None:
    reports = store(tmp_path / "store", [replace(Setting(), prefix_len=t, tasks=("gsm8k",)) for t in (4, 8)])
    for path in (tmp_path / "store").glob("*/*/ledger.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "device_seconds": 0.0}))
    dossier.write(reports, tmp_path / "out")
    svg = (tmp_path / "out" / "figures" / "pareto-0.svg").read_text()
    assert "time to build and train" in svg
    assert "GPU-hours" not in svg
