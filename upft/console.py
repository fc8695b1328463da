"""One style for everything a person sees while a run goes on: lines, warnings, progress bars.

Floor 0: rich only. On a terminal bars are live; elsewhere (a log file, a cluster) a plain line appears every
few seconds instead and colours are off, as they are where NO_COLOR is set. With run.console=json each of these is one JSON
object a line: `time` (UTC), `level` (info, warning, progress, error), `text`; progress has its numbers beside it.

Text is plain: brackets and colons in it (a path, a question, an override) are shown as they stand. Rich's markup is read where
`markup=True` asks for it; what comes from data is then escaped by the caller.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from upft.choices import Style

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
                TextColumn("  {task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
                TextColumn("{task.fields[info]}", markup=False), TimeRemainingColumn(compact=True),
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
            self._console.progress(f"  {self._label}: {self._done}{of} {self._rates(now, info)}", self._numbers(now, info))

    def _numbers(self, now: float, info: dict[str, float | str]) -> dict[str, float | str | None]:
        """What a line of progress says, for a program to read."""
        seconds = max(now - self._began, 1e-6)
        left = None if self._total is None or not self._done else (self._total - self._done) * seconds / self._done
        return {"what": self._label, "done": self._done, "total": self._total, "unit": self._unit,
                "per_s": self._done / seconds, "tokens_per_s": self._tokens / seconds if self._tokens else None,
                "left_s": left, **info}

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
    """Where a run speaks. style: see `upft.choices.Style`; quiet: that style; rich: writes somewhere else."""

    def __init__(self, style: Style = Style.auto, *, quiet: bool = False, rich: RichConsole | None = None) -> None:
        self.style = Style.quiet if quiet else style
        self.rich = rich or _plain(style=self.style)

    @property
    def quiet(self) -> bool:
        """Whether only warnings are told."""
        return self.style is Style.quiet

    @property
    def live(self) -> bool:
        """Whether bars can be drawn in place."""
        return self.style is Style.auto and self.rich.is_terminal and not self.rich.is_dumb_terminal

    def say(self, text: object = "", *, markup: bool = False) -> None:
        """One line, or any rich renderable. markup: read it in strings, those of a table's cells included."""
        if self.style is Style.json:
            self._object(self.rich, "info", self._read(text, markup))
        elif not self.quiet:
            self.rich.print(text, markup=markup, emoji=False)

    def progress(self, text: str, numbers: dict[str, float | str | None]) -> None:
        """How far something is, where no bar can be drawn."""
        if self.style is Style.json:
            self._object(self.rich, "progress", text.strip(), numbers)
        else:
            self.say(text)

    def warn(self, text: str) -> None:
        """Something the user should know, on standard error."""
        out = _plain(stderr=True, style=self.style)
        if self.style is Style.json:
            self._object(out, "warning", text)
        else:
            out.print(Text.assemble(("warning:", "yellow"), " ", text))

    def _read(self, text: object, markup: bool) -> str:
        """What a person would read, without markup and colours."""
        with self.rich.capture() as read:
            self.rich.print(text, markup=markup, emoji=False)
        return "\n".join(line.rstrip() for line in read.get().splitlines()).strip()

    def _object(self, out: RichConsole, level: str, text: str, more: dict[str, float | str | None] | None = None) -> None:
        if text:
            out.file.write(line(level, text, more))
            out.file.flush()

    @contextmanager
    def bar(self, label: str, total: int | None, unit: str) -> Iterator[Bar]:
        """A progress bar for the time of a `with` block."""
        bar = Bar(self, label, total, unit)
        try:
            yield bar
        finally:
            bar.close()


def line(level: str, text: str, more: Mapping[str, float | str | None] | None = None) -> str:
    """One JSON object, as run.console=json writes them."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": stamp, "level": level, "text": text, **(more or {})}) + "\n"


def _plain(stderr: bool = False, style: Style = Style.auto) -> RichConsole:
    """A rich console; a log file has no width, so tables there get enough to stay whole. Plain and JSON have no colours,
    whatever FORCE_COLOR says; else rich decides (NO_COLOR, TERM, the terminal)."""
    stream = sys.stderr if stderr else sys.stdout
    bare = style in (Style.plain, Style.json)
    width = None if stream.isatty() and not bare else 140
    return RichConsole(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width,
                       color_system=None if bare else "auto", force_terminal=False if bare else None)
