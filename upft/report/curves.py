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
from upft.report.panels import BROAD
from upft.report.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
NAMED = 6
"""Curves that a figure names one by one; of more only the methods."""
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
            colours_ = colours([s.method for s in group])
            for axis, label, value, fixed in (
                    ("length", "prefix length t, tokens", _length, lambda s: (s.method, s.ratio, s.knobs)),
                    ("ratio", "share p of whole traces", _ratio, lambda s: (s.method, s.prefix_len, s.knobs))):
                lines = _lines(group, value, fixed)
                if lines:
                    name, figure = f"{axis}-{number}", _against(lines, value, label, axis, group[0], colours_, what)
                    alt = f"Accuracy ({what}) of {where} against {label}: " + " ".join(_told(lines, value))
                    figures[name] = drawn(name, alt, figure)
            panels = _panels(group)
            if panels:
                alt = f"Accuracy ({what}) of {where} against cost: " + " ".join(
                    f"{s.name}: {w.percent(s.overall.accuracy.value)} at "
                    + ", ".join(f"{AXES[axis][1](s.cost[axis] or 0.0)} {AXES[axis][0]}" for axis in panels if s.cost[axis])
                    + "." for s in group)
                figures[f"pareto-{number}"] = drawn(f"pareto-{number}", alt, _pareto(group, panels, colours_, what))
            losses = [(s, curve) for s in group if len(curve := _loss_curve(s)) > 1]
            if losses:
                alt = f"Training loss of {where}: " + " ".join(
                    f"{s.name}: {curve[0][1]:.3f} to {curve[-1][1]:.3f}." for s, curve in losses)
                figures[f"loss-{number}"] = drawn(f"loss-{number}", alt, _losses(losses, colours_))
    return figures


CAPTIONS = {
    "length": "Accuracy against prefix length, and its paired difference from the base model (grey), with 95% intervals (over "
              "questions, and seeds where there are several).",
    "ratio": "Accuracy against the share of whole traces, and its paired difference from the base model (grey), with 95% "
             "intervals.",
    "pareto": "Accuracy against what it took, on logarithmic axes: up and left is better. A line joins the settings that no "
              "cheaper one beats. Grey: the base model. Operations by formula, of sampling and training; tokens: responses "
              "only, those trained once, as the paper counts.",
    "loss": "Training loss by optimiser step, the mean over seeds where there are several."}


def caption(name: str) -> str:
    """What a figure shows, for under it."""
    return CAPTIONS[name.rpartition("-")[0]]


def colours(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker): a known method has its own on every page."""
    others = [method for method in dict.fromkeys(methods) if method not in PLACES]
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


def _hours(hours: float) -> str:
    return f"{hours:.3g} h"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else _hours(seconds / 3600)


AXES: dict[str, tuple[str, Callable[[float], str]]] = {
    "flops": ("operations", w.flops), "sampled": ("tokens sampled", w.short), "trained": ("tokens trained", w.short),
    "gpu_hours": ("GPU-hours", _hours), "training_seconds": ("time to build and train", _time)}
"""Costs that accuracy is drawn against: what they are called, how they read."""


def _panels(group: Sequence[Setting]) -> list[str]:
    """The costs that tell settings apart, time where there are no GPU-hours; operations where none does."""
    spent = {axis: [float(value) for s in group if (value := s.cost[axis])] for axis in AXES}
    apart = [axis for axis, values in spent.items() if values and max(values) > 1.02 * min(values)]
    if "gpu_hours" in apart or apart == ["training_seconds"]:  # seconds differ between equal trainings, too
        apart = [axis for axis in apart if axis != "training_seconds"]
    return apart or (["flops"] if spent["flops"] else [])


def _pareto(group: Sequence[Setting], panels: Sequence[str], colours: Mapping[str, tuple[str, str]], what: str) -> Figure:
    """A panel a cost; the front of those that no cheaper setting beats in each."""
    rows = (len(panels) + 1) // 2
    figure, grid = canvas(0.5 + 2.1 * rows, nrows=rows, ncols=min(2, len(panels)), sharey=True, squeeze=False)
    for place, (axis, axes) in enumerate(zip([*panels, None], grid.flat, strict=False)):
        if axis is None:
            axes.axis("off")
            continue
        _front(axes, axis, group, colours)
        name, read = AXES[axis]
        known = sorted(float(s.cost[axis] or 0.0) for s in group if s.cost[axis])
        ticks = _apart(_ticks(known[0], known[-1]), known[0], known[-1])
        axes.set_xscale("log")
        axes.set_xticks(ticks, [read(tick).removesuffix("FLOP").rstrip() for tick in ticks])
        axes.minorticks_off()
        _finish(figure if place == 0 else None, axes, name, what if place % 2 == 0 else "")
    return figure


def _front(axes: Axes, axis: str, group: Sequence[Setting], colours: Mapping[str, tuple[str, str]]) -> None:
    _base(axes, group[0])
    known = sorted((s for s in group if s.cost[axis]), key=lambda s: (s.cost[axis] or 0.0, s.name))
    front = pareto([(s.cost[axis] or 0.0, s.overall.accuracy.value) for s in known], group[0].overall.base.value)
    axes.plot([cost for i in front if (cost := known[i].cost[axis])],
              [100 * known[i].overall.accuracy.value for i in front], color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1.5)
    named: set[str] = set()
    for s in known:
        colour, marker = colours[s.method]
        a = s.overall.accuracy
        axes.errorbar([s.cost[axis] or 0.0], [100 * a.value], [[100 * (a.value - a.low)], [100 * (a.high - a.value)]],
                      color=colour, marker=marker, markersize=6, linestyle="", elinewidth=0.9, markeredgecolor=PAPER,
                      markeredgewidth=0.6, alpha=0.95, label=None if s.method in named else s.method)
        named.add(s.method)


def pareto(points: Sequence[tuple[float, float]], least: float) -> list[int]:
    """Places of the (cost, accuracy) that are above `least` and that no other one reaches at the same cost or less."""
    front, best = [], least
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[place][1] > best:
            best = points[place][1]
            front.append(place)
    return front


def _ticks(low: float, high: float) -> list[float]:
    """At most five round numbers in a range of a logarithmic axis, or its ends where it holds none."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in powers for step in steps if low * 0.98 <= step * 10.0**power <= high * 1.02]
        if len(found) <= 4:
            return found or [low]
    return found[::math.ceil(len(found) / 4)]


def _apart(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """Of those, as many as have room beside each other in half a figure; the ends of the range where one alone is left."""
    if high <= low * 1.05:
        return [low]
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) >= 0.4 * math.log(high / low):
            kept.append(tick)
    return kept if len(kept) > 1 else [low, high]


def _loss_curve(s: Setting) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for case in s.cases:
        for step, loss in case.losses:
            by_step.setdefault(int(step), []).append(float(loss))
    return [(step, statistics.fmean(found)) for step, found in sorted(by_step.items()) if len(found) == len(s.cases)]


def _losses(losses: Sequence[tuple[Setting, Sequence[tuple[int, float]]]], colours: Mapping[str, tuple[str, str]]) -> Figure:
    figure, axes = canvas(2.9)
    drawn_of: dict[str, int] = {}
    for s, curve in losses:
        colour, marker = colours[s.method]
        few = len(curve) <= 12
        nth = drawn_of[s.method] = drawn_of.get(s.method, -1) + 1
        name = s.name if len(losses) <= NAMED else s.method if nth == 0 else None
        axes.plot([step for step, _ in curve], [loss for _, loss in curve], color=colour, linewidth=1.2, alpha=0.85,
                  marker=marker if few else "", markersize=4, label=name,
                  linestyle=("-", "--", ":", "-.")[nth % 4] if len(losses) <= NAMED else "-")
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
        broad = any(len(name) > BROAD for name in axes.get_legend_handles_labels()[1])
        figure.legend(loc="outside upper left", ncols=1 if broad else 2, frameon=False, handlelength=1.6, columnspacing=1.2)
