"""results.json -> figures, as SVG and PDF.

Knows matplotlib, and only here is it imported. Refuses to compute a statistic. Each colour has a name: in the
files it is fixed, on the page it becomes a CSS variable, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upft.report import panels, wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, PAPER = "#1f2328", "#59636f", "#d5dae1", "#fefefe"
BASE, TRAINED, WRONG = "#6b7480", "#0072b2", "#b34a00"  # Okabe and Ito's blue beside a grey: apart in lightness too
SERIES = ("#d55e00", "#0173b3", "#009e73", "#cc79a7", "#a07800", "#7b5cc4")
"""One for each method where many stand in a figure; Okabe and Ito's, two of them darker so that they show on paper."""
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper", BASE: "--base", TRAINED: "--trained",
             WRONG: "--loss", **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)}}
WIDTH = 4.9
"""Inches. Narrow, so that a phone shows the labels at a size that can be read."""
STYLE = {
    "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "upft",
    "pdf.fonttype": 42, "font.family": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK, "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "axes.titlesize": 9,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "x", "axes.axisbelow": True,
    "grid.color": RULE, "grid.linewidth": 0.8, "xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK, "ytick.major.size": 0, "xtick.major.size": 0, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Drawn:
    """One figure. alt: what it shows, in words. svg, pdf: whole files."""

    name: str
    alt: str
    svg: bytes
    pdf: bytes

    def inline(self) -> str:
        """The SVG as a piece of a page: no prolog, ids that cannot meet another figure's, colours as variables."""
        text = self.svg.decode()
        text = text[text.index("<svg"):]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"\s(?:xmlns(?::\w+)?|version)=\"[^\"]*\"", "", text)
        text = text.replace("xlink:href", "href")
        text = re.sub(r"\bid=\"", f'id="{self.name}-', text)
        text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{self.name}-", text)
        text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
        text = re.sub(r"font: (bold|\d+) ([\d.]+px) [^;\"]+", r"font-weight: \1; font-size: \2", text)
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var({variable})")
        return text.replace("<svg", f'<svg role="img" aria-labelledby="{self.name}-alt"', 1)


def draw(results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> dict[str, Drawn]:
    """Every figure that there is something to draw for, by name: accuracy, styles-<task>, beginnings, loss."""
    with styled():
        figures = {"accuracy": drawn("accuracy", _accuracy_alt(results), _accuracy(results))}
        for number, (task, entry) in enumerate(results["tasks"].items()):
            if entry["styles"] is not None:
                name = f"styles-{number}"
                alt = f"Share and accuracy of each way to open a solution on {task}, base and {results['method']}"
                figures[name] = drawn(name, alt, _styles(entry["styles"], results["method"]))
        diagnosis = results["diagnosis"]
        if diagnosis is not None and (len(diagnosis["curve"]["t"]) > 1 or diagnosis["entropy"] is not None):
            figures["beginnings"] = drawn("beginnings", _beginnings_alt(diagnosis), _beginnings(diagnosis))
        losses = [(int(m["step"]), float(m["loss"])) for m in metrics if "step" in m and "loss" in m]
        if len(losses) > 1:
            alt = f"Training loss from {losses[0][1]:.3f} at step {losses[0][0]} to {losses[-1][1]:.3f} at step {losses[-1][0]}"
            figures["loss"] = drawn("loss", alt, _loss(losses))
        for name, (alt, figure) in panels.draw(results.get("analyses", {}), results["method"]).items():
            figures[name] = drawn(name, alt, figure)
    return figures


@contextmanager
def styled() -> Iterator[None]:
    """The style of every figure; a user's matplotlibrc must not restyle a report."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def drawn(name: str, alt: str, figure: Figure) -> Drawn:
    """A figure as SVG and PDF, without the time."""
    svg, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Drawn(name, alt, svg.getvalue(), pdf.getvalue())


def canvas(height: float, **ratios: Any) -> tuple[Figure, Any]:
    """(figure, axes): WIDTH wide, `height` inches high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(**ratios)


def _label(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _dot(axes: Axes, x: float, y: float, trained: bool) -> None:
    colour = TRAINED if trained else BASE
    axes.plot([x], [y], "o", markersize=6.5, color=colour, markerfacecolor=colour if trained else PAPER, markeredgewidth=1.6)


def _accuracy(results: Mapping[str, Any]) -> Figure:
    tasks, method = results["tasks"], results["method"]
    figure, axes = canvas(0.55 + 0.72 * len(tasks))
    labels: list[tuple[float, str]] = []
    highest = max(entry[side]["accuracy"]["high"] for entry in tasks.values() for side in ("base", "trained"))
    lowest = min(entry[side]["accuracy"]["low"] for entry in tasks.values() for side in ("base", "trained"))
    for number, (task, entry) in enumerate(tasks.items()):
        top = -1.9 * number
        labels.append((top + 0.62, _label(task)))
        for offset, side, trained in ((0.0, "base", False), (-0.62, "trained", True)):
            a, y = entry[side]["accuracy"], top + offset
            axes.plot([100 * a["low"], 100 * a["high"]], [y, y], color=TRAINED if trained else BASE, linewidth=1.6,
                      solid_capstyle="round")
            _dot(axes, 100 * a["value"], y, trained)
            axes.annotate(wording.percent(a["value"]), (100 * a["high"], y), xytext=(6, 0), textcoords="offset points",
                          va="center")
            labels.append((y, method if trained else "base"))
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
    for tick in axes.get_yticklabels()[::3]:
        tick.set_fontweight("bold")
    axes.set_ylim(-1.9 * (len(tasks) - 1) - 1.0, 1.0)
    margin = max(2.0, 8 * (highest - lowest))
    axes.set_xlim(max(0.0, 100 * lowest - margin), min(104.0, 100 * highest + margin + 14 * (highest - lowest)) + 1)
    axes.set_xlabel("accuracy, %, with 95% interval")
    return figure


def _accuracy_alt(results: Mapping[str, Any]) -> str:
    return "Accuracy with 95% interval. " + " ".join(
        f"{task}: base {wording.percent(e['base']['accuracy']['value'])}, "
        f"{results['method']} {wording.percent(e['trained']['accuracy']['value'])}." for task, e in results["tasks"].items())


def _styles(styles: Mapping[str, Any], method: str) -> Figure:
    openings = styles["openings"]
    figure, (left, right) = canvas(0.95 + 0.42 * len(openings), ncols=2, sharey=True)
    for axes, field, title in ((left, "share", "coverage: share of answers, %"), (right, "accuracy", "accuracy behind it, %")):
        for y, opening in enumerate(openings):
            ends = [opening[side][field] for side in ("base", "trained")]
            if None not in ends:
                axes.plot([100 * e for e in ends], [y, y], color=RULE, linewidth=3, solid_capstyle="round", zorder=1.5)
            for value, trained in zip(ends, (False, True), strict=True):
                if value is not None:
                    _dot(axes, 100 * value, y, trained)
        axes.set_title(title, fontweight="normal", color=MUTED)
        axes.set_xlim(-5, 105)
        axes.set_xticks([0, 25, 50, 75, 100])
    left.set_yticks(range(len(openings)), [_label(opening["style"]) for opening in openings])
    left.set_ylim(len(openings) - 0.5, -0.5)
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], linestyle="", marker="o", markersize=6.5, markeredgewidth=1.6, color=colour, markerfacecolor=face)
            for colour, face in ((BASE, PAPER), (TRAINED, TRAINED))]
    figure.legend(keys, ["base", method], loc="outside upper left", ncols=2, frameon=False, handletextpad=0.3,
                  columnspacing=1.2)
    return figure


def _beginnings(diagnosis: Mapping[str, Any]) -> Figure:
    curve, entropy = diagnosis["curve"], diagnosis["entropy"]
    panels = [name for name, there in (("agreement", len(curve["t"]) > 1), ("entropy", entropy is not None)) if there]
    figure, grid = canvas(2.4, ncols=len(panels), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        if panel == "agreement":
            axes.fill_between(curve["t"], [100 * x for x in curve["low"]], [100 * x for x in curve["high"]], color=BASE,
                              alpha=0.25, linewidth=0)
            axes.plot(curve["t"], [100 * x for x in curve["agreement"]], color=BASE, linewidth=1.6)
            axes.axhline(100 * diagnosis["agreement_threshold"], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_ylim(0, 103)
            axes.set_title("pairs that agree so far, %", fontweight="normal", color=MUTED)
        else:
            axes.plot(entropy["t"], entropy["nats"], color=BASE, linewidth=1.6)
            axes.set_ylim(0, max(1.08 * max(entropy["nats"]), 0.1))
            axes.set_title("entropy of each token, nats", fontweight="normal", color=MUTED)
        if diagnosis["suggested"] is not None:
            axes.axvline(diagnosis["suggested"], color=TRAINED, linewidth=1.4)
        last = (curve if panel == "agreement" else entropy)["t"][-1]
        ticks = [2**n for n in range(last.bit_length())]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.95, last * 1.05)
        axes.set_xlabel("tokens" if panel == "agreement" else "position")
        axes.grid(True, axis="y")
        axes.grid(False, axis="x")
        axes.tick_params(axis="y", labelcolor=MUTED)
    return figure


def _beginnings_alt(diagnosis: Mapping[str, Any]) -> str:
    curve, entropy, parts = diagnosis["curve"], diagnosis["entropy"], []
    if len(curve["t"]) > 1:
        parts.append(f"Share of pairs of a question's traces that agree so far: {wording.percent(curve['agreement'][0])} at 1 "
                     f"token, {wording.percent(curve['agreement'][-1])} at {curve['t'][-1]}.")
    if entropy is not None:
        parts.append(f"Entropy of the sampler in nats: {entropy['nats'][0]:.2f} at position 1, {entropy['nats'][-1]:.2f} at "
                     f"position {entropy['t'][-1]}.")
    if diagnosis["suggested"] is not None:
        parts.append(f"Suggested prefix length: {wording.tokens(diagnosis['suggested'])}.")
    return " ".join(parts)


def _loss(losses: Sequence[tuple[int, float]]) -> Figure:
    figure, axes = canvas(2.3)
    steps, values = [s for s, _ in losses], [v for _, v in losses]
    smooth = len(values) >= 40
    axes.plot(steps, values, color=BASE if smooth else TRAINED, linewidth=0.7 if smooth else 1.6, alpha=0.6 if smooth else 1)
    if smooth:
        width = max(5, len(values) // 25)
        running = [sum(values[max(0, i - width + 1):i + 1]) / min(width, i + 1) for i in range(len(values))]
        axes.plot(steps, running, color=TRAINED, linewidth=1.8)
        axes.set_title(f"each step, and the mean of the last {width}", fontweight="normal", color=MUTED)
    axes.grid(True, axis="y")
    axes.grid(False, axis="x")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.set_xlim(0, steps[-1] * 1.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
