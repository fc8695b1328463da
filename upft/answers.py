"""Graded answers of one model to one task: a row an answer, and the scores that follow from the rows.

Floor 3: plain rows in, numbers out. Whoever writes answers (an evaluation, a judge after it, a choice among several) writes
them through here, so that whoever reads them finds one format. Knows no model and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from upft import statistics
from upft.errors import DataError

FILE = "answers.jsonl"
"""A row an answer, ordered by question and index: id, index, question (as asked), gold, prompt_ids, ids, completion (text),
extracted, vote, right, reason, finish_reason, tokens; style where the embedded data tells; rule and judge where a judge
has looked."""
SCORES = "scores.json"
GAVE_UP = ("time limit", "grader died")
"""Reasons of verdicts that were not reached; such an answer counts as wrong and is counted apart."""


class Scores:
    """What a task's answers come to; rows go by one at a time."""

    def __init__(self) -> None:
        self._right: dict[str, list[bool]] = {}
        self._votes: dict[str, list[str | None]] = {}
        self._answers = self._unfinished = self._no_answer = self._not_graded = self._tokens = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """One more answer; those to one question come in the order of their index."""
        self._right.setdefault(row["id"], []).append(bool(row["right"]))
        self._votes.setdefault(row["id"], []).append(row["vote"])
        self._answers += 1
        self._unfinished += row["finish_reason"] == "length"
        self._no_answer += row["extracted"] is None
        self._not_graded += row["reason"] in GAVE_UP
        self._tokens += row["tokens"]

    def found(self) -> dict[str, Any]:
        """accuracy (the mean over questions and answers: avg@k), with its interval; at_k where there are several answers:
        majority and pass at k = 1, 2, 4, ... answers; and what to know beside them."""
        correct = self.correct
        samples = correct.shape[1]
        accuracy = statistics.accuracy(correct)
        ks = [k for k in (2**i for i in range(1, 12)) if k < samples] + [samples] if samples > 1 else []
        votes = list(self._votes.values())
        return {
            "questions": len(correct), "samples": samples,
            "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
            "at_k": [{"k": k, "majority": asdict(statistics.majority_at_k(votes, correct, k)),
                      "pass": asdict(statistics.pass_at_k(correct, k))} for k in ks],
            "unfinished": self._unfinished, "no_answer": self._no_answer, "not_graded": self._not_graded,
            "mean_tokens": self._tokens / self._answers,
        }

    @property
    def correct(self) -> np.ndarray:
        """[questions, samples] of 0 and 1. Raises DataError where questions were not answered equally often."""
        rows = list(self._right.values())
        if not rows or len({len(row) for row in rows}) != 1:
            raise DataError("the questions of a task do not have the same number of answers",
                            "the artifact is damaged: run the same command again with run.repair=true")
        return np.array(rows, dtype=float)


def write(folder: Path, rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write rows and scores; `about` (how the task was asked, and by what) goes into the scores. What scores.json holds."""
    scores = Scores()
    with (folder / FILE).open("w", encoding="utf-8") as stream:
        for row in rows:
            scores.add(row)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    found = {**about, **scores.found()}
    (folder / SCORES).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return found


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an artifact."""
    with (folder / FILE).open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
