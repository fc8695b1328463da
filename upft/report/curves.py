"""Settings -> figures over many cells: accuracy against prefix length, ratio and cost, and the loss curves.

Draws with the hand of `figures` and `series`; computes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from upft.report import pareto, series
from upft.report import wording as w
from upft.report.figures import MUTED, Drawn, canvas, drawn, styled
from upft.report.settings import Setting
from upft.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 6
"""Curves that a figure names one by one; of more only the methods."""


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
            colours, base = series.colours([s.method for s in group]), series.base(group, settings)
            for axis, label, value, fixed in (
                    ("length", "prefix length t, tokens", _length, lambda s: (s.method, s.ratio, s.knobs)),
                    ("ratio", "share p of whole traces", _ratio, lambda s: (s.method, s.prefix_len, s.knobs))):
                lines = _lines(group, value, fixed)
                if lines:
                    name, figure = f"{axis}-{number}", _against(lines, value, label, axis, base, colours, what)
                    alt = f"Accuracy ({what}) of {where} against {label}: " + " ".join(_told(lines, value))
                    figures[name] = drawn(name, alt, figure)
            panels = pareto.panels(group)
            if panels:
                alt = f"Accuracy ({what}) of {where} against cost: " + " ".join(pareto.told(s, panels) for s in group)
                figures[f"pareto-{number}"] = drawn(f"pareto-{number}", alt, pareto.draw(group, panels, base, colours, what))
            losses = [(s, curve) for s in group if len(curve := _loss_curve(s)) > 1]
            if losses:
                alt = f"Training loss of {where}: " + " ".join(
                    f"{s.name}: {curve[0][1]:.3f} to {curve[-1][1]:.3f}." for s, curve in losses)
                figures[f"loss-{number}"] = drawn(f"loss-{number}", alt, _losses(losses, colours))
    return figures


CAPTIONS = {
    "length": "Accuracy against prefix length, and its paired difference from the base model (grey), with 95% intervals (over "
              "questions, and seeds where there are several).",
    "ratio": "Accuracy against the share of whole traces, and its paired difference from the base model (grey), with 95% "
             "intervals.",
    "pareto": pareto.CAPTION,
    "loss": "Training loss by optimiser step, the mean over seeds where there are several."}


def caption(name: str) -> str:
    """What a figure shows, for under it."""
    return CAPTIONS[name.rpartition("-")[0]]


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


def _against(lines: Sequence[Sequence[Setting]], value: Callable[[Setting], float], label: str, axis: str,
             base: Estimate | None, colours: Mapping[str, tuple[str, str]], what: str) -> Figure:
    figure, (upper, lower) = canvas(4.6, nrows=2, sharex=True)
    series.band(upper, base)
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
                      label=", ".join([method, other, *line[0].knobs]) if axes is upper else None)
    if axis == "length":
        ticks = sorted({value(s) for line in lines for s in line})
        lower.set_xscale("log", base=2)
        lower.set_xticks(ticks, [f"{t:g}" for t in ticks])
        lower.minorticks_off()
    series.finish(figure, upper, "", what)
    series.finish(None, lower, label, "")
    lower.set_ylabel("difference from base, points")
    return figure


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
    series.finish(figure, axes, "optimiser step", "")
    axes.set_ylabel("loss, nats a token")
    return figure
