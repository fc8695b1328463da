"""The artifacts of continuing and grading, read side by side: traces cut at lengths, and what became of them.

Floor 3: JSON lines in, `analyses.branching.Point` out. Holds a number a prefix.
"""

from __future__ import annotations

from pathlib import Path

from upft import traces
from upft.analyses.branching import Point


def read(branches: Path, grades: Path) -> list[Point]:
    """One point a trace and length. Raises DataError where the files do not fit together."""
    right: dict[str, float] = {}
    for prefix in traces.read(branches, grades):
        right[prefix.id] = sum(bool(trace.right) for trace in prefix.traces) / len(prefix.traces)
    return [Point(row["question"], row["trace"], row["t"], row["right"], row["ended"], right[row["prefix"]])
            for row in traces.lines(branches / "points.jsonl")]
