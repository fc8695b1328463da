"""A report as Markdown (GitHub's): tables, sections, answers side by side, specs.

Whatever a model or a data set says is escaped: it is shown and never obeyed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from upft.report import wording as w
from upft.report.table import Cell, Table, marked

if TYPE_CHECKING:
    from upft.report.analyses import Section
    from upft.report.evidence import Answer
    from upft.report.figures import Drawn
    from upft.report.page import Pair

LONGEST = 600
"""Characters of a completion or question to show; the middle of a longer one is left out and counted."""
LINKS = {"://": ":&#47;&#47;", "www.": "www&#46;", "@": "&#64;", "$": "&#36;"}
"""What GitHub makes links, names and formulas of, without a sign that a backslash would take its meaning from."""


def table(one: Table) -> str:
    """Title, pipe table, note."""
    ruled = ["---:" if column.numeric else "---" for column in one.columns]
    lines = [[escaped(column.label) for column in one.columns], ruled,
             *([_cell(cell, row.kind == "paper") for cell in row.cells] for row in one.rows)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"\n\n{escaped(one.note)}" if one.note else ""
    return f"### {escaped(one.title)}\n\n{body}{note}\n"


def section(one: Section, figures: Mapping[str, Drawn]) -> str:
    """An analysis: title, sentences, figures, tables."""
    shown = [f"![{escaped(figures[name].alt)}](figures/{name}.svg)\n\n{escaped(caption)}" for name, caption in one.figures
             if name in figures]
    return "\n\n".join([f"## {escaped(one.title)}", *(escaped(text) for text in one.text), *shown,
                        *(table(each).rstrip() for each in one.tables)]) + "\n"


def examples(title: str, pairs: Sequence[Pair], method: str, prefix_len: int | None) -> str:
    """Questions with an answer of each model, the first tokens bold where they are known."""
    bold = (f" Bold: the first {w.tokens(prefix_len)}, the length of the prefixes the model was trained on."
            if prefix_len is not None else "")
    head = (f"### {escaped(title)}\n\nQuestions that one model answered right and the other wrong, gains and losses in turn, "
            f"in the order of a hash of the question.{bold}\n")
    return head + "".join("\n" + "\n".join(f"> {line}" for line in (
        f"Question: {_said(pair.question)}<br>Gold answer: {_said(pair.gold)}", "",
        f"- {_answer('base', pair.base, pair.beginnings[0])}",
        f"- {_answer(method, pair.trained, pair.beginnings[1])}")) + "\n" for pair in pairs)


def _answer(name: str, one: Answer, beginning: str) -> str:
    what = "✓ right" if one.right else "✗ wrong"
    given = "no answer" if one.extracted is None else f"answered {_said(one.extracted)}"
    cut = ", unfinished" if one.finish_reason == "length" else ""
    bold = beginning.rstrip()  # a space at its end goes to what follows, where it is kept
    start = f"<strong>{_said(bold)}</strong>" if bold else ""
    return f"{escaped(name)}, {what}, {given}{cut}:<br>{start}{_said(one.completion[len(bold):])}"


def _said(text: str) -> str:
    """What a model or a data set says, on one line of the file and with its own line ends, shortened."""
    lost = len(text) - LONGEST
    if lost > 0:
        text = f"{text[:LONGEST * 3 // 5]} … {w.count(lost)} characters … {text[-LONGEST * 2 // 5:]}"
    space = {" ": " ", "\n": "<br>"}.get(text[:1], "")  # after a beginning in bold
    return space + "<br>".join(filter(None, (harmless(line) for line in text.splitlines())))


def harmless(text: str) -> str:
    """`escaped`, and nothing in it becomes a link, a name or a formula."""
    text = escaped("".join(sign if sign.isprintable() or sign.isspace() else "\ufffd" for sign in text))
    for sign, instead in LINKS.items():
        text = re.sub(re.escape(sign), instead, text, flags=re.IGNORECASE)
    return text


def folded(title: str, text: str) -> str:
    """A block of text as it is, folded away."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"<details><summary>{escaped(title)}</summary>\n\n{fence}\n{text}\n{fence}\n\n</details>\n"


def _cell(cell: Cell, published: bool) -> str:
    head = escaped(" ".join(part for part in (cell.text, cell.interval) if part))
    if published and cell.text:
        head = f"*{head}*"
    tail = [part for part in (cell.below, marked(cell.verdict)) if part]
    return f"{head}<br>{escaped(', '.join(tail))}" if tail else head


def escaped(text: str) -> str:
    """Text that Markdown and HTML take for nothing else, on one line."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]#~])", r"\\\1", " ".join(text.split()))
