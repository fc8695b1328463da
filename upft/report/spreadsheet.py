"""A table as CSV: a column a number, at full precision; intervals and differences in columns of their own."""

from __future__ import annotations

import csv
import io

from upft.report.table import Table


def table(one: Table) -> str:
    """RFC 4180 with a header. `source` tells base, ours and paper apart; shares are from 0 to 1; an empty field is unknown."""
    suffixes = [list(dict.fromkeys(suffix for row in one.rows for suffix in row.cells[place].data)) or [""]
                for place in range(len(one.columns))]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["source", *(f"{column.key}_{suffix}" if suffix else column.key
                                 for column, found in zip(one.columns, suffixes, strict=True) for suffix in found)])
    for row in one.rows:
        writer.writerow([row.kind, *(_field(cell.data.get(suffix))
                                     for cell, found in zip(row.cells, suffixes, strict=True) for suffix in found)])
    return out.getvalue()


def _field(value: float | str | None) -> str:
    """A text that a spreadsheet would take for a formula is quoted."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return repr(value)
