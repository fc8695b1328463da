"""Settings -> accuracy against what it took, a panel a cost, and which settings no cheaper one beats.

Draws with the hand of `figures` and `series`; computes no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upft.report import labels, series
from upft.report import wording as w
from upft.report.costs import estimated
from upft.report.figures import INK, PAPER, canvas
from upft.report.labels import Point
from upft.report.settings import Setting
from upft.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Accuracy against what it took, on logarithmic axes: up and left is better. A line joins the settings that no cheaper one "
    "beats. Grey: the base model. Beside a point: what sets it apart from the method's others, the front's first where there "
    "is no room for all; points that lie on each other share their words. FLOPs by formula, of sampling and training; tokens: "
    "responses only, those trained once, as the paper counts. GPU-hours as in the table; settings without are left out there.")
"""Under the figure."""


@dataclass(frozen=True)
class Axis:
    """A cost that accuracy is drawn against. label: of the axis; tick: a round number on it; told: an amount in a sentence."""

    label: str
    tick: Callable[[float], str]
    told: Callable[[float], str]


def _flops(n: float) -> str:
    """A round number of FLOPs, without the word: 2 T, 500 G."""
    for power, prefix in w.PREFIXES:
        if n >= 0.9995 * 10.0**power:
            return f"{n / 10.0**power:.3g} {prefix}"
    return f"{n:.3g}"


def _time(seconds: float) -> str:
    return (f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h")


AXES = {
    "flops": Axis("FLOPs", _flops, w.flops),
    "sampled": Axis("tokens sampled", w.short, lambda n: f"{w.short(n)} tokens sampled"),
    "trained": Axis("tokens trained", w.short, lambda n: f"{w.short(n)} tokens trained"),
    "gpu_hours": Axis("GPU-hours", lambda hours: f"{hours:.3g}", lambda hours: f"{w.digits(hours)} GPU-hours"),
    "training_seconds": Axis("time to build and train", _time, lambda s: f"{w.seconds(s)} to build and train"),
}
"""Costs that there may be a panel for, by their name among `costs.COSTS`."""


def panels(group: Sequence[Setting]) -> list[str]:
    """The costs that tell settings apart, time where there are no GPU-hours; FLOPs where none does."""
    spent = {axis: [float(value) for s in group if (value := s.cost[axis])] for axis in AXES}
    apart = [axis for axis, values in spent.items() if values and max(values) > 1.02 * min(values)]
    if "gpu_hours" in apart or apart == ["training_seconds"]:  # seconds differ between equal trainings, too
        apart = [axis for axis in apart if axis != "training_seconds"]
    return apart or (["flops"] if spent["flops"] else [])


def told(s: Setting, panels: Sequence[str]) -> str:
    """A setting's accuracy and costs in words."""
    spent = ", ".join(w.about(AXES[axis].told(value), axis in estimated(s)) for axis in panels if (value := s.cost[axis]))
    return f"{s.name}: {w.percent(s.overall.accuracy.value)}" + (f" at {spent}." if spent else ".")


def draw(group: Sequence[Setting], panels: Sequence[str], base: Estimate | None, colours: Mapping[str, tuple[str, str]],
         what: str) -> Figure:
    """A panel a cost; the front of those that no cheaper setting beats in each."""
    rows = (len(panels) + 1) // 2
    figure, grid = canvas(0.5 + (2.1 if len(group) <= MANY else 2.7) * rows, nrows=rows, ncols=min(2, len(panels)), sharey=True,
                          squeeze=False)
    shown: list[tuple[Axes, list[Setting], list[float], list[int]]] = []
    for place, (axis, axes) in enumerate(zip([*panels, None], grid.flat, strict=False)):
        if axis is None:
            axes.axis("off")
            continue
        axis_ = AXES[axis]
        known = sorted((s for s in group if s.cost[axis]), key=lambda s: (s.cost[axis] or 0.0, s.name))
        costs = [s.cost[axis] or 0.0 for s in known]
        shown.append((axes, known, costs, _front(axes, known, costs, base, colours)))
        ticks = _apart(_ticks(costs[0], costs[-1]), costs[0], costs[-1])
        axes.set_xscale("log")
        axes.set_xticks(ticks, [axis_.tick(tick) for tick in ticks])
        axes.minorticks_off()
        axes.margins(x=0.12)
        series.finish(figure if place == 0 else None, axes, axis_.label, what if place % 2 == 0 else "")
    figure.draw_without_rendering()  # only then it is known where a point lies
    for axes, known, costs, front in shown:
        _name(axes, list(zip(known, costs, strict=True)), front, parts(group))
    return figure


MANY = 8
"""More settings than these get higher panels."""


def _front(axes: Axes, known: Sequence[Setting], costs: Sequence[float], base: Estimate | None,
           colours: Mapping[str, tuple[str, str]]) -> list[int]:
    """Draw the points and the line along the front; returns the places of those on it."""
    series.band(axes, base)
    least = min(s.overall.base.value for s in known) if base is None else base.value
    front = pareto([(cost, s.overall.accuracy.value) for s, cost in zip(known, costs, strict=True)], least)
    axes.plot([costs[i] for i in front], [100 * known[i].overall.accuracy.value for i in front], color=INK, linewidth=1,
              linestyle=(0, (1, 2)), zorder=1.5)
    named: set[str] = set()
    for s, cost in zip(known, costs, strict=True):
        colour, marker = colours[s.method]
        a = s.overall.accuracy
        axes.errorbar([cost], [100 * a.value], [[100 * (a.value - a.low)], [100 * (a.high - a.value)]],
                      color=colour, marker=marker, markersize=6, linestyle="", elinewidth=0.9, markeredgecolor=PAPER,
                      markeredgewidth=0.6, alpha=0.95, label=None if s.method in named else s.method)
        named.add(s.method)
    return front


def _name(axes: Axes, known: Sequence[tuple[Setting, float]], front: Sequence[int], apart: Mapping[int, Parts]) -> None:
    """Write beside the points what sets them apart, those on the front first."""
    points = [Point(cost, 100 * a.value, 100 * a.low, 100 * a.high, "") for s, cost in known for a in (s.overall.accuracy,)]
    groups = labels.together(axes, points)
    groups.sort(key=lambda places: (not set(places) & set(front), -len(places), places[0]))
    labels.put(axes, [Point(points[places[0]].x, points[places[0]].y, min(points[i].low for i in places),
                            max(points[i].high for i in places),
                            words([(known[i][0].method, apart[id(known[i][0])]) for i in places])) for places in groups])


Parts = tuple[tuple[str, str], ...]
"""(name, value) of what sets a setting apart from the method's others, such as (("t", "8"), ("p", "0.1"))."""


def parts(group: Sequence[Setting]) -> dict[int, Parts]:
    """id of a setting -> what sets it apart from its method's others."""
    found: dict[int, Parts] = {}
    for method in {s.method for s in group}:
        mine = [s for s in group if s.method == method]
        every = {id(s): {"t": "" if s.prefix_len is None else str(s.prefix_len),
                         "p": "" if s.prefix_len is None else f"{s.ratio:g}",
                         **{name.rpartition(".")[2]: value for name, _, value in (knob.partition("=") for knob in s.knobs)}}
                 for s in mine}
        names = list(dict.fromkeys(name for one in every.values() for name in one))
        differ = [name for name in names if len({one.get(name, "") for one in every.values()}) > 1]
        found |= {key: tuple((name, one[name]) for name in differ if one.get(name)) for key, one in every.items()}
    return found


def words(places: Sequence[tuple[str, Parts]]) -> str:
    """Of (method, parts) of the settings at one place: `t = 8, p = 0.1`, `t = 4, 8, 16`, and with the methods, a line each,
    where there are several; nothing where the legend says it all."""
    lines = []
    methods = list(dict.fromkeys(method for method, _ in places))
    for method in methods:
        mine = [parts for other, parts in places if other == method]
        values: dict[str, list[str]] = {}
        for name, value in (pair for one in mine for pair in one):
            if value not in values.setdefault(name, []):
                values[name].append(value)
        if sum(len(found) > 1 for found in values.values()) <= 1:
            told = ", ".join(f"{name} = {', '.join(_ordered(found))}" for name, found in values.items())
        else:
            told = "\n".join(", ".join(f"{name} = {value}" for name, value in one) for one in mine)
        lines.append(told if len(methods) == 1 else f"{method}: {told}" if told else method)
    return "\n".join(lines)


def _ordered(values: Sequence[str]) -> list[str]:
    """By number where they are numbers."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return list(values)


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
