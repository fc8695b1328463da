"""A table as data: built once, then written as HTML, Markdown, LaTeX or CSV by a room each.

Knows no format. A cell has what is shown and, apart from it, the numbers behind it at full precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from upft.report import wording as w
from upft.statistics import GAIN, LOSS, Estimate, Paired

MARKS = {GAIN: "▲", LOSS: "▼"}
"""Before a verdict; what is inside noise has none."""


@dataclass(frozen=True)
class Column:
    """key: in CSV; numeric: aligned right and sorted as numbers."""

    key: str
    label: str
    numeric: bool = True


@dataclass(frozen=True)
class Cell:
    """text: what is shown; interval: beside it; below: a second line; verdict: of the difference told there. sort: what
    the column is ordered by (a number where the column is numeric; None: last). data: columns of the CSV by suffix, "" the
    value. aside: on a page, a line before `below`, of columns that a small screen does not reach."""

    text: str
    sort: float | str | None = None
    interval: str = ""
    below: str = ""
    verdict: str = ""
    data: Mapping[str, float | str | None] = field(default_factory=dict)
    aside: str = ""


@dataclass(frozen=True)
class Row:
    """kind: base, ours or paper (published figures beside ours)."""

    cells: tuple[Cell, ...]
    kind: str = "ours"


@dataclass(frozen=True)
class Table:
    """name: of its files; title: over it; note: under it, on how to read it; folded: whether the rows' names tell model and
    data on a page (`Cell.aside`), which then have no columns there."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    folded: bool = False

    @property
    def narrow(self) -> list[int]:
        """Columns for a screen: all but a model or data that is the same in every row, which the page's title names, or that
        the rows' names tell."""
        def one(place: int) -> bool:
            return self.folded or len({row.cells[place].text for row in self.rows} - {""}) < 2

        return [place for place, column in enumerate(self.columns) if column.key not in ("model", "data") or not one(place)]


def word(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text, data={"": text})


def number(value: float | None, shown: str) -> Cell:
    """A cell of one number; None is a dash."""
    return Cell(w.NONE if value is None else shown, value, data={"": value})


def estimate(found: Estimate, paired: Paired | None = None) -> Cell:
    """An accuracy with its interval, and its difference from the base model below it."""
    data: dict[str, float | str | None] = {"": found.value, "low": found.low, "high": found.high}
    if paired is None:
        return Cell(w.points(found.value), found.value, w.interval(found.low, found.high), data=data)
    data |= {"difference": paired.difference, "difference_low": paired.low, "difference_high": paired.high,
             "p_value": paired.p_value, "verdict": paired.verdict}
    below = f"{w.signed(paired.difference)} {w.interval(paired.low, paired.high)}"
    return Cell(w.points(found.value), found.value, w.interval(found.low, found.high), below, paired.verdict, data)


def marked(verdict: str) -> str:
    """`▲ gain`, `▼ loss`, `inside noise`."""
    return f"{MARKS[verdict]} {verdict}" if verdict in MARKS else verdict
