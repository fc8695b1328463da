"""A table as Markdown (GitHub's)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from upft.report.table import Cell, Table, marked

if TYPE_CHECKING:
    from upft.report.analyses import Section
    from upft.report.figures import Drawn


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
