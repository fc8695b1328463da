"""What a log file sees of a long stage."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console as RichConsole
from rich.table import Table

from upft import console as room
from upft.choices import Style
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


def test_json_has_an_object_a_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(Style.json)
    console.say("  [green]done[/] sample \\[arithmetic]", markup=True)
    console.say()
    table = Table("task", "base")
    table.add_row("gsm8k", "[red]12.5[/]")
    console.say(table, markup=True)
    console.warn("low on \"disk\"")
    with console.bar("train", 40, "steps") as bar:
        now[0] += 20
        bar.advance(10, tokens=2000, loss=0.5)
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [(line["level"], line["text"]) for line in (lines[0], lines[2])] == [
        ("info", "done sample [arithmetic]"), ("progress", "train: 10/40 0.5 steps/s, 100 tokens/s, 0:01:00 left, loss 0.5")]
    words = [part for part in lines[1]["text"].split() if part.isascii()]
    assert words == ["task", "base", "gsm8k", "12.5"]
    numbers = {k: v for k, v in lines[2].items() if k not in ("time", "level", "text")}
    assert numbers == {"what": "train", "done": 10, "total": 40, "unit": "steps", "per_s": 0.5, "tokens_per_s": 100.0,
                       "left_s": 60.0, "loss": 0.5}
    warned, = (json.loads(line) for line in said.err.splitlines())
    assert (warned["level"], warned["text"]) == ("warning", 'low on "disk"')
    assert "\x1b" not in said.out + said.err
    for line in (*lines, warned):
        assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 3600


@pytest.mark.parametrize(("style", "environment", "coloured", "live"), [
    (Style.auto, {}, True, True),
    (Style.auto, {"NO_COLOR": "1"}, False, True),
    (Style.auto, {"TERM": "dumb"}, False, False),
    (Style.plain, {}, False, False),
    (Style.plain, {"FORCE_COLOR": "1"}, False, False),
])
def test_colours_and_bars_on_a_terminal(style: Style, environment: dict[str, str], coloured: bool, live: bool) -> None:
    """In a process of its own, on a pseudo-terminal."""
    code = ("import sys; from upft.console import Console; from upft.choices import Style\n"
            f"c = Console(Style.{style.name}); c.say('[green]done[/]', markup=True); c.warn('low')\n"
            "sys.stdout.write(f'live={c.live}')")
    ours, theirs = pty.openpty()
    known = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs,
                               env={**known, "TERM": "xterm-256color", **environment})
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"done" in said
    assert (b"\x1b[3" in said) == coloured
    assert (b"live=True" in said) == live


@pytest.mark.parametrize("style", [Style.auto, Style.plain, Style.quiet])
def test_no_terminal_no_colours(style: Style, capsys: pytest.CaptureFixture) -> None:
    console = Console(style)
    console.say("[green]done[/]", markup=True)
    console.warn("low")
    said = capsys.readouterr()
    assert said.out == ("" if style is Style.quiet else "done\n")
    assert said.err == "warning: low\n"
    assert not console.live


DATA = "[abc] \\[x] [/nowhere] [red]7[/red] :smile: [link=file:///etc] data.path=runs[1]/a.jsonl"
"""What rich would read as markup: tags that vanish, one that closes nothing (an error), a name of an emoji."""


@pytest.mark.parametrize("style", [Style.auto, Style.plain, Style.json])
def test_text_from_data_is_shown_as_it_stands(style: Style, capsys: pytest.CaptureFixture) -> None:
    console = Console(style)
    table = Table("path", title=DATA)
    table.add_row(DATA)
    console.say(DATA)
    console.warn(DATA)
    console.say(table)
    said = capsys.readouterr()
    if style is Style.json:
        line, shown = (json.loads(line)["text"] for line in said.out.splitlines())
        warned = json.loads(said.err)["text"]
    else:
        line, shown = said.out.split("\n", 1)
        warned = said.err.removeprefix("warning: ").rstrip("\n")
    assert line == warned == DATA
    assert shown.count(DATA) == 2, "the title and the cell"


def test_a_bars_label_is_shown_as_it_stands() -> None:
    out = io.StringIO()
    rich = RichConsole(file=out, force_terminal=True, width=200, color_system=None, _environ={"TERM": "xterm"})
    with Console(rich=rich).bar(DATA, 3, "steps") as bar:
        bar.advance(1, note="[abc]")
    assert f"  {DATA} " in out.getvalue()
    assert "note [abc]" in out.getvalue()


def test_markup_is_asked_for_wherever_it_is_written() -> None:
    """A tag in a string that is said plainly would be shown; so every room with tags asks for them to be read."""
    rooms = [path for path in Path(room.__file__).parent.rglob("*.py") if re.search(r"\[/\]", path.read_text())]
    assert rooms
    for path in rooms:
        assert "markup=True" in path.read_text(), path
