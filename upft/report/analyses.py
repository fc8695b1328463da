"""The analyses' part of a report: their figures, tables and sentences, from their summaries.

Computes nothing. A section is a title, paragraphs, figures by name with captions, and tables; how they look is the page's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from upft.report import wording as w

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"consistency": "prefix self-consistency", "errors": "where errors begin", "coverage": "coverage and accuracy",
          "kl": "where training acts"}
GREY, RED, BLUE, INK = "#6b7480", "#b34a00", "#0072b2", "#1f2328"
MUTED = "#59636f"
SHADES = (GREY, RED, BLUE, INK)
"""The report's colours (`upft.report.figures`): all questions, the hardest, the middle, the easiest (and any
more)."""

FEW = 10
"""Questions of a group that are too few for a band."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (1, 1)))


@dataclass(frozen=True)
class Table:
    """header: (text, is a number) of each column; rows: cells as text."""

    name: str
    header: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """What the page shows of one analysis. figures: (name, caption)."""

    title: str
    text: tuple[str, ...]
    figures: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = field(default_factory=tuple)


def label(role: str) -> str:
    """What a stage is called, from its role: analysis:NAME, or analysis:NAME:WHAT."""
    _, name, *what = role.split(":")
    return f"{LABELS[name]}: {what[0]}" if what else LABELS[name]


def place(role: str) -> int:
    """Where an analysis stands among the others."""
    return list(LABELS).index(role.split(":")[1])


def sections(analyses: Mapping[str, Any], method: str) -> list[Section]:
    """A section an analysis, in the order of LABELS."""
    made = {"consistency": _consistency, "errors": _errors, "coverage": _coverage, "kl": _kl}
    return [make(analyses[name], method) for name, make in made.items() if name in analyses]


def group_name(group: Mapping[str, Any]) -> str:
    """Of questions by the share of their traces that is right."""
    return "all questions" if group["from"] is None else f"right in {100 * group['from']:.0f} to {100 * group['to']:.0f}%"


def _consistency(a: Mapping[str, Any], method: str) -> Section:
    overall = a["groups"][0]
    last = overall["t"][-1]
    text = [f"{w.count(a['questions'])} questions, {w.count(a['traces'])} traces each. The first token takes "
            f"{_band(overall['distinct'], 0, w.mean)} different values a question; at {w.tokens(last)} there are "
            f"{_band(overall['distinct'], -1, w.mean)} different prefixes, and "
            f"{_band(overall['traces_a_prefix'], -1, w.mean)} traces share one."]
    parted = [group for group in a["groups"][1:] if group["questions"] >= FEW]
    if len(parted) > 1:
        hard, easy = parted[0], parted[-1]
        at = min(8, len(hard["t"]), len(easy["t"])) - 1
        text.append(f"At {w.tokens(at + 1)} the questions {group_name(hard)} have {_band(hard['distinct'], at, w.mean)} "
                    f"different prefixes, those {group_name(easy)} have {_band(easy['distinct'], at, w.mean)}.")
    rows = [(group_name(g), w.count(g["questions"]), str(t), _band(g["distinct"], t - 1, w.mean),
             _band(g["traces_a_prefix"], t - 1, w.mean), _band(g["agreement"], t - 1, w.points))
            for g in a["groups"] for t in _powers(len(g["t"]))]
    return Section("Prefix self-consistency", tuple(text), (("consistency", "Different prefixes a question, and traces that "
                   "share one, against prefix length, with 95% bands over questions. Groups of few questions: see below."),),
                   (Table("Prefix self-consistency", (("questions", False), ("count", True), ("tokens", True),
                                                      ("different prefixes", True), ("traces a prefix", True),
                                                      ("pairs that agree, %", True)), tuple(rows)),))


def _errors(a: Mapping[str, Any], method: str) -> Section:
    found, margin = a["critical"], f"{100 * a['margin']:g} points"
    ends = [str(found[end]) if found[end] is not None else f"beyond {a['t'][-1]}" for end in ("low", "high")]
    if found["t"] is None:
        what = f"Up to {w.tokens(a['t'][-1])} the two groups do not part by {margin}."
    else:
        what = (f"The critical length is {w.tokens(found['t'])} [{ends[0]}, {ends[1]}]: the first of the lengths looked at "
                f"from which right traces' prefixes end right {margin} more often than wrong ones'.")
    of = a["traces"]
    text = (what, f"Base model, {w.count(a['questions'])} questions that have right and wrong traces; {w.count(of['right'])} "
            f"right and {w.count(of['wrong'])} wrong traces, {a['continuations']} continuations of each different prefix.")
    d = a["difference"]
    rows = [(str(t), _band(a["right"], i, w.points), _band(a["wrong"], i, w.points),
             f"{w.signed(d['mean'][i])} {w.interval(d['low'][i], d['high'][i])}",
             w.p_value(a["difference"]["p_value"][i]), w.percent(a["ended"]["right"][i]), w.percent(a["ended"]["wrong"][i]))
            for i, t in enumerate(a["t"])]
    return Section("Where errors begin", text, (("errors", "Accuracy of continuations from the first tokens of right and of "
                   "wrong traces of the same questions, with 95% bands over questions. The upright line is the critical "
                   "length, its band the bootstrap interval."),),
                   (Table("Where errors begin", (("tokens", True), ("from right traces, %", True),
                                                 ("from wrong traces, %", True), ("difference, points", True), ("p", True),
                                                 ("right ones over", True),
                                                 ("wrong ones over", True)), tuple(rows)),))


def _coverage(a: Mapping[str, Any], method: str) -> Section:
    text = [f"Prefixes of base and {method} on {w.count(a['questions'])} questions, continued by both, {a['continuations']} "
            "times each. What the trained model gains splits, without a rest, into proposing other prefixes (coverage) and "
            "going on differently from the same ones (accuracy)."]
    for i, t in enumerate(a["t"]):
        text.append(f"Split at {w.tokens(t)}: of {_paired(a['change'][i])} points, {_paired(a['coverage'][i])} are coverage "
                    f"and {_paired(a['accuracy'][i])} accuracy.")
    rows = [(str(t), *(_band(a["accuracy_of"][cell], i, w.points) for cell in a["accuracy_of"]),
             *(f"{_paired(a[name][i])}" for name in ("change", "coverage", "accuracy")))
            for i, t in enumerate(a["t"])]
    named = [(f"{_who(i, method)} by {_who(j, method)}, %", True) for i, j in (cell.split(" by ") for cell in a["accuracy_of"])]
    return Section("What training moved: coverage and accuracy", tuple(text), (
        ("coverage", "The change of accuracy and its two parts, with 95% intervals, where solutions are split at different "
         "lengths."),), (Table("Coverage and accuracy", (("tokens", True), *named, ("change", True), ("coverage", True),
                                                         ("accuracy", True)), tuple(rows)),))


def _kl(a: Mapping[str, Any], method: str) -> Section:
    first, rest = a["prefix"]["forward"], a["continuation"]["forward"]
    text = [f"Divergence KL(base ‖ {method}) of each next token, over {w.count(a['traces'])} of the base model's own traces of "
            f"{w.count(a['questions'])} questions: {_nats(first)} nats a token on the first {a['prefix_len']} tokens"
            + (f", {_nats(rest)} behind them." if rest is not None else ".")]
    if a["share"] is not None:
        share = a["share"]
        text.append(f"{w.percent(share['value'])} {w.interval(share['low'], share['high'])} of the divergence of whole "
                    f"solutions lies on the prefix, which has {w.percent(a['tokens_share'])} of the tokens.")
    rows = [(str(t), w.count(a["known"][t - 1]), *(_band(a[way], t - 1, "{:.4f}".format) for way in ("forward", "reverse")))
            for t in _powers(len(a["t"]))]
    return Section("Where training acts", tuple(text), (("kl", "Divergence of the next-token distributions by position, with "
                   "95% bands over questions. The upright line is the end of the prefix."),),
                   (Table("Divergence by position", (("position", True), ("questions", True),
                                                     (f"KL(base ‖ {method}), nats", True),
                                                     (f"KL({method} ‖ base), nats", True)), tuple(rows)),))


def _who(name: str, method: str) -> str:
    return method if name == "trained" else name


def _powers(known: int) -> list[int]:
    return sorted({2**n for n in range(known.bit_length())} | {known}) if known else []


def _band(band: Mapping[str, Sequence[float]], at: int, read: Any) -> str:
    """Value [low, high]."""
    value, low, high = (read(band[name][at]) for name in ("mean", "low", "high"))
    return f"{value} [{low}, {high}]"


def _paired(found: Mapping[str, Any]) -> str:
    return f"{w.signed(found['difference'])} {w.interval(found['low'], found['high'])}"


def _nats(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"


def draw(analyses: Mapping[str, Any], method: str) -> dict[str, tuple[str, Figure]]:
    """Name -> (what it shows in words, figure); within the report's style."""
    made = {"consistency": _draw_consistency, "errors": _draw_errors, "coverage": _draw_coverage, "kl": _draw_kl}
    return {name: (" ".join(section.text), make(analyses[name], method))
            for (name, make), section in zip([(n, m) for n, m in made.items() if n in analyses], sections(analyses, method),
                                             strict=True)}


def _figure(height: float, **ratios: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, height), layout="constrained")
    return figure, figure.subplots(**ratios)


def _curve(axes: Axes, t: Sequence[int], band: Mapping[str, Sequence[float]], colour: str, name: str, scale: float = 1,
           style: Any = "-") -> None:
    low, mean, high = ([scale * x for x in band[name]] for name in ("low", "mean", "high"))
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
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, frameon=False, handletextpad=0.4,
                  columnspacing=1.2)


def _draw_consistency(a: Mapping[str, Any], method: str) -> Figure:
    figure, (left, right) = _figure(2.9, ncols=2)
    for number, group in enumerate(a["groups"]):
        if number and group["questions"] < FEW:
            continue
        for axes, name, title in ((left, "distinct", "different prefixes"), (right, "traces_a_prefix", "traces a prefix")):
            _curve(axes, group["t"], group[name], SHADES[min(number, len(SHADES) - 1)], group_name(group),
                   style=DASHES[min(number, len(DASHES) - 1)])
            axes.set_yscale("log")
            axes.set_title(f"{title}, of {w.count(a['traces'])} traces", fontweight="normal", color=MUTED)
            _tokens_axis(axes, a["groups"][0]["t"][-1])
            powers = [10**n for n in range(len(str(a["traces"])))]
            axes.set_yticks(powers, [str(p) for p in powers])
            axes.minorticks_off()
    _keys(figure, left)
    return figure


def _draw_errors(a: Mapping[str, Any], method: str) -> Figure:
    figure, axes = _figure(2.9)
    critical, last = a["critical"], a["t"][-1]
    if critical["t"] is not None:
        axes.axvspan(critical["low"] or last, critical["high"] or last * 1.05, color=GREY, alpha=0.15, linewidth=0)
        axes.axvline(critical["t"], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    _curve(axes, a["t"], a["right"], BLUE, "from right traces", 100)
    _curve(axes, a["t"], a["wrong"], RED, "from wrong traces", 100, (0, (5, 1.5)))
    axes.set_ylim(0, 103)
    _tokens_axis(axes, last, "tokens of the trace that are kept")
    axes.set_ylabel("continuations that end right, %")
    _keys(figure, axes)
    return figure


def _draw_coverage(a: Mapping[str, Any], method: str) -> Figure:
    figure, axes = _figure(0.9 + 0.62 * len(a["t"]))
    labels = []
    for i, t in enumerate(a["t"]):
        labels.append((-i, w.tokens(t)))
        for offset, name, colour, mark in ((0.22, "change", INK, "o"), (0, "coverage", GREY, "s"),
                                           (-0.22, "accuracy", BLUE, "D")):
            found, y = a[name][i], offset - i
            axes.plot([100 * found["low"], 100 * found["high"]], [y, y], color=colour, linewidth=1.6)
            axes.plot([100 * found["difference"]], [y], mark, markersize=5.5, color=colour, label=name if i == 0 else None)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels])
    axes.set_ylim(-len(labels) + 0.5, 0.5)
    axes.set_xlabel("points of accuracy, with 95% interval")
    _keys(figure, axes, 3)
    return figure


def _draw_kl(a: Mapping[str, Any], method: str) -> Figure:
    figure, axes = _figure(2.7)
    _curve(axes, a["t"], a["forward"], BLUE, f"KL(base ‖ {method})")
    _curve(axes, a["t"], a["reverse"], GREY, f"KL({method} ‖ base)", 1, (0, (5, 1.5)))
    axes.axvline(a["prefix_len"] + 0.5, color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    _tokens_axis(axes, a["t"][-1], "position in the trace")
    axes.set_ylabel("nats a token")
    _keys(figure, axes)
    return figure
