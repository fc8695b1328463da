"""What a task asks: the wording around a question, its options, and the answer that counts as right.

Floor 3: text in, text out. Options stand in an order that a hash of the question decides: the same in every file, run and
process, so that a letter means the same wherever answers are compared, and over many questions the right option stands
equally often at each letter. Knows no model and no chat template.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS

from upft import grading
from upft.choices import AnswerKind
from upft.datasets import Questions
from upft.errors import DataError


@dataclass(frozen=True)
class Item:
    """One question as it is asked. id: of the question itself, whatever is said around it; gold: what is right, a letter
    where options are shown."""

    id: str
    text: str
    gold: str
    kind: AnswerKind


def items(questions: Questions, wording: str, kind: AnswerKind) -> list[Item]:
    """Every question of a task as it is asked. Raises DataError for a question that cannot be graded."""
    found = []
    for question in questions.rows:
        if question.answer is None:
            raise DataError(f"{questions.name}: question {question.id} has no gold answer",
                            "name the column of gold answers (eval.tasks.NAME.answer_field), or fill the row")
        text, gold = wording, question.answer
        if question.wrong:
            shown, gold = lettered(question.id, gold, question.wrong)
            text = text.replace("{options}", shown)
        try:
            grading.check(gold, kind)
        except grading.GoldError as error:
            raise DataError(f"{questions.name}, question {question.id}: {error.what}", error.remedy) from error
        found.append(Item(question.id, text.replace("{question}", question.text), gold, kind))
    return found


def lettered(question_id: str, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """(the options, a line each: `(A) text`; the letter of the right one).

    Sorted by a hash of question and option, so where an option stands depends on nothing else. Raises DataError for more
    options than letters.
    """
    if len(wrong) >= len(LETTERS):
        raise DataError(f"question {question_id} has {len(wrong) + 1} options", f"give at most {len(LETTERS)}")
    order = sorted((right, *wrong), key=lambda option: hashlib.blake2b(f"{question_id}\n{option}".encode()).digest())
    lines = [f"({letter}) {' '.join(option.split())}" for letter, option in zip(LETTERS, order, strict=False)]
    return "\n".join(lines), LETTERS[order.index(right)]
