"""Settings -> figures over many cells: accuracy against prefix length, ratio and cost, and the loss curves.

Draws with the hand of `figures`; computes nothing.
"""

from __future__ import annotations

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
    return {"length": "Accuracy against prefix length, 95% intervals (over questions, and seeds where there are several); "
                      "grey: the base model.",
            "ratio": "Accuracy against the share of whole traces, 95% intervals; grey: the base model.",
            "pareto": "Accuracy against what sampling and training took, on a logarithmic axis. Up and left is better; a line "
                      "joins the settings that no cheaper one beats. Grey: the base model.",
            "loss": "Training loss by optimiser step, the mean over seeds where there are several."}[name.rpartition("-")[0]]


def _colours(group: Sequence[Setting]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker), in the order of the table."""
    methods = list(dict.fromkeys(s.method for s in group))
    return {method: (SERIES[n % len(SERIES)], MARKERS[n % len(MARKERS)]) for n, method in enumerate(methods)}


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
    figure, axes = canvas(2.9)
    _base(axes, one)
    several: dict[str, int] = {}
    for place, line in enumerate(lines):
        method = line[0].method
        colour, marker = colours[method]
        nth = several[method] = several.get(method, -1) + 1
        other = f"p = {line[0].ratio:g}" if axis == "length" else f"t = {line[0].prefix_len}"
        name = f"{method}, {other}"
        xs = [value(s) * (1 + 0.02 * place) if axis == "length" else value(s) + 0.006 * place for s in line]
        found = [s.overall.accuracy for s in line]
        axes.fill_between(xs, [100 * f.low for f in found], [100 * f.high for f in found], color=colour, alpha=0.12,
                          linewidth=0)
        axes.errorbar(xs, [100 * f.value for f in found], [[100 * (f.value - f.low) for f in found],
                      [100 * (f.high - f.value) for f in found]], color=colour, marker=marker, markersize=5, linewidth=1.6,
                      elinewidth=1, linestyle=("-", "--", ":")[nth % 3], label=name)
    if axis == "length":
        ticks = sorted({value(s) for line in lines for s in line})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
    _finish(figure, axes, label, what)
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
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = (float(known[place].cost["flops"] or 1.0) for place in (0, -1))
    if high / low < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: w.flops(x)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _finish(figure, axes, "operations of sampling and training", what)
    return figure


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


def _finish(figure: Figure, axes: Axes, label: str, what: str) -> None:
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel(label)
    if what:
        axes.set_ylabel(f"accuracy, %: {what}")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.6, columnspacing=1.2)
