"""Grading on real data: every published solution must be graded right against its own gold answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from upft.choices import AnswerFormat
from upft.grading import extract, gold, grade

pytestmark = pytest.mark.real


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    with (folder / name).open() as lines:
        return [json.loads(line) for line in lines]


def test_gsm8k_solutions(real_data: Path) -> None:
    found = [(row, gold(row["answer"], AnswerFormat.gsm8k)) for row in rows(real_data, "gsm8k/test.jsonl")]
    assert len(found) == 1319
    assert [key for row, key in found if not grade(row["answer"], key).right] == []
    assert [key for row, key in found if not key.lstrip("-").isdigit()] == []


def test_gsm8k_answers_of_other_questions_are_wrong(real_data: Path) -> None:
    found = rows(real_data, "gsm8k/test.jsonl")
    golds = [gold(row["answer"], AnswerFormat.gsm8k) for row in found]
    for row, other in zip(found, golds[1:] + golds[:1], strict=True):
        own = gold(row["answer"], AnswerFormat.gsm8k)
        assert grade(row["answer"], other).right == (int(own) == int(other))


def test_math500_solutions(real_data: Path) -> None:
    found = rows(real_data, "math500/test.jsonl")
    assert len(found) == 500
    for row in found:
        assert grade(row["solution"], gold(row["solution"], AnswerFormat.boxed)).right
        verdict = grade(row["solution"], row["expected_answer"])  # the same answer, spelt by somebody else
        assert verdict.right, (row["expected_answer"], verdict)


def test_math500_answers_of_other_questions_are_wrong(real_data: Path) -> None:
    found = rows(real_data, "math500/test.jsonl")
    accepted = []
    for row, other in zip(found, found[1:] + found[:1], strict=True):
        if grade(row["solution"], other["expected_answer"]).right:
            accepted.append((extract(row["solution"]), other["expected_answer"]))
    assert all(left == right for left, right in accepted), accepted  # neighbours that have one answer


def test_aime24_solutions(real_data: Path) -> None:
    found = rows(real_data, "aime24/test.jsonl")
    assert len(found) == 30
    wrong = [(row["answer"], grade(row["solution"], row["answer"])) for row in found
             if not grade(row["solution"], row["answer"]).right]
    assert wrong == []


MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@pytest.mark.slow
def test_gsm8k_model_solutions_agree_with_the_published_verdicts(real_data: Path, tmp_path: Path) -> None:
    """github.com/openai/grade-school-math, grade_school_math/data/example_model_solutions.jsonl: a question a row, four
    models' solutions with the authors' own `is_correct`."""
    name = "gsm8k/example_model_solutions.jsonl"
    if not (real_data / name).exists():
        pytest.skip(f"{name} is not in the folder of real data")
    same = total = 0
    apart = []
    for row in rows(real_data, name):
        key = extract(row["ground_truth"])
        assert key is not None
        for model in MODELS:
            verdict = grade(row[model]["solution"], key)
            total += 1
            same += verdict.right == row[model]["is_correct"]
            if verdict.right != row[model]["is_correct"]:
                apart.append((model, row[model]["solution"][-60:], key, verdict))
    assert total == 4 * 1319
    assert same / total >= 0.995, apart
