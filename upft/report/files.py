"""A report's tables and figures as files: `tables/NAME.tex` and `.csv`, `figures/NAME.svg` and `.pdf`.

A report's folder may hold other things of its owner's. Only what an earlier report wrote is ever deleted: the files that its
results.json lists, or, of a report that lists none, those whose names such a report gave.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from upft.report import latex, spreadsheet
from upft.report.figures import Drawn
from upft.report.table import Table

RESULTS = "results.json"
KINDS = {"tables": (".tex", ".csv"), "figures": (".svg", ".pdf")}
"""Folder -> endings of the files in it."""
UNLISTED = {
    "tables": re.compile(r"(unsupervised|supervised|cost|ratios|cells|(consistency|errors|coverage|acting|kl)-\d+(-\d+)?)"
                         r"\.(tex|csv)"),
    "figures": re.compile(r"(length|ratio|pareto|loss|consistency|errors|coverage|kl)-\d+\.(svg|pdf)")}
"""Names in the folder of a report on many cells of before results.json listed them. Closed: later reports list theirs."""


def names(tables: Iterable[Table], figures: Iterable[str]) -> list[str]:
    """The files that `write` writes, relative to its folder."""
    stems = {"tables": [table.name for table in tables], "figures": list(figures)}
    return sorted(f"{folder}/{stem}{ending}" for folder, endings in KINDS.items()
                  for stem in stems[folder] for ending in endings)


def write(out: Path, tables: Sequence[Table], figures: Mapping[str, Drawn]) -> None:
    """Write them below `out`. Raises OSError."""
    for name in KINDS:
        (out / name).mkdir(parents=True, exist_ok=True)
    for table in tables:
        (out / "tables" / f"{table.name}.tex").write_text(latex.table(table), encoding="utf-8")
        (out / "tables" / f"{table.name}.csv").write_text(spreadsheet.table(table), encoding="utf-8")
    for name, figure in figures.items():
        (out / "figures" / f"{name}.svg").write_bytes(figure.svg)
        (out / "figures" / f"{name}.pdf").write_bytes(figure.pdf)


def clear(out: Path) -> None:
    """Delete the tables and figures of an earlier report on many cells in `out`, and nothing else. Raises OSError."""
    for name in earlier(out):
        (out / name).unlink(missing_ok=True)


def earlier(out: Path) -> list[str]:
    """Tables and figures that an earlier report on many cells wrote into `out`, relative to it."""
    try:
        told = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(told, dict) or "schema" not in told or "source_of_published" not in told:
        return []  # somebody else's
    there = sorted(f"{folder}/{path.name}" for folder, endings in KINDS.items() if (out / folder).is_dir()
                   for path in (out / folder).iterdir() if path.suffix in endings and not path.is_dir())
    if isinstance(told.get("files"), list):
        return [name for name in there if name in told["files"]]
    return [name for name in there if UNLISTED[name.partition("/")[0]].fullmatch(name.partition("/")[2])]
