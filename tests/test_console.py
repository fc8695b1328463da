"""What a log file sees of a long stage."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from upft import console as room
from upft.console import Console


def test_a_log_file_gets_counts_rates_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(rich=RichConsole(file=out, width=140, highlight=False))
    with console.bar("sampling", 30_000, "questions") as bar:
        now[0] += 5
        bar.advance(10, tokens=320)
        assert out.getvalue() == "", "a line every ten seconds is enough"
        now[0] += 15
        bar.advance(90, tokens=2880)
    assert out.getvalue() == "  sampling: 100/30000 5.0 questions/s, 160 tokens/s, 1:39:40 left\n"


def test_a_quiet_console_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PLAIN_EVERY_S", 0.0)
    out = io.StringIO()
    with Console(quiet=True, rich=RichConsole(file=out)).bar("sampling", 3, "questions") as bar:
        bar.advance(1)
    assert out.getvalue() == ""
