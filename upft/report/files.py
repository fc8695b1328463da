"""A report's tables and figures as files: `tables/NAME.tex` and `.csv`, `figures/NAME.svg` and `.pdf`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from upft.report import latex, spreadsheet
from upft.report.figures import Drawn
from upft.report.table import Table


def write(out: Path, tables: Sequence[Table], figures: Mapping[str, Drawn]) -> None:
    """Write them below `out`; those of an earlier report there go. Raises OSError."""
    for name in ("tables", "figures"):
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
    for table in tables:
        (out / "tables" / f"{table.name}.tex").write_text(latex.table(table), encoding="utf-8")
        (out / "tables" / f"{table.name}.csv").write_text(spreadsheet.table(table), encoding="utf-8")
    for name, figure in figures.items():
        (out / "figures" / f"{name}.svg").write_bytes(figure.svg)
        (out / "figures" / f"{name}.pdf").write_bytes(figure.pdf)
