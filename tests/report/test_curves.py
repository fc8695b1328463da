"""Accuracy against cost: which costs are drawn, and which settings no cheaper one beats."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

from stores import PAPER, Setting, store

from upft import dossier
from upft.report import pareto


def test_the_front_is_what_nothing_cheaper_reaches() -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [(float(rng.randrange(1, 9)), rng.randrange(10) / 10) for _ in range(rng.randrange(1, 9))]
        least = rng.randrange(10) / 10
        best = {p for p in points if p[1] > least and not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
        assert {points[i] for i in pareto.pareto(points, least)} == best
    assert pareto.pareto([(1.0, 0.2)], 0.2) == []


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


def test_lengths_ratios_and_losses_are_told_and_drawn(tmp_path: Path) -> None:
    """Each curve has a point a setting, and the words say what the points are."""
    dossier.write(store(tmp_path / "store", PAPER), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    mean = {(s["method"], s["prefix_len"], s["ratio"]): f"{100 * s['mean']['accuracy']['value']:.1f}%"
            for s in told["settings"]}
    figures = told["figures"]
    assert f"UPFT {mean['UPFT', 8, 0.1]} at 8, {mean['UPFT', 32, 0.1]} at 32." in figures["length-0"]
    assert f"UPFT {mean['UPFT', 8, 0.1]} at 0.1, {mean['UPFT', 8, 0.5]} at 0.5." in figures["ratio-0"]
    for seedless in ("SFT: 1.205 to 0.443.", "UPFT, t = 8, p = 0.5: 1.205 to 0.443."):  # the mean of two seeds' curves
        assert seedless in figures["loss-0"]
    for name in ("length-0", "ratio-0", "pareto-0", "loss-0"):
        assert (tmp_path / "out" / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_says_where_it_is_from(tmp_path: Path) -> None:
    """Keys, commit, host, time, versions, the command, and everything each result depends on."""
    page = dossier.write(store(tmp_path / "store", PAPER[:2]), tmp_path / "out").read_text()
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert told["commands"] == ["python run.py -m model=qwen_math seed=0,1"]
    for cell in told["cells"]:
        for word in (cell["key"], cell["provenance"]["host"], cell["provenance"]["git"][:10], "2026-03-01 10:04:05"):
            assert word in page
        assert {"samples", "train", "base:gsm8k", "trained:gpqa"} <= set(cell["stages"])
    assert "<pre>python run.py -m model=qwen_math seed=0,1</pre>" in page
    assert "<dt>torch</dt><dd>2.13.0</dd>" in page
    assert "everything its result depends on" in page
    assert "&#34;lr&#34;: 2e-06" in page
