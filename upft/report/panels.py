"""The analyses' figures, of one cell and of many. Draws; computes nothing. The style is `upft.report.figures`'."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from upft.report import wording as w
from upft.report.analyses import FEW, group_name, groups, sections, still

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, RED, BLUE, INK = "#6b7480", "#b34a00", "#0072b2", "#1f2328"
MUTED = "#59636f"
SHADES = (GREY, RED, BLUE, INK)
"""The report's colours (`upft.report.figures`): all questions, the hardest, the middle, the easiest (and any more)."""
BROAD = 28
"""Characters of a name that has no room beside another."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (1, 1)))


def draw(analyses: Mapping[str, Any], method: str) -> dict[str, tuple[str, Figure]]:
    """Name -> (what it shows in words, figure); within the report's style."""
    made: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        "consistency": consistency, "errors": errors, "coverage": lambda a: coverage([("", a)]),
        "kl": lambda a: divergence(a, method)}
    return {name: (" ".join(section.text), made[name](analyses[name]))
            for name, section in zip([n for n in made if n in analyses], sections(analyses, method), strict=True)}


def _figure(height: float, **ratios: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, height), layout="constrained")
    return figure, figure.subplots(**ratios)


def _curve(axes: Axes, t: Sequence[int], band: Mapping[str, Sequence[Any]], colour: str, name: str, scale: float = 1,
           style: Any = "-") -> None:
    low, mean, high = ([math.nan if x is None else scale * x for x in band[name]] for name in ("low", "mean", "high"))
    axes.fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(t, mean, color=colour, linewidth=1.6, linestyle=style, label=name)


def _tokens_axis(axes: Axes, last: int, what: str = "tokens") -> None:
    ticks = [2**n for n in range(last.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(0.95, last * 1.05)
    axes.set_xlabel(what)
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")
    axes.tick_params(axis="y", labelcolor=MUTED)


def _keys(figure: Figure, axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if any(len(name) > BROAD for name in labels) else columns,
                  frameon=False, handletextpad=0.4, columnspacing=1.2)


def consistency(a: Mapping[str, Any]) -> Figure:
    """Different prefixes, and traces that share one, against length, a curve a group."""
    figure, (left, right) = _figure(2.9, ncols=2)
    for number, group in enumerate(groups(a)):
        if number and group["questions"] < FEW:
            continue
        for axes, name, title in ((left, "distinct", "different prefixes"), (right, "traces_a_prefix", "traces a prefix")):
            alike = group.get("alike", [False] * len(group["t"]))  # an earlier version did not say
            _curve(axes, group["t"], _varied(group[name], alike), SHADES[min(number, len(SHADES) - 1)], group_name(group),
                   style=DASHES[min(number, len(DASHES) - 1)])
            axes.set_yscale("log")
            axes.set_title(f"{title}, of {w.count(a['traces'])} traces", fontweight="normal", color=MUTED)
            _tokens_axis(axes, a["groups"][0]["t"][-1])
            powers = [10**n for n in range(len(str(a["traces"])))]
            axes.set_yticks(powers, [str(p) for p in powers])
            axes.minorticks_off()
    _keys(figure, left)
    return figure


def _varied(band: Mapping[str, Sequence[float]], alike: Sequence[bool]) -> dict[str, Sequence[float]]:
    """Without the band where all questions are alike: what is left there is how seldom an exception may be, which the table
    tells."""
    ends = {end: [mean if still else x for x, mean, still in zip(band[end], band["mean"], alike, strict=True)]
            for end in ("low", "high")}
    return {"mean": band["mean"], **ends}


def errors(a: Mapping[str, Any]) -> Figure:
    """Accuracy from right and from wrong traces against length, and the critical length."""
    figure, axes = _figure(2.9)
    critical, last = a["critical"], a["t"][-1]
    if critical["t"] is not None:
        axes.axvspan(critical["low"] or last, critical["high"] or last * 1.05, color=GREY, alpha=0.15, linewidth=0)
        axes.axvline(critical["t"], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    _curve(axes, a["t"], a["right"], BLUE, "from right traces", 100)
    _curve(axes, a["t"], a["wrong"], RED, "from wrong traces", 100, (0, (5, 1.5)))
    axes.set_ylim(0, min(103.0, 112 * max(*a["right"]["high"], *a["wrong"]["high"])))
    _tokens_axis(axes, last, "tokens of the trace that are kept")
    axes.set_ylabel("continuations that end right, %")
    _keys(figure, axes)
    return figure


def coverage(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure:
    """The change and its parts, a block a setting and length. found: (setting, or "" where there is one, summary)."""
    blocks = [(who, t, a, i) for who, a in found for i, t in enumerate(a["t"])]
    figure, axes = _figure(0.9 + 0.62 * len(blocks))
    labels = []
    for place, (who, t, a, i) in enumerate(blocks):
        labels.append((-place, f"{who}\n{w.tokens(t)}" if who else w.tokens(t)))
        for offset, name, colour, mark in ((0.22, "change", INK, "o"), (0, "coverage", GREY, "s"),
                                           (-0.22, "accuracy", BLUE, "D")):
            one, y = a[name][i], offset - place
            if not still(one):
                axes.plot([100 * one["low"], 100 * one["high"]], [y, y], color=colour, linewidth=1.6)
            axes.plot([100 * one["difference"]], [y], mark, markersize=5.5, color=colour, label=name if place == 0 else None)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
    axes.set_ylim(-len(labels) + 0.5, 0.5)
    axes.set_xlabel("points of accuracy, with 95% interval")
    _keys(figure, axes, 3)
    return figure


def divergence(a: Mapping[str, Any], method: str) -> Figure:
    """Both divergences of one training by position."""
    figure, axes = _figure(2.7)
    at = _known(a)
    t = [a["t"][i] for i in at]
    _curve(axes, t, _places(a["forward"], at), BLUE, f"KL(base ‖ {method})")
    _curve(axes, t, _places(a["reverse"], at), GREY, f"KL({method} ‖ base)", 1, (0, (5, 1.5)))
    axes.axvline(a["prefix_len"] + 0.5, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    _tokens_axis(axes, t[-1], "position in the trace")
    axes.set_ylabel("nats a token")
    _keys(figure, axes)
    return figure


def _known(a: Mapping[str, Any]) -> list[int]:
    """Places of the positions that enough questions reach."""
    return [i for i, known in enumerate(a["known"]) if known >= min(FEW, a["questions"])]


def _places(band: Mapping[str, Sequence[Any]], at: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [values[i] for i in at] for name, values in band.items()}


def divergences(found: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Figure:
    """KL(base || trained) by position, a curve a setting. found: (setting, colour, summary)."""
    figure, axes = _figure(2.9)
    lengths: set[int] = set()
    shown = [(who, colour, a, _known(a)) for who, colour, a in found]
    for place, (who, colour, a, at) in enumerate(shown):
        _curve(axes, [a["t"][i] for i in at], _places(a["forward"], at), colour, who, 1, DASHES[place % len(DASHES)])
        lengths.add(a["prefix_len"])
    for length in lengths:
        axes.axvline(length + 0.5, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    highest = [max(a["forward"]["mean"][i] for i in at) for _, _, a, at in shown]
    most, least = max(highest), min(highest)
    if 0 < 5 * least < most:  # else the smallest setting is the axis
        # Intervals reach down to 0, which has no place on a logarithmic axis: below the last power it is linear.
        power = math.floor(math.log10(max(least / 30, most / 3000)))
        axes.set_yscale("symlog", linthresh=10.0**power, linscale=0.5)
        axes.set_ylim(0, 4 * most)
        ticks = [0.0, *(10.0**n for n in range(power, math.floor(math.log10(4 * most)) + 1))]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    else:
        axes.set_ylim(0, 1.5 * most if most > 0 else 1)
    _tokens_axis(axes, max(a["t"][at[-1]] for _, _, a, at in shown), "position in the trace")
    axes.set_ylabel("KL(base ‖ trained), nats a token")
    _keys(figure, axes)
    return figure
