r"""A table as LaTeX with booktabs: a `tabular` and its note below, to be \input into a table of the reader's own."""

from __future__ import annotations

import re
import unicodedata

from upft.report.table import Cell, Column, Table
from upft.statistics import GAIN, LOSS, NOISE

SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "−": r"$-$", "—": "---", "–": "--", "…": r"\ldots{}", "×": r"$\times$",
    "→": r"$\rightarrow$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "\u00a0": "~", "‖": r"$\Vert$",
    "≈": r"$\approx$", "“": "``", "”": "''", "’": "'", "`": r"\textasciigrave{}",
}
"""What TeX takes for a command, and what its fonts lack. Symbols need amssymb; nothing needs another encoding than TeX's first
(OT1, which has no \\textquotedbl)."""
NARROW = 9
"""Characters of a line of a heading, as many as most numbers have."""
LIGATURES = re.compile(r"-(?=-)|'(?=')|,(?=,)|<(?=<)|>(?=>)|[?!](?=`)")
"""Signs that fonts join with the next one."""
VERDICTS = {GAIN: r"$^{\blacktriangle}$", LOSS: r"$^{\blacktriangledown}$", NOISE: r"$^{\mathrm{ns}}$"}
LEGEND = " ".join((VERDICTS[GAIN], "gain,", VERDICTS[LOSS], "loss,", VERDICTS[NOISE], "inside noise."))
"""What the marks mean; in the note where a table has any."""


def table(one: Table) -> str:
    r"""The tabular, over it what it needs and its title as comments, under it the note as a paragraph. A difference stands in
    a line of its own in each cell."""
    spec = "".join("r" if column.numeric else "l" for column in one.columns)
    head = " & ".join(_head(column) for column in one.columns)
    lines = [f"% {_plain(one.title)}", r"% needs \usepackage{booktabs,amssymb,textcomp}",
             f"\\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule", f"{head} \\\\", r"\midrule"]
    for row in one.rows:
        cells = [_cell(cell, row.kind == "paper") for cell in row.cells]
        lines.append(" & ".join(cells) + r" \\")
        if any(cell.below for cell in row.cells):
            lines.append(" & ".join(_below(cell) for cell in row.cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    legend = LEGEND if any(cell.below and cell.verdict in VERDICTS for row in one.rows for cell in row.cells) else ""
    if note := " ".join(part for part in (escaped(one.note), legend) if part):
        lines.append(f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\footnotesize\\raggedright {note}}}")
    return "\n".join(lines) + "\n"


def _head(column: Column) -> str:
    """On several lines where it is long and has spaces, so that it is not wider than the numbers under it."""
    lines: list[str] = []
    for part in column.label.split():
        if lines and len(lines[-1]) + len(part) < NARROW:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    if len(lines) < 2:
        return escaped(column.label)
    side, stacked = "r" if column.numeric else "l", r" \\ ".join(map(_group, lines))
    return f"\\shortstack[{side}]{{{stacked}}}"


def _cell(cell: Cell, published: bool) -> str:
    text = escaped(cell.text)
    if published and text:
        text = f"\\emph{{{text}}}"
    text = _group(text, done=True)
    return f"{text} {{\\scriptsize {_group(cell.interval)}}}" if cell.interval else text


def _below(cell: Cell) -> str:
    return f"{{\\scriptsize {_group(cell.below)}{VERDICTS.get(cell.verdict, '')}}}" if cell.below else ""


def _group(text: str, done: bool = False) -> str:
    r"""A cell that begins with [ would be an argument of the \\ before it."""
    text = text if done else escaped(text)
    return f"{{}}{text}" if text.lstrip().startswith(("[", "*")) else text


def escaped(text: str) -> str:
    """Text as TeX prints it, on one line. Letters that are not ASCII's lose their accents; of what then is none the code
    point stands there, for not every engine has a font for it."""
    text = LIGATURES.sub(lambda first: f"{first[0]}\0", text.replace("\0", " "))
    return "".join("{}" if sign == "\0" else SIGNS[sign] if sign in SIGNS else " " if sign.isspace() else
                   sign if sign.isascii() and sign.isprintable() else escaped(_ascii(sign)) for sign in text)


def _ascii(sign: str) -> str:
    found = "".join(part for part in unicodedata.normalize("NFKD", sign) if part.isascii() and part.isprintable())
    return found or f"[U+{ord(sign):04X}]"


def _plain(text: str) -> str:
    """For a comment: ASCII, on one line."""
    named = {"−": "-", "–": "-", "—": "--", "“": '"', "”": '"', "’": "'", "×": "x", "→": "->", "▲": "gain", "▼": "loss",
             "‖": "||", "…": "...", "≈": "~"}
    text = " ".join(text.split())
    return "".join(named.get(sign, sign if sign.isascii() and sign.isprintable() else _ascii(sign)) for sign in text)
