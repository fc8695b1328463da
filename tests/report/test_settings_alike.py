"""What a report on many cells says of answers that a judge read, and of a method that is there in several settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import write
from stores import Setting, cell, key, rows

from upft import dossier
from upft.ledger import Ledger
from upft.report import analyses

TASK = "aime24"
UPFT = Setting(tasks=(TASK,))
RFT = Setting("rft", "RFT", None, 1.0, tasks=(TASK,))


def told(root: Path, *reports: Path) -> tuple[dict[str, Any], str]:
    """results.json and report.md."""
    dossier.write(reports, root / "out")
    return (json.loads((root / "out" / "results.json").read_text(encoding="utf-8")),
            (root / "out" / "report.md").read_text(encoding="utf-8"))


def inputs_of(report: Path, **roles: str) -> Path:
    """The report made from other artifacts. roles: `__` stands for a colon."""
    spec = json.loads((report / "spec.json").read_text())
    spec["inputs"] |= {role.replace("__", ":"): name for role, name in roles.items()}
    (report / "spec.json").write_text(json.dumps(spec))
    return report


def judged(root: Path, s: Setting, side: str) -> str:
    """A judge's look at a cell's answers: it accepts the first one that the rule calls wrong. Returns its key."""
    name = key("judged", s if side == "trained" else s.seed, side)
    answers = rows(TASK, s, s.gain) if side == "trained" else rows(TASK, ("base", s.seed), 0.0)
    for row in answers:
        row["judge"] = {"accepted": False}
    wrong = next(row for row in answers if not row["right"])
    wrong |= {"right": True, "judge": {"accepted": True}}
    if not (root / "judge" / name).is_dir():
        write(root / "judge" / name, {"scores.json": {"task": TASK, "protocol": "paper", "temperature": 0.6}},
              Ledger(seconds=1), {"answers.jsonl": answers}, {"stage": "judge", "spec": {"accept": "yes"}, "inputs": {}})
    return name


def test_a_sweep_tells_that_a_judge_read_the_answers(tmp_path: Path) -> None:
    one, other = UPFT, replace(UPFT, prefix_len=32)
    reports = [inputs_of(cell(tmp_path, s), **{f"judged__{side}__{TASK}": judged(tmp_path, s, side)
                                               for side in ("base", "trained")}) for s in (one, other)]
    found, text = told(tmp_path, *reports)
    assert [one["tasks"][TASK]["judge_accepted"] for one in (*found["bases"], *found["settings"])] == [1, 2, 2]
    assert "accepted by rule or judge (3 by the judge)" in text, "one of the base model's, which both share, and one of each"
    assert text.count("accepted by rule or judge") == text.count("Asked: ")


def test_without_a_judge_none_is_named(tmp_path: Path) -> None:
    found, text = told(tmp_path, cell(tmp_path, UPFT))
    assert "by the judge" not in text
    assert [one["tasks"][TASK]["judge_accepted"] for one in (*found["bases"], *found["settings"])] == [None, None]


def again(root: Path, **roles: str) -> Path:
    """RFT once more, evaluated on fewer questions; trained anew unless roles say otherwise."""
    report = cell(root, replace(RFT, lr=1e-5), "2026-03-02T10:04:05Z")
    spec = json.loads((report / "spec.json").read_text())["inputs"]
    for role in ("base", "trained"):
        folder = root / "evaluate" / spec[f"{role}:{TASK}"]
        name = key(folder.name, "fewer")
        rows_ = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        write(root / "evaluate" / name, {"scores.json": json.loads((folder / "scores.json").read_text())}, Ledger.read(folder),
              {"answers.jsonl": [row for row in rows_ if row["id"] < f"{TASK}010"]},
              {"stage": "evaluate", "spec": {"task": TASK, "limit": 10}, "inputs": {}})
        roles[f"{role}__{TASK}"] = name
    return inputs_of(report, **roles)


def test_one_training_evaluated_twice_is_one_cost_to_compare_with(tmp_path: Path) -> None:
    reports = [cell(tmp_path, UPFT), cell(tmp_path, RFT)]
    trained = json.loads((reports[1] / "spec.json").read_text())["inputs"]["train"]
    built = json.loads((reports[1] / "spec.json").read_text())["inputs"]["rows"]
    found, text = told(tmp_path, *reports, again(tmp_path, train=trained, rows=built))
    assert [s["method"] for s in found["settings"]] == ["RFT", "RFT", "UPFT"], "two settings"
    assert found["settings"][2]["shares"]["RFT"]["sampled"] == pytest.approx(8 / (16 * 300))
    assert "trained with several settings" not in text


def test_of_several_trainings_none_is_compared_with_and_the_note_says_so(tmp_path: Path) -> None:
    found, text = told(tmp_path, cell(tmp_path, UPFT), cell(tmp_path, RFT), again(tmp_path))
    assert [s["method"] for s in found["settings"]] == ["RFT", "RFT", "UPFT"]
    assert all("RFT" not in s["shares"] for s in found["settings"])
    assert "RFT was trained with several settings (qwen\\_math on prm12k), so no share of its cost is given." in text


def test_a_split_adds_up_as_it_is_said() -> None:
    def part(difference: float, moved: int = 3) -> dict[str, Any]:
        return {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "moved": moved}

    found = {"t": [8, 16, 32], "change": [part(0.00412), part(0.05), part(0.0, 0)],
             "coverage": [part(0.0036), part(0.05), part(0.0, 0)], "accuracy": [part(0.00052), part(0.0, 0), part(0.0, 0)]}
    assert analyses.splits(found) == [
        "Split at 8 tokens: of +0.41 [−0.6, 1.4] points, +0.36 [−0.6, 1.4] are coverage and +0.05 [−0.9, 1.1] accuracy.",
        "Split at 16 tokens: of +5.0 [4.0, 6.0] points, +5.0 [4.0, 6.0] are coverage and 0.0 (no question moved) accuracy.",
        "Split at 32 tokens: no question moved."]
