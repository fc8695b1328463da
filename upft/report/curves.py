"""Settings -> figures over many cells: accuracy against prefix length, ratio and cost, and the loss curves.

Draws with the hand of `figures`; computes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from upft.report import wording as w
from upft.report.figures import INK, MUTED, PAPER, SERIES, Drawn, canvas, drawn, styled
from upft.report.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
PLACES = {"RFT": 0, "UPFT": 1, "UPFT + label filter": 2, "V-STaR": 3, "SFT": 4}
"""Place of a method's colour and marker."""


def draw(settings: Sequence[Setting]) -> dict[str, Drawn]:
    """Every figure that there is something to draw for, for each model and data: length-N, ratio-N, pareto-N, loss-N."""
    figures: dict[str, Drawn] = {}
    groups: dict[tuple[str, str, tuple[str, ...]], list[Setting]] = {}
    for s in settings:
        groups.setdefault((s.model, s.data, tuple(s.tasks)), []).append(s)
    with styled():
        for number, ((model, data, tasks), group) in enumerate(groups.items()):
            where = f"{model} on {data}"
            what = tasks[0] if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
            colours = _colours(group)
            for axis, label, value, fixed in (
                    ("length", "prefix length t, tokens", _length, lambda s: (s.method, s.ratio, s.knobs)),
                    ("ratio", "share p of whole traces", _ratio, lambda s: (s.method, s.prefix_len, s.knobs))):
                lines = _lines(group, value, fixed)
                if lines:
                    name, figure = f"{axis}-{number}", _against(lines, value, label, axis, group[0], colours, what)
                    alt = f"Accuracy ({what}) of {where} against {label}: " + " ".join(_told(lines, value))
                    figures[name] = drawn(name, alt, figure)
            if any(s.cost["flops"] for s in group):
                alt = f"Accuracy ({what}) of {where} against operations: " + " ".join(
                    f"{s.name}: {w.flops(s.cost['flops'])}, {w.percent(s.overall.accuracy.value)}."
                    for s in group if s.cost["flops"])
                figures[f"pareto-{number}"] = drawn(f"pareto-{number}", alt, _pareto(group, colours, what))
            losses = [(s, curve) for s in group if len(curve := _loss_curve(s)) > 1]
            if losses:
                alt = f"Training loss of {where}: " + " ".join(
                    f"{s.name}: {curve[0][1]:.3f} to {curve[-1][1]:.3f}." for s, curve in losses)
                figures[f"loss-{number}"] = drawn(f"loss-{number}", alt, _losses(losses, colours))
    return figures


def caption(name: str) -> str:
    """What a figure shows, for under it."""
    return {"length": "Accuracy against prefix length, and its paired difference from the base model (grey), with 95% "
                      "intervals (over questions, and seeds where there are several).",
            "ratio": "Accuracy against the share of whole traces, and its paired difference from the base model (grey), with "
                     "95% intervals.",
            "pareto": "Accuracy against what sampling and training took, on a logarithmic axis. Up and left is better; a line "
                      "joins the settings that no cheaper one beats. Grey: the base model.",
            "loss": "Training loss by optimiser step, the mean over seeds where there are several."}[name.rpartition("-")[0]]


def _colours(group: Sequence[Setting]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker): a known method has its own on every page."""
    others = [method for method in dict.fromkeys(s.method for s in group) if method not in PLACES]
    places = {**PLACES, **{method: len(PLACES) + n for n, method in enumerate(others)}}
    return {method: (SERIES[n % len(SERIES)], MARKERS[n % len(MARKERS)]) for method, n in places.items()}


def _length(s: Setting) -> float:
    return float(s.prefix_len or 0)


def _ratio(s: Setting) -> float:
    return s.ratio


def _lines(group: Sequence[Setting], value: Callable[[Setting], float],
           fixed: Callable[[Setting], Any]) -> list[list[Setting]]:
    """Settings that differ in `value` only, two or more, by it."""
    lines: dict[Any, list[Setting]] = {}
    for s in group:
        if s.prefix_len is not None:
            lines.setdefault(fixed(s), []).append(s)
    return [sorted(line, key=value) for line in lines.values() if len({value(s) for s in line}) > 1]


def _told(lines: Sequence[Sequence[Setting]], value: Callable[[Setting], float]) -> list[str]:
    return [f"{line[0].method} " + ", ".join(f"{w.percent(s.overall.accuracy.value)} at {value(s):g}" for s in line) + "."
            for line in lines]


def _base(axes: Axes, s: Setting) -> None:
    base = s.overall.base
    axes.axhspan(100 * base.low, 100 * base.high, color=MUTED, alpha=0.12, linewidth=0)
    axes.axhline(100 * base.value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))


def _against(lines: Sequence[Sequence[Setting]], value: Callable[[Setting], float], label: str, axis: str, one: Setting,
             colours: Mapping[str, tuple[str, str]], what: str) -> Figure:
    figure, (upper, lower) = canvas(4.6, nrows=2, sharex=True)
    _base(upper, one)
    lower.axhline(0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    several: dict[str, int] = {}
    for line in lines:
        method = line[0].method
        colour, marker = colours[method]
        nth = several[method] = several.get(method, -1) + 1
        other = f"p = {line[0].ratio:g}" if axis == "length" else f"t = {line[0].prefix_len}"
        xs = [value(s) for s in line]
        found = [s.overall for s in line]
        for axes, values in ((upper, [(f.accuracy.value, f.accuracy.low, f.accuracy.high) for f in found]),
                             (lower, [(f.paired.difference, f.paired.low, f.paired.high) for f in found])):
            middle, low, high = ([100 * x for x in column] for column in zip(*values, strict=True))
            axes.fill_between(xs, low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(xs, middle, color=colour, marker=marker, markersize=5, linewidth=1.6, linestyle=("-", "--", ":")[nth % 3],
                      label=f"{method}, {other}" if axes is upper else None)
    if axis == "length":
        ticks = sorted({value(s) for line in lines for s in line})
        lower.set_xscale("log", base=2)
        lower.set_xticks(ticks, [f"{t:g}" for t in ticks])
        lower.minorticks_off()
    _finish(figure, upper, "", what)
    _finish(None, lower, label, "")
    lower.set_ylabel("difference from base, points")
    return figure


def _pareto(group: Sequence[Setting], colours: Mapping[str, tuple[str, str]], what: str) -> Figure:
    figure, axes = canvas(3.1)
    _base(axes, group[0])
    known = sorted((s for s in group if s.cost["flops"]), key=lambda s: (s.cost["flops"] or 0.0, s.name))
    front, best = [], group[0].overall.base.value
    for s in known:
        if s.overall.accuracy.value > best:
            best = s.overall.accuracy.value
            front.append(s)
    axes.plot([s.cost["flops"] for s in front], [100 * s.overall.accuracy.value for s in front], color=INK, linewidth=1,
              linestyle=(0, (1, 2)), zorder=1.5)
    named: set[str] = set()
    for s in known:
        colour, marker = colours[s.method]
        a = s.overall.accuracy
        axes.errorbar([s.cost["flops"]], [100 * a.value], [[100 * (a.value - a.low)], [100 * (a.high - a.value)]], color=colour,
                      marker=marker, markersize=6, linestyle="", elinewidth=0.9, markeredgecolor=PAPER, markeredgewidth=0.6,
                      alpha=0.95, label=None if s.method in named else s.method)
        named.add(s.method)
    axes.set_xscale("log")
    ticks = _ticks(float(known[0].cost["flops"] or 1.0), float(known[-1].cost["flops"] or 1.0))
    axes.set_xticks(ticks, [w.flops(tick) for tick in ticks])
    axes.minorticks_off()
    _finish(figure, axes, "operations of sampling and training", what)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """At most five round numbers in a range of a logarithmic axis, or its ends where it holds none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low * 0.98 <= step * 10.0**power <= high * 1.02]
        if len(found) <= 4:
            return found or [low]
    return found[::math.ceil(len(found) / 4)]


def _loss_curve(s: Setting) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for case in s.cases:
        for row in case.evidence.metrics:
            if "step" in row and "loss" in row:
                by_step.setdefault(int(row["step"]), []).append(float(row["loss"]))
    return [(step, statistics.fmean(found)) for step, found in sorted(by_step.items()) if len(found) == len(s.cases)]


def _losses(losses: Sequence[tuple[Setting, Sequence[tuple[int, float]]]], colours: Mapping[str, tuple[str, str]]) -> Figure:
    figure, axes = canvas(2.9)
    named: set[str] = set()
    for s, curve in losses:
        colour, marker = colours[s.method]
        few = len(curve) <= 12
        axes.plot([step for step, _ in curve], [loss for _, loss in curve], color=colour, linewidth=1.2, alpha=0.85,
                  marker=marker if few else "", markersize=4, label=None if s.method in named else s.method)
        named.add(s.method)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, axes, "optimiser step", "")
    axes.set_ylabel("loss, nats a token")
    return figure


def _finish(figure: Figure | None, axes: Axes, label: str, what: str) -> None:
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel(label)
    if what:
        axes.set_ylabel(f"accuracy, %: {what}")
    if figure is not None:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6, columnspacing=1.2)
