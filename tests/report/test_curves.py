"""Accuracy against cost: which costs are drawn, and which settings no cheaper one beats."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from stores import PAPER, Setting, store

from upft import dossier
from upft.report import curves, labels, pareto, settings
from upft.report.figures import canvas, styled


def test_the_front_is_what_nothing_cheaper_reaches() -> None:
    rng = random.Random(0)
    for _ in range(200):
        points = [(float(rng.randrange(1, 9)), rng.randrange(10) / 10) for _ in range(rng.randrange(1, 9))]
        least = rng.randrange(10) / 10
        best = {p for p in points if p[1] > least and not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
        assert {points[i] for i in pareto.pareto(points, least)} == best
    assert pareto.pareto([(1.0, 0.2)], 0.2) == []


def test_accuracy_stands_against_flops_tokens_and_gpu_hours(tmp_path: Path) -> None:
    dossier.write(store(tmp_path / "store", PAPER), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    alt, svg = told["figures"]["pareto-0"], (tmp_path / "out" / "figures" / "pareto-0.svg").read_text()
    for label in ("FLOPs", "tokens sampled", "tokens trained", "GPU-hours"):
        assert label in svg, label
    assert "time to build" not in svg, "GPU-hours say it where there are any"
    for one in told["settings"]:
        if one["method"] == "RFT":
            assert f"RFT: {100 * one['mean']['accuracy']['value']:.1f}% at " in alt
            assert "at 950 PFLOP, 57.6M tokens sampled, 3.6M tokens trained, 0.700 GPU-hours." in alt
    assert [t for t in (8, 32) if f"UPFT, t = {t}, p = 0.1: " in alt] == [8, 32]


def figures(root: Path, every: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[settings.Setting], dict[str, Any]]:
    """The settings of these cells, and the figures on them before they are written, by name."""
    found = settings.settings([dossier.read(report) for report in store(root, every)])
    made: dict[str, Any] = {}
    monkeypatch.setattr(curves, "drawn", lambda name, alt, figure: made.setdefault(name, figure))
    curves.draw(found)
    return found, made


def bands(axes: Any) -> list[tuple[float, float]]:
    """(low, high) of what lies across the whole panel."""
    return [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in axes.patches]


def test_the_base_models_band_is_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all its answers under both seeds, not of those that one setting is compared with, over seeds."""
    found, made = figures(tmp_path, PAPER, monkeypatch)
    [base] = settings.bases(found)
    assert base.mean is not None
    table = 100 * base.mean.low, 100 * base.mean.high
    assert table[1] - table[0] < 0.9 * 100 * (found[0].overall.base.high - found[0].overall.base.low)
    for axes in (made["length-0"].axes[0], made["ratio-0"].axes[0], *made["pareto-0"].axes):
        assert bands(axes) == [pytest.approx(table)]


def test_several_base_models_have_no_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two settings whose base models were asked in other ways: one band would be that of neither."""
    every = [Setting(prefix_len=t, tasks=("gsm8k",)) for t in (4, 8)]
    reports = store(tmp_path, every)
    found = settings.settings([dossier.read(report) for report in reports])
    cases = [replace(one.cases[0], asked=str(place)) for place, one in enumerate(found)]
    made: dict[str, Any] = {}
    monkeypatch.setattr(curves, "drawn", lambda name, alt, figure: made.setdefault(name, figure))
    curves.draw([replace(one, cases=(case,)) for one, case in zip(found, cases, strict=True)])
    assert [bands(axes) for axes in (made["length-0"].axes[0], *made["pareto-0"].axes)] == [[]] * (
        1 + len(made["pareto-0"].axes))


NINE = [Setting("upft", "UPFT", t, p, gain=0.02 * t * (0.5 - p), tasks=("gsm8k",)) for t in (4, 8, 16) for p in (0.0, 0.1, 0.2)]


def test_points_of_one_method_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine settings of UPFT: every point on the front is named by t and p; no words on others, none outside the panel."""
    found, made = figures(tmp_path, [*NINE, Setting("rft", "RFT", None, 1.0, tasks=("gsm8k",))], monkeypatch)
    figure = made["pareto-0"]
    figure.draw_without_rendering()
    named = 0
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        named += len(boxes)
        assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
        edge = axes.get_window_extent()
        assert all(edge.x0 <= b.x0 and b.x1 <= edge.x1 and edge.y0 <= b.y0 and b.y1 <= edge.y1 for b in boxes)
        for text in axes.texts:
            assert "t = " in text.get_text(), "RFT's only point is the legend's"
            for other in axes.containers:
                x, y = axes.transData.transform(other.lines[0].get_xydata())[0]
                assert not text.get_window_extent().contains(x, y)
    assert named >= 4 * 3
    assert pareto.parts(found)[id(next(s for s in found if s.prefix_len == 8 and s.ratio == 0.1))] == (("t", "8"), ("p", "0.1"))


@pytest.mark.parametrize(("places", "told"), [
    ([("UPFT", (("t", "8"), ("p", "0.1")))], "t = 8, p = 0.1"),
    ([("UPFT", (("t", "16"),)), ("UPFT", (("t", "4"),))], "t = 4, 16"),
    ([("UPFT", (("t", "8"), ("p", "0.1"))), ("UPFT", (("t", "8"), ("p", "0")))], "t = 8, p = 0, 0.1"),
    ([("UPFT", (("t", "8"), ("p", "0.1"))), ("UPFT", (("t", "4"), ("p", "0")))], "t = 8, p = 0.1\nt = 4, p = 0"),
    ([("RFT", ()), ("V-STaR", ())], "RFT\nV-STaR"), ([("RFT", ()), ("UPFT", (("t", "8"),))], "RFT\nUPFT: t = 8"),
    ([("RFT", ())], ""),
])
def test_points_on_each_other_share_their_words(places: Any, told: str) -> None:
    assert pareto.words(places) == told


def test_words_go_where_there_is_room_the_first_ones_first() -> None:
    with styled():
        figure, axes = canvas(2.0)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        figure.draw_without_rendering()
        right = labels.Point(0.999, 0.5, 0.4, 0.6, "beside the edge")
        crowd = [labels.Point(0.5 + 0.02 * n, 0.5, 0.5, 0.5, f"number {n}") for n in range(9)]
        assert labels.together(axes, [crowd[0], right, labels.Point(0.501, 0.502, 0.4, 0.6, "")]) == [[0, 2], [1]]
        written = labels.put(axes, [right, *crowd])
        assert written[0] == "beside the edge"
        assert axes.texts[0].get_window_extent().x1 < axes.transData.transform((0.999, 0))[0]
        assert 2 <= len(written) < 10, "those without room are left out"


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
