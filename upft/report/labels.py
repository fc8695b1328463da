"""Words beside the points of a figure, so that none covers another word, a point or the edge.

Knows matplotlib's axes and nothing of what the points are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upft.report.figures import INK, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SIZE = 7.5
"""Points, of the font."""
MARK = 3.6
"""Points from the middle of a marker to where words may begin."""
TOGETHER = 4.5
"""Points by which two markers may be apart and still share their words: three quarters of a marker."""
CLEAR = 1.5
"""Points between two names: a page's own font may be a little wider."""
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Directions from a point to its words, the best first."""
ALIGNED = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True)
class Point:
    """x, y: data coordinates; low, high: of its error bar; name: what to write beside it, nothing where it is empty."""

    x: float
    y: float
    low: float
    high: float
    name: str


def together(axes: Axes, points: Sequence[Point]) -> list[list[int]]:
    """Places of points that the eye cannot tell apart, in the order of the first of each. The axes must have their limits."""
    at = _pixels(axes, points)
    reach = TOGETHER * _scale(axes)
    found: list[list[int]] = []
    for place, (x, y) in enumerate(at):
        for group in found:
            if max(abs(x - at[group[0]][0]), abs(y - at[group[0]][1])) <= reach:
                group.append(place)
                break
        else:
            found.append([place])
    return found


def put(axes: Axes, points: Sequence[Point]) -> list[str]:
    """Write the names, the first ones first, each where it covers no point and no other name and no other point is as near as
    its own, if there is such a place, and rather beside an error bar than on it. Returns those written."""
    scale = _scale(axes)
    at = _pixels(axes, points)
    ends = [(axes.transData.transform((p.x, p.low))[1], axes.transData.transform((p.x, p.high))[1]) for p in points]
    bars = [_box(x - 0.6 * scale, low, x + 0.6 * scale, high) for (x, _), (low, high) in zip(at, ends, strict=True)]
    taken: list[Bbox] = []
    written = []
    edge = axes.get_window_extent()
    for place, point in enumerate(points):
        if not point.name:
            continue
        text = axes.annotate(point.name, (point.x, point.y), xytext=(0, 0), textcoords="offset points", fontsize=SIZE,
                             color=INK, linespacing=1.0, zorder=4,
                             bbox={"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.4})
        text.set_in_layout(False)
        best: tuple[int, int] | None = None  # (error bars crossed, place among the directions)
        for rank, (dx, dy) in enumerate(AROUND):
            box = _moved(text, dx, dy)
            own = max(1.15 * _apart(box, at[place]), (MARK + 1) * scale)
            if (not (edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1)
                    or any(box.overlaps(other.padded(CLEAR * scale)) for other in taken)
                    or any(_apart(box, other) < own for n, other in enumerate(at) if n != place)):
                continue
            crossed = sum(box.overlaps(bar) for bar in bars)
            best = min(best, (crossed, rank)) if best is not None else (crossed, rank)
        if best is None:
            text.remove()
            continue
        taken.append(_moved(text, *AROUND[best[1]]))
        written.append(point.name)
    return written


def _moved(text: Annotation, dx: int, dy: int) -> Bbox:
    """Move an annotation in that direction from its point; returns its box in pixels."""
    text.set_position(((MARK + 1) * dx, (MARK + 0.5) * dy))
    text.set(horizontalalignment=ALIGNED[0][dx], verticalalignment=ALIGNED[1][dy])
    return text.get_window_extent()


def _box(x0: float, y0: float, x1: float, y1: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(x0, y0, x1, y1)


def _apart(box: Bbox, at: tuple[float, float]) -> float:
    """Pixels from a point to a box."""
    return math.hypot(max(box.x0 - at[0], 0, at[0] - box.x1), max(box.y0 - at[1], 0, at[1] - box.y1))


def _pixels(axes: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (axes.transData.transform((p.x, p.y)) for p in points)]


def _scale(axes: Axes) -> float:
    """Pixels a point."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.dpi / 72
