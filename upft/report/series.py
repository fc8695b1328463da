"""What figures over many settings have in common: a method's colour, the base model's band, axes and legend.

Draws; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from upft.report.figures import MUTED, SERIES
from upft.report.panels import BROAD
from upft.report.settings import Setting, bases
from upft.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX*"
PLACES = {"RFT": 0, "UPFT": 1, "UPFT + label filter": 2, "V-STaR": 3, "SFT": 4}
"""Place of a method's colour and marker."""


def colours(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker): a known method has its own on every page."""
    others = [method for method in dict.fromkeys(methods) if method not in PLACES]
    places = {**PLACES, **{method: len(PLACES) + n for n, method in enumerate(others)}}
    return {method: (SERIES[n % len(SERIES)], MARKERS[n % len(MARKERS)]) for method, n in places.items()}


def base(group: Sequence[Setting], every: Sequence[Setting]) -> Estimate | None:
    """The accuracy of the base model that a group of settings of one model is compared with, as in the tables: of all its
    answers, also those under seeds that other settings have. None where the group's base models were asked in several ways."""
    asked = {s.cases[0].asked for s in group}
    found = bases([s for s in every if s.cases[0].asked in asked])
    if len(found) != 1:
        return None
    return found[0].mean if found[0].mean is not None else next(iter(found[0].tasks.values())).accuracy


def band(axes: Axes, base: Estimate | None) -> None:
    """The base model's interval, and a line at its accuracy; nothing where there is not one base model."""
    if base is not None:
        axes.axhspan(100 * base.low, 100 * base.high, color=MUTED, alpha=0.12, linewidth=0)
        axes.axhline(100 * base.value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))


def finish(figure: Figure | None, axes: Axes, label: str, what: str) -> None:
    """Grid, labels, and the figure's legend where it is given. what: whose accuracy is on the y axis."""
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlabel(label)
    if what:
        axes.set_ylabel(f"accuracy, %: {what}")
    if figure is not None:
        broad = any(len(name) > BROAD for name in axes.get_legend_handles_labels()[1])
        figure.legend(loc="outside upper left", ncols=1 if broad else 2, frameon=False, handlelength=1.6, columnspacing=1.2)
