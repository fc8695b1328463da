"""A file of completions from anywhere: JSON lines, one completion (or a list of them) with its gold answer a row.

Floor 3: finds the fields, names what is wrong with line and field; knows nothing of grading but where a gold answer stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upft import grading, reading
from upft.choices import AnswerFormat, AnswerKind
from upft.errors import DataError, nearest

COMPLETIONS = ("completion", "completions", "response", "responses", "output", "outputs", "prediction", "generation",
               "generated_text", "model_output", "model_solution", "solution", "text")
GOLDS = ("gold", "gold_answer", "expected_answer", "ground_truth", "ground_truth_answer", "reference_answer", "reference",
         "target", "label", "answer")
IDS = ("id", "question_id", "problem_id", "unique_id", "question", "problem", "prompt", "input")
"""Names that are tried in this order where the user names none."""
TRUE = {"true", "right", "correct", "1", "1.0", "yes"}
FALSE = {"false", "wrong", "incorrect", "0", "0.0", "no"}


@dataclass(frozen=True)
class Fields:
    """Names of fields, dots for nested ones ("model.solution"). None: looked for in the first row (verdict: none
    there). gold_format: None = by what the first gold answers look like; "extract" = as in a completion."""

    completion: str | None = None
    gold: str | None = None
    id: str | None = None
    verdict: str | None = None
    gold_format: str | None = None


@dataclass(frozen=True)
class Completion:
    """One completion. line: of the file, from 1. sample: its place in the row's list, None where the row holds one.
    question: what samples of one question share. verdict: the one the file carries."""

    line: int
    sample: int | None
    question: str
    text: str
    gold: str
    verdict: bool | None


def read(path: Path, fields: Fields, kind: AnswerKind) -> Iterator[Completion]:
    """Every completion of the file, in order. Raises DataError that names line and field."""
    known: Fields | None = None
    for line, row in rows(path):
        if known is None:
            known = find(path, row, line, fields)
        where = f"{path} line {line}"
        texts = _get(where, row, known.completion, "--completion")
        gold = _gold(where, _text(where, known.gold, _get(where, row, known.gold, "--gold")), known, kind)
        verdicts = None if known.verdict is None else _get(where, row, known.verdict, "--verdict")
        question = str(line) if known.id is None else json.dumps(_get(where, row, known.id, "--id"), sort_keys=True)
        many = isinstance(texts, list)
        if isinstance(verdicts, list) and (not many or len(verdicts) != len(texts)):
            raise DataError(f"{where}: '{known.verdict}' holds {len(verdicts)} verdicts, '{known.completion}' "
                            f"{len(texts) if many else 'one'} completion(s)", "give one verdict a completion")
        for sample, text in enumerate(texts if many else [texts]):
            said = verdicts[sample] if isinstance(verdicts, list) else verdicts
            yield Completion(line, sample if many else None, question, _text(where, known.completion, text), gold,
                             None if known.verdict is None else _verdict(where, known.verdict, said))
    if known is None:
        raise DataError(f"{path} is empty", "give a file with one JSON object a line")


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that is not blank. Raises DataError for a file or line that cannot be read."""
    for number, line in reading.lines(path):
        if line.strip():
            row = reading.parsed(f"{path} line {number}", line)
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} holds a {type(row).__name__}, not an object",
                                "give one JSON object a line")
            yield number, row


def find(path: Path, row: dict[str, Any], line: int, fields: Fields) -> Fields:
    """The fields' names, where none is given by what the row has. Raises DataError that lists the row's fields."""
    where = f"{path} line {line}"
    completion = fields.completion or _first(where, row, COMPLETIONS, "completion", "--completion", (fields.gold,))
    gold = fields.gold or _first(where, row, GOLDS, "gold answer", "--gold", (completion,))
    shown = fields.gold_format
    if shown is None:
        text = str(_get(where, row, gold, "--gold"))
        shown = "gsm8k" if "####" in text else "boxed" if "\\boxed" in text else "plain"
    name = fields.id or next((n for n in IDS if row.get(n) is not None and n not in (completion, gold)), None)
    return replace(fields, completion=completion, gold=gold, id=name, gold_format=shown)


def _first(where: str, row: dict[str, Any], names: tuple[str, ...], what: str, option: str,
           taken: tuple[str | None, ...]) -> str:
    for name in names:
        if row.get(name) is not None and name not in taken:
            return name
    raise DataError(f"{where} has no field that looks like the {what} (tried {', '.join(names)})",
                    f"name it with {option}; the row has: {', '.join(sorted(row)) or 'nothing'}")


def _get(where: str, row: dict[str, Any], name: str | None, option: str) -> Any:
    assert name is not None  # `find` has named it
    value: Any = row
    if name in row:
        value = row[name]
    else:
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                have = value if isinstance(value, dict) else row
                raise DataError(f"{where} has no field '{name}'", f"mend the row, or set {option} ({nearest(part, have)})")
            value = value[part]
    if value is None:
        raise DataError(f"{where}: field '{name}' is null", f"fill it, remove the row, or set {option}")
    return value


def _text(where: str, name: str | None, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: field '{name}' holds a {type(value).__name__}, not text", "give text there")
    return str(value)


def _gold(where: str, text: str, known: Fields, kind: AnswerKind) -> str:
    try:
        if known.gold_format == "extract":
            found = grading.extract(text, kind)
            if found is None:
                raise grading.GoldError("no answer can be found in it", "mend the row, or set --gold-format")
        else:
            found = grading.gold(text, AnswerFormat[known.gold_format or "plain"])
        grading.check(found, kind)
    except grading.GoldError as error:
        raise DataError(f"{where}: field '{known.gold}' has no gold answer: {error.what}",
                        "mend the row, or set --gold, --gold-format (plain, gsm8k, boxed, extract) or --kind") from error
    return found


def _verdict(where: str, name: str, value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in TRUE | FALSE:
        raise DataError(f"{where}: field '{name}' holds {value!r}, which is no verdict", "give true or false, 1 or 0")
    return word in TRUE
