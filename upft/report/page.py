"""results.json and the evidence behind it -> report.html, one file that loads nothing.

Chooses what to show and in which order; the template says how it looks. Whatever comes from a model or a data
set is escaped (autoescape is on for everything; only our own SVG and CSS are let through).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft.report import analyses, markdown, methods, wording
from upft.report.evidence import Answer, Answers, Decode, Evidence, StageRecord
from upft.report.figures import Drawn
from upft.report.table import MARKS, Table

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
EXAMPLES = 6
"""Answer pairs to show for a task."""
LONGEST = 900
"""Characters of a completion to show; the middle of a longer one is left out and counted."""


@dataclass(frozen=True)
class Pair:
    """One question that the two models answered differently, with one answer of each."""

    question: str
    gold: str
    base: Answer
    trained: Answer
    beginnings: tuple[str, str] = ("", "")
    """What the first t tokens of each answer say, t the prefix length; empty where not known."""


def environment() -> Environment:
    """The templates; everything put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True)


def shown(figures: Mapping[str, Drawn]) -> dict[str, dict[str, Any]]:
    """Figures as a template takes them."""
    from markupsafe import Markup

    return {name: {"svg": Markup(drawn.inline()), "alt": drawn.alt, "id": f"{name}-alt"} for name, drawn in figures.items()}


def script() -> str:
    """What sorts the tables: the one script of a page."""
    return f"\n{(FOLDER / 'sort.js').read_text(encoding='utf-8')}\n"


def policy() -> str:
    """What a browser may do with a page: its own styles and this one script, and load nothing."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def as_markdown(results: Mapping[str, Any], evidence: Evidence, figures: Mapping[str, Drawn], tables: Sequence[Table]) -> str:
    """report.md: findings, tables, figures, what was trained on, where it is from."""
    stages = "".join(f"| {markdown.escaped(one['label'])} | {one['key']} | {one['finished']} | {one['host']} | {one['git']} |\n"
                     for one in (_made(record) for record in evidence.stages))
    parts = [f"# {markdown.escaped(results['title'])}\n",
             *(f"{markdown.escaped(line)}\n" for line in results["headline"]), *(markdown.table(one) for one in tables),
             *(f"![{markdown.escaped(drawn.alt)}](figures/{name}.svg)\n" for name, drawn in figures.items()
               if name not in analyses.LABELS),
             *(markdown.section(one, figures) for one in analyses.sections(results.get("analyses", {}), results["method"])),
             *(markdown.examples(f"Answers that changed: {task}", found, results["method"], results["prefix_len"])
               for task, (base, trained) in evidence.tasks.items()
               if (found := differing(base, trained, EXAMPLES, evidence.decode, results["prefix_len"]))),
             "### Training\n\n" + "".join(f"- {name}: {markdown.escaped(value)}\n"
                                         for name, value in _facts(results["training"])),
             f"### Provenance\n\n| stage | artifact | finished, UTC | host | commit |\n|---|---|---|---|---|\n{stages}",
             "".join(f"- {name}: {markdown.escaped(value)}\n" for name, value in versions([found_versions(evidence.stages)])),
             f"How to repeat it:\n\n    {evidence.command}\n" if evidence.command else "",
             "### Everything each result depends on\n\n" + "\n".join(
                 markdown.folded(one["label"], one["spec"]) for one in map(_made, evidence.stages) if one["spec"]),
             wording.multiplicity(comparisons(results)) + "\n"]
    return "\n".join(part for part in parts if part)


def render(results: Mapping[str, Any], evidence: Evidence, figures: Mapping[str, Drawn], tables: Sequence[Table] = ()) -> str:
    """The whole page."""
    from markupsafe import Markup

    return environment().get_template("template.html.j2").render(
        r=results, w=wording, method=results["method"],
        css=Markup((FOLDER / "style.css.j2").read_text(encoding="utf-8")),
        figures=shown(figures),
        findings={task: [unbroken(text) for text in wording.finding(task, entry, results["method"])]
                  for task, entry in results["tasks"].items()}, unbroken=unbroken,
        rows=evidence.rows.get("examples", []),
        pairs={task: differing(base, trained, EXAMPLES, evidence.decode, results["prefix_len"])
               for task, (base, trained) in evidence.tasks.items()},
        facts=_facts(results["training"]), analyses=analyses.sections(results.get("analyses", {}), results["method"]),
        comparison=methods.columns(methods.table([results])),
        beginnings=lengths(results["diagnosis"]) if results["diagnosis"] else [],
        sampled=_sampled(results["diagnosis"]) if results["diagnosis"] else [],
        made=[_made(record) for record in evidence.stages], versions=versions([found_versions(evidence.stages)]), shorten=rest,
        beside=[table for table in tables if any(row.kind == "paper" for row in table.rows)], marks=MARKS,
        many=wording.multiplicity(comparisons(results)),
        command=evidence.command, script=Markup(script()), policy=policy(),
    )


def comparisons(results: Mapping[str, Any]) -> int:
    """Tests against the base model in the table of results."""
    return sum(1 + len(entry["several"]) for entry in results["tasks"].values()) + (results["mean"] is not None)


def differing(base: Answers, trained: Answers, count: int = EXAMPLES, decode: Decode | None = None,
              prefix_len: int | None = None) -> list[Pair]:
    """Questions whose answers went from wrong to right or from right to wrong, both kinds in turn.

    Ordered by question id (a hash of the question), so neither the file's order nor a choice of ours decides.
    """
    gained: list[Pair] = []
    lost: list[Pair] = []
    for place in range(len(base.ids)):
        before, after = base.to(place), trained.to(place)
        change = sum(a.right for a in after) / len(after) - sum(b.right for b in before) / len(before)
        if abs(change) < 1e-9:
            continue
        won = change > 0
        one = next(b for b in before if b.right != won)
        other = next(a for a in after if a.right == won)
        (gained if won else lost).append(Pair(one.question, one.gold, one, other))
    out: list[Pair] = []
    while len(out) < count and (gained or lost):
        for side in (gained, lost):
            if side and len(out) < count:
                out.append(side.pop(0))
    return [replace(p, beginnings=(beginning(p.base, decode, prefix_len), beginning(p.trained, decode, prefix_len)))
            for p in out]


def beginning(answer: Answer, decode: Decode | None, length: int | None) -> str:
    """The part of an answer's text that its first `length` tokens say; empty where that cannot be told. A character that
    the cut goes through is left out."""
    if decode is None or length is None or not answer.ids:
        return ""
    text = decode(answer.ids[:length]).rstrip("\ufffd")
    return text if answer.completion.startswith(text) else ""


def unbroken(text: str) -> str:
    """Keep `p < 0.001`, `[1.0, 2.0]`, `4.2e-05` and `a → b` on one line each."""
    text = re.sub(r"(?<=\de-)(?=\d)", "\u2060", text)
    return re.sub(r"(?<=\bp) ([<=]) |(?<=,) (?=[−\d.]+\])| (→) ", lambda m: f"\u00a0{m.group(1) or m.group(2)}\u00a0"
                  if m.group(1) or m.group(2) else "\u00a0", text)


def shorten(text: str, longest: int = LONGEST) -> list[str]:
    """[text], or [start, `... n characters ...`, end] of a long one."""
    text = text.strip()
    if len(text) <= longest:
        return [text]
    head, tail = longest * 3 // 5, longest * 2 // 5
    return [text[:head], f"… {wording.count(len(text) - head - tail)} characters …", text[-tail:]]


def rest(text: str, start: bool = True) -> list[str]:
    """`shorten`; of what follows a marked beginning the space before it is kept."""
    first, *more = shorten(text)
    return [first if start else text[:len(text) - len(text.lstrip())] + first, *more]


def _facts(t: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained on, as (name, value), leaving out what the artifacts do not tell."""
    left_out = [f"{wording.count(n)} ({reason})" for reason, n in t["left_out"].items() if n]
    facts: list[tuple[str, str | None]] = [
        ("questions sampled", _count(t["questions"])),
        ("duplicate questions dropped", _count(t["duplicates"]) if t["duplicates"] else None),
        ("questions too long for the model", _count(t["too_long"]) if t["too_long"] else None),
        ("traces graded", None if t["graded"] is None else _graded(t["graded"])),
        ("prefix rows", _count(t["prefix_rows"] or None)),
        ("whole-trace rows", _count(t["trace_rows"])),
        ("right traces seen before", _count(t["repeated"]) if t["repeated"] else None),
        ("rows left out", "; ".join(left_out) or None),
        ("mean trained length", _tokens(t["mean_trained_length"])),
        ("mean prompt length", _tokens(t["mean_prompt_length"])),
        ("optimiser steps", _count(t["steps"])),
        ("epochs", _count(t["epochs"])),
        ("learning rate", f"{t['lr']:g}" if t["lr"] is not None else None),
        ("parameters", _count(t["parameters"])),
        ("loss, first and last step", f"{t['first_loss']:.3f} → {t['last_loss']:.3f}" if t["first_loss"] is not None else None),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _graded(told: Mapping[str, Any]) -> str:
    share = told["right"] / told["traces"] if told["traces"] else None
    return f"{wording.count(told['traces'])}, {wording.percent(share)} right"


def lengths(diagnosis: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known at 1, 2, 4, ... tokens, at the suggested length and at the last: a row of the page's table each."""
    curve, entropy = diagnosis["curve"], diagnosis["entropy"]
    known = len(curve["t"]) or (len(entropy["t"]) if entropy else 0)
    wanted = {2**n for n in range(known.bit_length())} | {diagnosis["suggested"] or known, known} if known else set()
    return [{"t": t, "suggested": t == diagnosis["suggested"],
             **{name: values[t - 1] if t <= len(values) else None for name, values in curve.items() if name != "t"},
             "nats": entropy["nats"][t - 1] if entropy and t <= len(entropy["t"]) else None} for t in sorted(wanted)]


def _sampled(diagnosis: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was looked at, as (name, value)."""
    whole, prefixes = diagnosis["whole"], diagnosis["prefixes"]
    facts = [("questions", wording.count(diagnosis["questions"])),
             ("traces a question", f"{diagnosis['traces'] / diagnosis['questions']:g}")]
    if prefixes is not None:
        facts.append(("prefixes", f"{wording.count(prefixes['traces'])}, {wording.mean(prefixes['mean_tokens'])} tokens on "
                                  f"average; {wording.percent(prefixes['finished'])} ended by themselves"))
    if whole is not None:
        facts += [("whole traces", f"{wording.count(whole['traces'])}, {wording.mean(whole['mean_tokens'])} tokens on average, "
                                   f"median {whole['median_tokens']:g}"),
                  ("of these with a box", wording.percent(whole["boxed"])),
                  ("ended by themselves", wording.percent(whole["finished"]))]
    return facts


def _count(n: float | None) -> str | None:
    return None if n is None else wording.count(n)


def _tokens(n: float | None) -> str | None:
    return None if n is None else f"{wording.mean(n)} tokens"


def _made(record: StageRecord) -> dict[str, str]:
    p = record.provenance
    git = p.get("git")
    commit, _, changed = str(git).partition("+") if git else ("", "", "")
    return {
        "label": record.label, "key": record.key,
        "finished": str(p.get("finished", wording.NONE)).replace("T", " ").replace("Z", ""),
        "seconds": wording.seconds(float(p["seconds"])) if "seconds" in p else wording.NONE,
        "host": str(p.get("host", wording.NONE)),
        "git": (commit[:10] + (" + changes" if changed else "")) if commit else wording.NONE,
        "spec": json.dumps(record.spec, indent=1, ensure_ascii=False, sort_keys=True) if record.spec else "",
    }


def found_versions(stages: Iterable[StageRecord]) -> dict[str, list[str]]:
    """Every version that any stage ran with; more than one where stages differ."""
    found: dict[str, list[str]] = {}
    for record in stages:
        versions = {"platform": record.provenance.get("platform"),
                    "python": record.provenance.get("python"), **record.provenance.get("versions", {})}
        for name, version in versions.items():
            if version is not None and str(version) not in found.setdefault(name, []):
                found[name].append(str(version))
    return found


def versions(found: Iterable[Mapping[str, Sequence[str]]]) -> list[tuple[str, str]]:
    """Those of several cells together, by name."""
    every: dict[str, dict[str, None]] = {}
    for one in found:
        for name, some in one.items():
            every.setdefault(name, {}).update(dict.fromkeys(some))
    return [(name, ", ".join(some)) for name, some in sorted(every.items()) if some]
