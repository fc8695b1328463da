"""One style for everything a person sees while a run goes on: lines, warnings, progress bars.

Floor 0: rich only. On a terminal bars are live; elsewhere (a log file, a cluster) a plain line appears every
few seconds instead and colours are off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class Bar:
    """A running count with a rate; `advance` may carry more fields to show, such as loss=0.31."""

    def __init__(self, console: Console, label: str, total: int | None, unit: str) -> None:
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._done, self._tokens = 0, 0
        self._began = self._last = time.monotonic()
        self._live: Progress | None = None
        self._task: TaskID | None = None
        if console.live:
            self._live = Progress(
                TextColumn("  {task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"), TimeRemainingColumn(compact=True),
                console=console.rich, transient=True)
            self._live.start()
            self._task = self._live.add_task(label, total=total, info="")

    def advance(self, count: int = 1, tokens: int = 0, **info: float | str) -> None:
        """`count` more units are done, which took or gave `tokens` tokens."""
        self._done += count
        self._tokens += tokens
        now = time.monotonic()
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=count, info=self._rates(now, info))
        elif now - self._last >= PLAIN_EVERY_S:
            self._last = now
            of = f"/{self._total}" if self._total is not None else ""
            self._console.say(f"  {self._label}: {self._done}{of} {self._rates(now, info)}")

    def _rates(self, now: float, info: dict[str, float | str]) -> str:
        seconds = max(now - self._began, 1e-6)
        parts = [f"{self._done / seconds:.1f} {self._unit}/s"]
        if self._tokens:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        if self._live is None and self._total is not None and 0 < self._done < self._total:  # a live bar has its own
            left = (self._total - self._done) * seconds / self._done
            parts.append(f"{int(left) // 3600}:{int(left) // 60 % 60:02}:{int(left) % 60:02} left")
        parts += [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()]
        return ", ".join(parts)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Console:
    """Where a run speaks. `quiet` keeps only warnings."""

    def __init__(self, quiet: bool = False, rich: RichConsole | None = None) -> None:
        self.rich = rich or _plain()
        self.quiet = quiet

    @property
    def live(self) -> bool:
        """Whether bars can be drawn in place."""
        return self.rich.is_terminal and not self.quiet

    def say(self, text: object = "") -> None:
        """One line, or any rich renderable."""
        if not self.quiet:
            self.rich.print(text)

    def warn(self, text: str) -> None:
        """Something the user should know, on standard error."""
        _plain(stderr=True).print(f"[yellow]warning:[/] {text}")

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """A progress bar for the time of a `with` block."""
        bar = Bar(self, label, total, unit)
        try:
            yield bar
        finally:
            bar.close()


def _plain(stderr: bool = False) -> RichConsole:
    """A rich console; a log file has no width, so tables there get enough to stay whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 140
    return RichConsole(stderr=stderr, highlight=False, soft_wrap=True, width=width)
