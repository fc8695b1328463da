"""`python -m upft.grade`: what it finds, writes and says of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from upft import grade

ROOT = Path(__file__).parents[2]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode())
                              + b"\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_graded_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "a.jsonl", [
        {"id": 1, "response": r"\boxed{x+1}", "answer": "1+x", "mine": 7}, {"id": 2, "response": "it is 4", "answer": "5"},
        {"id": 3, "response": "no idea", "answer": "5"}])
    grade.main([str(file), "--out", str(tmp_path / "out.jsonl")])
    assert read(tmp_path / "out.jsonl") == [
        {"id": 1, "response": r"\boxed{x+1}", "answer": "1+x", "mine": 7,
         "extracted": "x+1", "right": True, "reason": "math-verify"},
        {"id": 2, "response": "it is 4", "answer": "5", "extracted": "4", "right": False, "reason": "another number"},
        {"id": 3, "response": "no idea", "answer": "5", "extracted": None, "right": False, "reason": "no answer"}]
    said = capsys.readouterr().out
    assert "33.33" in said
    assert said.split("no answer")[1].split()[0] == "1"


def test_samples_of_a_question_are_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "a.jsonl", [{"question": q, "completions": [f"it is {n}" for n in (q, q, q, 9)], "gold": str(q)}
                                        for q in (1, 2)])
    spread = lines(tmp_path / "b.jsonl", [{"question": q, "completion": f"it is {n}", "gold": str(q)}
                                          for q in (1, 2) for n in (q, q, q, 9)])
    tables = []
    for path in (file, spread):
        grade.main([str(path), "--out", str(tmp_path / "out.jsonl")])
        tables.append(capsys.readouterr().out.splitlines()[1:-1])
        assert [row["right"] for row in read(tmp_path / "out.jsonl")] == [True, True, True, False] * 2
    assert tables[0] == tables[1]
    assert "4 answer(s) each" in "\n".join(tables[0])
    assert "75.00" in "\n".join(tables[0])


def test_another_graders_verdicts_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "a.jsonl", [{"m": {"text": f"it is {n}", "ok": ok}, "gold": "5"}
                                        for n, ok in ((5, True), (5, False), (4, "false"), (4, 1), (5, "correct"))])
    grade.main([str(file), "--completion", "m.text", "--verdict", "m.ok"])
    said = capsys.readouterr().out
    assert "60.00%" in said
    counts = [said.split(label)[1].split()[0] for label in ("both right", "both wrong", "by ours only", "by theirs only")]
    assert counts == list("2111")
    assert [(row["m"]["ok"], row["right"]) for row in read(tmp_path / "a.disagreements.jsonl")] == [(False, True), (1, False)]


def test_thoughts_opened_by_the_prompt_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "a.jsonl", [{"completion": "5?</think> It is 5", "gold": "5"},
                                        {"completion": "it is 5, but", "gold": "5"}])
    grade.main([str(file), "--out", str(tmp_path / "out.jsonl")])
    assert [row["right"] for row in read(tmp_path / "out.jsonl")] == [True, False]
    assert "opened by the prompt" in capsys.readouterr().out
    grade.main([str(file), "--out", str(tmp_path / "out.jsonl"), "--thoughts", "shown"])
    assert [row["right"] for row in read(tmp_path / "out.jsonl")] == [True, True]


def test_gold_answers_stand_in_several_ways(tmp_path: Path) -> None:
    for fmt, gold in (("gsm8k", "2+3\n#### 5"), ("boxed", r"so \boxed{5}"), (None, "work\n#### 5"), (None, r"\boxed{5}"),
                      ("extract", "work\nA: 5"), ("plain", 5)):
        file = lines(tmp_path / "a.jsonl", [{"completion": "5", "gold": gold}])
        grade.main([str(file), "--out", str(tmp_path / "o"), *(["--gold-format", fmt] if fmt else [])])
        assert read(tmp_path / "o")[0]["right"], fmt


GOOD = {"completion": "it is 5", "gold": "5"}


@pytest.mark.parametrize(("rows", "more", "named"), [
    ([], [], ["is empty"]),
    (["{"], [], ["line 1 is not JSON"]),
    ([GOOD, "[" * 100_000], [], ["line 2 is not JSON"]),
    ([GOOD, b'{"completion": "caf\xe9", "gold": "5"}'], [], ["line 2 is not in UTF-8", "save the file as UTF-8"]),
    ([GOOD, "[1]"], [], ["line 2 holds a list"]),
    ([GOOD, {"completion": "5"}], [], ["line 2 has no field 'gold'"]),
    ([GOOD, {"completion": "5", "golt": "5"}], [], ["line 2", "'gold'", "did you mean 'golt'?"]),
    ([GOOD, {"completion": "5", "gold": None}], [], ["line 2", "'gold' is null"]),
    ([GOOD, {"completion": "5", "gold": " "}], [], ["line 2", "'gold' has no gold answer"]),
    ([GOOD, {"completion": {}, "gold": "5"}], [], ["line 2", "'completion' holds a dict"]),
    ([{"said": "5", "gold": "5"}], [], ["line 1", "the completion", "--completion", "gold, said"]),
    ([GOOD], ["--completion", "complexion"], ["no field 'complexion'", "did you mean 'completion'?"]),
    ([GOOD], ["--kind", "choice"], ["line 1", "no option letter"]),
    ([GOOD], ["--gold-format", "gsm8k"], ["line 1", "####"]),
    ([GOOD | {"ok": "maybe"}], ["--verdict", "ok"], ["line 1", "'maybe'"]),
    ([GOOD], ["--workers", "0"], ["--workers=0"]),
    ([GOOD], ["--limit-s", "-1"], ["--limit-s=-1"]),
    ([GOOD], ["--out", "/proc/none/x"], ["/proc/none/x cannot be written"]),
])
def test_bad_input_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Any], more: list[str],
                                  named: list[str]) -> None:
    file = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as caught:
        grade.main([str(file), *more])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert [part for part in named if part not in said] == []
    assert said.startswith("error: ")
    assert "remedy: " in said


def test_a_byte_order_mark_and_half_a_character_are_no_obstacle(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", [b'\xef\xbb\xbf{"completion": "it is 5 \\ud83d", "gold": "5"}'])
    grade.main([str(file), "--out", str(tmp_path / "o")])
    assert [(row["right"], row["completion"]) for row in read(tmp_path / "o")] == [(True, "it is 5 \ud83d")]


def test_help_needs_nothing_heavy() -> None:
    script = ("import sys\nfrom upft.grade import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
              "print([m for m in ('torch', 'sympy', 'math_verify', 'numpy', 'rich', 'hydra') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--verdict" in done.stdout
