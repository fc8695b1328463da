"""Questions from a local file, a pinned hub file or the generator, checked before anything is spent on them.

Floor 3. Knows formats and columns; no prompts, no tokens. Duplicate questions are kept once and counted;
anything malformed stops with the file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft import reading
from upft.choices import AnswerFormat
from upft.errors import DataError, nearest
from upft.prefix import question_id
from upft.specs import ContentRef, Generated, HubRef, QuestionsSpec


@dataclass(frozen=True)
class Question:
    """One question. answer: the gold answer as written in the data, or None. wrong: the options beside it, where asked for."""

    id: str
    text: str
    answer: str | None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """A loaded set: distinct questions in file order, and how many duplicates were left out."""

    rows: tuple[Question, ...]
    duplicates: int
    name: str


class Stream(Iterator[Question]):
    """Distinct questions one after the other, checked as they are read; `duplicates` counts those left out so far.

    Reading raises DataError. Holds some bytes a question, to know it again.
    """

    def __init__(self, spec: QuestionsSpec) -> None:
        source = spec.source
        self.duplicates = 0
        self._conflict: DataError | None = None
        self._found: Iterator[Question]
        if isinstance(source, Generated):
            self.name = f"arithmetic/{source.split}"
            self._found = _generated(source, spec.limit)
        else:
            path = Path(source.path) if isinstance(source, ContentRef) else _download(source)
            self.name = path.name
            self._found = self._read(path, spec)

    def __next__(self) -> Question:
        return next(self._found)

    def _read(self, path: Path, spec: QuestionsSpec) -> Iterator[Question]:
        seen: dict[int, int] = {}
        for where, record in _records(path):
            question = _question(where, record, spec)
            known, answer = int(question.id, 16), hash(question.answer)
            if known in seen:
                self.duplicates += 1
                if seen[known] != answer and self._conflict is None:
                    self._conflict = DataError(f"{where}: the same question stands further up with another answer than "
                                               f"{question.answer!r}", "correct one of the two rows, or remove both")
                continue
            seen[known] = answer
            yield question
            if spec.limit is not None and len(seen) >= spec.limit:
                break
        if not seen:
            raise DataError(f"{path} holds no questions", "give a file with one question a line")


    def raise_conflict(self) -> None:
        """Raise DataError if a question was read twice with different answers."""
        if self._conflict is not None:
            raise self._conflict


def load(spec: QuestionsSpec) -> Questions:
    """Read, check and de-duplicate a set of questions. Raises DataError."""
    stream = Stream(spec)
    rows = tuple(stream)
    return Questions(rows, stream.duplicates, stream.name)


def load_graded(spec: QuestionsSpec) -> Questions:
    """As `load`, of a task: what is asked twice with different answers cannot be graded. Raises DataError."""
    stream = Stream(spec)
    rows = tuple(stream)
    stream.raise_conflict()
    return Questions(rows, stream.duplicates, stream.name)


def _generated(source: Generated, limit: int | None) -> Iterator[Question]:
    from upft.toy.arithmetic import Difficulty, problems

    count = source.questions if limit is None else min(limit, source.questions)
    difficulty = Difficulty(source.steps_min, source.steps_max, source.number_max)
    try:
        for problem in problems(source.split, count, source.seed, difficulty):
            yield Question(question_id(problem.question), problem.question, problem.answer)
    except ValueError as error:
        raise DataError(f"arithmetic.questions={count}: {error}",
                        "ask for fewer questions or widen the difficulty") from error


def _download(source: HubRef) -> Path:
    """A hub file at its pinned commit, from the local cache or the network."""
    from huggingface_hub import hf_hub_download

    assert source.file is not None
    try:
        return Path(hf_hub_download(source.id, source.file, repo_type="dataset", revision=source.revision))
    except Exception as error:  # the hub's client raises many kinds; each means: not to be had here
        raise DataError(f"data set {source.id} ({source.file} at {source.revision[:8]}) cannot be fetched: "
                        f"{type(error).__name__}", "check the network and access rights, or give a local file with "
                        "data.path=FILE (eval.tasks.NAME.path=FILE for a task)") from error


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of every row; `where` names file and line for messages."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in reading.lines(path):
            if line.strip():
                where = f"{path} line {number}"
                yield where, _mapping(where, reading.parsed(where, line))
    elif suffix == ".json":
        remedy = "give a JSON list of rows, or a .jsonl file"
        records = reading.parsed(str(path), "".join(line for _, line in reading.lines(path)), remedy)
        if not isinstance(records, list):
            raise DataError(f"{path} holds a {type(records).__name__}, not a list", remedy)
        for number, record in enumerate(records, 1):
            where = f"{path} entry {number}"
            yield where, _mapping(where, record)
    elif suffix == ".parquet":
        yield from _parquet(path)
    elif suffix == ".csv":
        yield from _csv(path)
    else:
        raise DataError(f"{path}: unknown kind of file '{suffix}'", "give .jsonl, .json, .csv or .parquet")


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, file = 0, None
    try:
        file = pq.ParquetFile(path)
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = "is not a Parquet file" if file is None else "cannot be read"
        raise DataError(f"{path} {what}: {error}", "give .jsonl, .json, .csv or .parquet") from error


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import csv

    csv.field_size_limit(2**31 - 1)  # its own is 131,072 characters: fewer than some solutions have
    rows = csv.DictReader((line for _, line in reading.lines(path, newline="")), strict=True)
    try:
        for row in rows:
            where, record = f"{path} line {rows.line_num}", dict(row)
            more = record.pop(None, [])
            if any(more):  # a text with a comma that nothing quotes would be read in part
                raise DataError(f"{where} has {len(record) + len(more)} cells, its header {len(record)}",
                                'put texts that hold a comma in double quotes, or give the column a name')
            yield where, record
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num} is not CSV: {error}",
                        "mend the quotes: one within a quoted text is doubled") from error


def _mapping(where: str, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where} holds a {type(record).__name__}, not an object", "give one JSON object a row")
    return record


def _question(where: str, record: dict[str, Any], spec: QuestionsSpec) -> Question:
    text = _field(where, record, spec.question_field, "question_field")
    if not text.strip():
        raise DataError(f"{where}: '{spec.question_field}' is empty", "fill it or remove the row")
    answer = None
    if spec.answer_field is not None:
        answer = _answer(where, _field(where, record, spec.answer_field, "answer_field"), spec)
    wrong = tuple(_field(where, record, name, "wrong_fields").strip() for name in spec.wrong_fields)
    if answer is not None and wrong and (len({answer, *wrong}) <= len(wrong) or not all(wrong)):
        raise DataError(f"{where}: its options are not {len(wrong) + 1} different ones: {(answer, *wrong)}",
                        "correct or remove the row")
    return Question(question_id(text), text, answer, wrong)


def _field(where: str, record: dict[str, Any], name: str, setting: str) -> str:
    if record.get(name) is None:
        raise DataError(f"{where} has no '{name}'", f"mend the row, or set {setting} to its column ({nearest(name, record)})")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{where}: '{name}' is a {type(value).__name__}, not text", "give text there")
    text = str(value)
    if not reading.encodable(text):
        raise DataError(f"{where}: '{name}' holds half of a character (a lone surrogate)", "write that character whole, or "
                        "remove the row")
    return text


def _answer(where: str, text: str, spec: QuestionsSpec) -> str:
    from upft.grading import gold

    try:
        return gold(text, spec.answer_format)
    except ValueError as error:
        remedy = {
            AnswerFormat.gsm8k: "end the solution with '#### ANSWER', or set answer_format=plain",
            AnswerFormat.boxed: "put the answer in \\boxed{}, or set answer_format=plain",
            AnswerFormat.plain: "fill the answer, or remove the row",
        }[spec.answer_format]
        raise DataError(f"{where}: '{spec.answer_field}' has no gold answer ({error})", remedy) from error
