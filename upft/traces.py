"""The artifacts of sampling and grading, read side by side: a question, its traces, what became of them.

Floor 3: JSON lines in, `selection.Trace` out, a question in memory at a time. Knows no method.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from upft.errors import DataError
from upft.selection import Trace

SAMPLES, QUESTIONS, VERDICTS, SUMMARY = "samples.jsonl", "questions.jsonl", "verdicts.jsonl", "samples.json"
DAMAGED = "the artifact is damaged: set it aside and run the same command again"


@dataclass(frozen=True)
class Sampled:
    """A question as the sampling knows it, and its traces in order. answer: the gold one, where the data has them. prefix: how
    many tokens at the end of prompt_ids are the beginning of the answer, which the traces continue."""

    id: str
    text: str
    answer: str | None
    prompt_ids: list[int]
    traces: tuple[Trace, ...]
    prefix: int = 0


def read(samples: Path, grades: Path | None = None) -> Iterator[Sampled]:
    """The questions of a sampling in order, with the verdicts of `grades` where given.

    Raises DataError where questions.jsonl, samples.jsonl and verdicts.jsonl do not tell of the same questions in the same
    order.
    """
    drawn = groupby(lines(samples / SAMPLES), key=itemgetter("id"))
    verdicts = None if grades is None else lines(grades / VERDICTS)
    for question in chain(lines(samples / QUESTIONS), [None]):
        id_, rows = next(drawn, (None, iter(())))
        if id_ != (None if question is None else question["id"]):
            raise DataError(f"{samples}: {SAMPLES} has question {id_} where {QUESTIONS} has "
                            f"{None if question is None else question['id']}", DAMAGED)
        if question is not None:
            yield Sampled(question["id"], question["text"], question["answer"], question["prompt_ids"],
                          tuple(_trace(row, verdicts, grades) for row in rows), question.get("prefix", 0))


def _trace(row: dict[str, Any], verdicts: Iterator[dict[str, Any]] | None, grades: Path | None) -> Trace:
    right = None
    if verdicts is not None and row["kind"] == "trace":
        verdict = next(verdicts, {})
        if (verdict.get("id"), verdict.get("index")) != (row["id"], row["index"]):
            raise DataError(f"{grades}: {VERDICTS} has trace {verdict.get('index')} of question {verdict.get('id')} where "
                            f"{SAMPLES} has trace {row['index']} of {row['id']}", DAMAGED)
        right = bool(verdict["right"])
    return Trace(row["index"], tuple(row["ids"]), row["finish_reason"] == "stop", row["kind"] == "trace", right)


def told(samples: Path) -> dict[str, Any]:
    """The sampling's summary."""
    found: dict[str, Any] = json.loads((samples / SUMMARY).read_text(encoding="utf-8"))
    return found


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
