"""What a report is made from, read once and typed.

Knows what the artifacts hold. Refuses to know where they lie, and draws no conclusion from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upft.alone import Pilot
from upft.errors import DataError
from upft.ledger import Ledger
from upft.specs import ReportSpec

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text, without special tokens."""


@dataclass(frozen=True)
class Answer:
    """One graded answer. style: how it opens, where the task's data tells (`styled`), else None."""

    id: str
    index: int
    question: str
    gold: str
    completion: str
    extracted: str | None
    right: bool
    finish_reason: str
    tokens: int
    style: str | None
    styled: bool
    vote: str | None = None
    reason: str = ""
    judged: bool | None = None
    """Whether a judge accepted what the rule did not; None where none was asked."""
    ids: tuple[int, ...] = ()
    """The first tokens of the completion, as many as a prefix has."""

    @classmethod
    def read(cls, row: Mapping[str, Any], first: int = 0) -> Answer:
        """From a row of answers.jsonl, with its `first` token ids."""
        return cls(str(row["id"]), int(row["index"]), str(row.get("question", "")), str(row.get("gold", "")),
                   str(row.get("completion", "")), row.get("extracted"), bool(row["right"]),
                   str(row.get("finish_reason", "")), int(row.get("tokens", 0)), row.get("style"), "style" in row,
                   row.get("vote"), str(row.get("reason", "")), (row.get("judge") or {}).get("accepted"),
                   tuple(row.get("ids", ())[:first]))


@dataclass(frozen=True)
class Answers:
    """All answers of one model to one task, ordered by (id, index). Raises DataError where questions were
    answered different numbers of times, for then there is no matrix."""

    rows: tuple[Answer, ...]

    @classmethod
    def of(cls, rows: Sequence[Answer], where: str) -> Answers:
        """Order and check rows; `where` names the file in an error."""
        ordered = tuple(sorted(rows, key=lambda a: (a.id, a.index)))
        counts: dict[str, int] = {}
        for answer in ordered:
            counts[answer.id] = counts.get(answer.id, 0) + 1
        if not counts or len(set(counts.values())) != 1 or len({(a.id, a.index) for a in ordered}) != len(ordered):
            raise DataError(f"{where}: its questions do not have the same number of answers",
                            "the artifact is damaged: set it aside and run the same command again")
        return cls(ordered)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Question ids in order."""
        return tuple(dict.fromkeys(a.id for a in self.rows))

    @property
    def samples(self) -> int:
        """Answers a question."""
        return len(self.rows) // len(self.ids)

    @cached_property
    def correct(self) -> NDArray[np.float64]:
        """[questions, samples] of 0 and 1."""
        return np.array([a.right for a in self.rows], dtype=np.float64).reshape(len(self.ids), self.samples)

    @cached_property
    def votes(self) -> list[list[str | None]]:
        """[questions][samples]: canonical answers."""
        return [[a.vote for a in self.to(place)] for place in range(len(self.ids))]

    def to(self, question: int) -> tuple[Answer, ...]:
        """The answers to the question at that place."""
        return self.rows[question * self.samples:(question + 1) * self.samples]


@dataclass(frozen=True)
class StageRecord:
    """One stage upstream: what it was asked, what it cost, where it ran. spec and provenance may be missing."""

    role: str
    label: str
    key: str
    ledger: Ledger
    spec: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything a report tells. samples, diagnosis, grades, rows, train, pairs, verifier: the stages' summaries, those of the
    last round (empty where there is no such stage); earlier: rows.json of the rounds before; metrics: a dict a training step;
    tasks: name -> (base, trained); generator: likewise, where what is trained only answers and a verifier chooses; chosen:
    task -> scores.json of that choice."""

    spec: ReportSpec
    stages: tuple[StageRecord, ...]
    samples: Mapping[str, Any]
    diagnosis: Mapping[str, Any]
    rows: Mapping[str, Any]
    train: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    tasks: Mapping[str, tuple[Answers, Answers]]
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Task -> scores.json of the base model: the protocol and how it was asked."""
    grades: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)
    verifier: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Mapping[str, Any], ...] = ()
    generator: Mapping[str, tuple[Answers, Answers]] = field(default_factory=dict)
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decode: Decode | None = None
    """Of the model's tokenizer, where the training's artifact holds it."""
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> summary of each analysis asked for."""
    pilot: Pilot | None = None
    """What a pilot adds to the sampling of the first round; None where there is none."""
    command: str | None = None
    """What makes the cell, as a person types it."""

    @property
    def train_seed(self) -> int:
        """The training's seed: the cell's, unless it has its own."""
        for record in self.stages:
            if record.role == "train":
                return int(record.spec.get("spec", {}).get("seed", self.spec.seed))
        return self.spec.seed

    @property
    def method(self) -> str:
        """The method's name as people write it."""
        return self.spec.label or self.spec.method.name.upper()
