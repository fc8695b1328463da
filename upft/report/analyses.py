"""The analyses' part of a cell's report: their figures, tables and sentences, from their summaries.

Computes nothing. A section is a title, paragraphs, figures by name with captions, and tables; how they look is the page's.
The parts of which `upft.report.studies` puts together the same for many cells are here, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from upft.report import wording as w
from upft.report.table import Cell, Column, Row, Table, number, word

LABELS = {"consistency": "prefix self-consistency", "errors": "where errors begin", "coverage": "coverage and accuracy",
          "kl": "where training acts"}
FEW = 10
"""Questions of a group that are too few for a band."""
ALIKE = "in every question"
"""Said of a count that all questions share."""
STILL = "no question moved"
EXACT = "float32"
FLOOR = 0.002
"""Nats a token between two models that are all but equal and compute in bfloat16, the only other format: docs/analyses.md."""


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
            f"{_counted(overall, 'distinct', 0)} different values a question; at {w.tokens(last)} there are "
            f"{_counted(overall, 'distinct', last - 1)} different prefixes, and "
            f"{_counted(overall, 'traces_a_prefix', last - 1)} traces share one."]
    parted = [group for group in groups(a)[1:] if group["questions"] >= FEW]
    if len(parted) > 1:
        hard, easy = parted[0], parted[-1]
        at = min(8, len(hard["t"]), len(easy["t"])) - 1
        text.append(f"At {w.tokens(at + 1)} the questions {group_name(hard)} have {_counted(hard, 'distinct', at)} "
                    f"different prefixes, those {group_name(easy)} have {_counted(easy, 'distinct', at)}.")
    return Section("Prefix self-consistency", tuple(text), (("consistency", "Different prefixes a question, and traces that "
                   "share one, against prefix length, with 95% bands over questions. Groups of few questions: see below."),),
                   (consistency_table(a),))


def groups(a: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All questions, and the groups by difficulty where there is more than one."""
    every, *parted = a["groups"]
    return [every, *(group for group in parted if group["questions"] < every["questions"])]


def consistency_table(a: Mapping[str, Any], name: str = "consistency") -> Table:
    """A row a group and power of two."""
    rows = tuple(Row((word(group_name(g)), whole(g["questions"]), whole(t),
                      *(cell(g[name], t - 1, w.mean, alike(g, t - 1)) for name in ("distinct", "traces_a_prefix")),
                      cell(g["agreement"], t - 1, w.points)))
                 for g in groups(a) for t in powers(len(g["t"])))
    return Table(name, "Different prefixes by length", (
        Column("group", "questions", False), Column("questions", "count"), Column("tokens", "tokens"),
        Column("distinct", "different prefixes"), Column("traces_a_prefix", "traces a prefix"),
        Column("agreement", "pairs that agree, %")), rows)


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
    return Section("Where errors begin", text, (("errors", "Accuracy of continuations from the first tokens of right and of "
                   "wrong traces of the same questions, with 95% bands over questions. The upright line is the critical "
                   "length, its band the bootstrap interval."),), (errors_table(a),))


def errors_table(a: Mapping[str, Any], name: str = "errors") -> Table:
    """A row a length."""
    d = a["difference"]
    rows = tuple(Row((whole(t), cell(a["right"], i, w.points), cell(a["wrong"], i, w.points),
                      replace(moved({"difference": d["mean"][i], **{
                          key: d[key][i] for key in ("low", "high", "p_value", "verdict")}}), verdict=""),  # nothing was gained
                      *(number(value, w.percent(value)) for value in (a["ended"]["right"][i], a["ended"]["wrong"][i]))))
                 for i, t in enumerate(a["t"]))
    return Table(name, "Right and wrong traces by length", (
        Column("tokens", "tokens"), Column("right", "from right traces, %"), Column("wrong", "from wrong traces, %"),
        Column("difference", "difference, points"), Column("right_over", "right ones over"),
        Column("wrong_over", "wrong ones over")), rows)


def _coverage(a: Mapping[str, Any], method: str) -> Section:
    text = [split_intro(a, f"base and {method}"), *splits(a)]
    return Section("What training moved: coverage and accuracy", tuple(text), (
        ("coverage", "The change of accuracy and its two parts, with 95% intervals, where solutions are split at different "
         "lengths."),), (coverage_table([(method, a)]),))


def split_intro(a: Mapping[str, Any], whose: str) -> str:
    """What was done."""
    return (f"Prefixes of {whose} on {w.count(a['questions'])} questions, continued by both, {a['continuations']} times each. "
            "What the trained model gains splits, without a rest, into proposing other prefixes (coverage) and going on "
            "differently from the same ones (accuracy).")


def splits(a: Mapping[str, Any]) -> list[str]:
    """A sentence a length."""
    return [f"Split at {w.tokens(t)}: {_split([a[part][i] for part in ('change', 'coverage', 'accuracy')])}."
            for i, t in enumerate(a["t"])]


def _split(found: Sequence[Mapping[str, Any]]) -> str:
    """Of a change, coverage and accuracy."""
    if all(still(one) for one in found):
        return STILL
    said = w.parts(*(one["difference"] for one in found))
    whole, coverage, accuracy = (
        f"{text} ({STILL})" if still(one) else f"{text} {w.interval(one['low'], one['high'])}"
        for text, one in zip(said, found, strict=True))
    return f"of {whole} points, {coverage} are coverage and {accuracy} accuracy"


def coverage_table(found: Sequence[tuple[str, Mapping[str, Any]]], name: str = "coverage") -> Table:
    """A row a setting and length. found: (setting, summary)."""
    rows = tuple(Row((word(who), whole(t), *(cell(a["accuracy_of"][f"{i} by {j}"], place, w.points) for i, j in BY),
                      *(moved(a[part][place]) for part in ("change", "coverage", "accuracy"))))
                 for who, a in found for place, t in enumerate(a["t"]))
    return Table(name, "Coverage and accuracy by length", (
        Column("setting", "setting", False), Column("tokens", "tokens"),
        *(Column(f"{i}_by_{j}", f"{i} by {j}, %") for i, j in BY), Column("change", "change, points"),
        Column("coverage", "coverage"), Column("accuracy", "accuracy")), rows,
        "“base by trained”: prefixes that the base model proposed, continued by the trained one, and so on; the last three "
        "columns are the change from “base by base” to “trained by trained” and its two parts.")


def _kl(a: Mapping[str, Any], method: str) -> Section:
    first, rest = a["prefix"]["forward"], a["continuation"]["forward"]
    text = [f"Divergence KL(base ‖ {method}) of each next token, over {w.count(a['traces'])} of the base model's own traces of "
            f"{w.count(a['questions'])} questions: {_nats(first)} nats a token on the first {a['prefix_len']} tokens"
            + (f", {_nats(rest)} behind them." if rest is not None else ".")]
    if a["share"] is not None:
        share = a["share"]
        text.append(f"{w.percent(share['value'])} {w.interval(share['low'], share['high'])} of the divergence of whole "
                    f"solutions lies on the prefix, which has {w.percent(a['tokens_share'])} of the tokens.")
    if (a.get("dtype") or EXACT) != EXACT:  # an earlier version did not say
        text.append(f"Both models computed in {a['dtype']}, whose rounding alone sets them about {FLOOR:g} nats a token apart: "
                    f"what is not well above that says nothing about training (analysis.kl.dtype={EXACT} has no such floor).")
    return Section("Where training acts", tuple(text), (("kl", "Divergence of the next-token distributions by position, with "
                   "95% bands over questions. The upright line is the end of the prefix."),),
                   (acting_table([(method, a)]), kl_table([(method, a)])))


def acting_table(found: Sequence[tuple[str, Mapping[str, Any]]], name: str = "acting") -> Table:
    """A row a setting: prefix against continuation."""
    def part(a: Mapping[str, Any], where: str) -> Cell:
        one = a[where]["forward"]
        return number(None, "") if one is None else cell({key: [value] for key, value in one.items()}, 0, w.small)

    rows = tuple(Row((word(who), whole(a["prefix_len"]), part(a, "prefix"), part(a, "continuation"),
                      number(None, "") if a["share"] is None else Cell(
                          w.points(a["share"]["value"]), a["share"]["value"], w.interval(a["share"]["low"], a["share"]["high"]),
                          data={"": a["share"]["value"], **{end: a["share"][end] for end in ("low", "high")}}),
                      number(a["tokens_share"], w.points(a["tokens_share"])))) for who, a in found)
    return Table(name, "Divergence on the prefix and behind it", (
        Column("setting", "setting", False), Column("prefix_len", "prefix, tokens"), Column("prefix", "nats a token on it"),
        Column("continuation", "behind it"), Column("share", "share of a solution's divergence on it, %"),
        Column("tokens_share", "share of its tokens, %")), rows)


def kl_table(found: Sequence[tuple[str, Mapping[str, Any]]], name: str = "kl") -> Table:
    """A row a setting and power of two."""
    rows = tuple(Row((word(who), whole(t), whole(a["known"][t - 1]),
                      *(cell(a[way], t - 1, w.small) for way in ("forward", "reverse"))))
                 for who, a in found for t in powers(len(a["t"])))
    return Table(name, "Divergence by position", (
        Column("setting", "setting", False), Column("position", "position"), Column("questions", "questions"),
        Column("forward", "KL(base ‖ trained), nats"), Column("reverse", "KL(trained ‖ base), nats")), rows)


BY = (("base", "base"), ("base", "trained"), ("trained", "base"), ("trained", "trained"))
"""Who proposed a prefix, who continued it."""


def powers(known: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return sorted({2**n for n in range(known.bit_length())} | {known}) if known else []


def whole(n: int) -> Cell:
    """A cell of a count."""
    return number(n, w.count(n))


def cell(band: Mapping[str, Sequence[Any]], at: int, read: Callable[[float], str], same: bool = False) -> Cell:
    """A mean with its interval, where it has one. same: of values that are all the same; how seldom another one may be is
    told as data alone."""
    value, low, high = (band[name][at] for name in ("mean", "low", "high"))
    return Cell(read(value), value, ALIKE if same else "" if low is None else f"[{read(low)}, {read(high)}]",
                data={"": value, "low": low, "high": high})


def alike(group: Mapping[str, Any], at: int) -> bool:
    """Whether all questions of a group have as many different prefixes there. An earlier version did not say."""
    return "alike" in group and bool(group["alike"][at])


def still(found: Mapping[str, Any]) -> bool:
    """Whether no question moved: there is no spread to take an interval from, and what stands for it (see
    `statistics.paired_values`) would be as wide as if answers were all or nothing. An earlier version did not say."""
    return bool(found.get("moved", 1) == 0)


def moved(found: Mapping[str, Any]) -> Cell:
    """A paired difference with its interval, p-value and verdict."""
    if still(found):
        return Cell(w.signed(0), 0.0, below=STILL, data={"": 0.0, **dict.fromkeys(("low", "high", "p_value", "verdict"))})
    return Cell(w.signed(found["difference"]), found["difference"], w.interval(found["low"], found["high"]),
                w.p_value(found["p_value"]), found["verdict"],
                {"": found["difference"], **{name: found[name] for name in ("low", "high", "p_value", "verdict")}})


def _counted(group: Mapping[str, Any], name: str, at: int) -> str:
    """Value [low, high], or that all questions have it."""
    return f"{w.mean(group[name]['mean'][at])} ({ALIKE})" if alike(group, at) else _band(group[name], at, w.mean)


def _band(band: Mapping[str, Sequence[Any]], at: int, read: Any) -> str:
    """Value [low, high]."""
    value, low, high = (read(band[name][at]) for name in ("mean", "low", "high"))
    return f"{value} [{low}, {high}]"


def _nats(one: Mapping[str, Any]) -> str:
    if one["low"] is None:
        return f"{w.small(one['mean'])} (of one question)"
    return f"{w.small(one['mean'])} [{w.small(one['low'])}, {w.small(one['high'])}]"
