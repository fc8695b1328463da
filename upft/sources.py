"""Where questions come from, as typed configuration. Floor 0; see `upft.config`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omegaconf import MISSING

from upft.choices import AnswerFormat
from upft.errors import ConfigError, demand


@dataclass
class ArithmeticConfig:
    """Generated word problems (`upft.toy.arithmetic`)."""

    split: str = MISSING
    """`train` or `test`; a hash of the question decides, so the two never share one."""
    questions: int = MISSING
    """How many distinct questions to generate."""
    seed: int = 0
    """Seed of the generator."""
    steps_min: int = 2
    """Fewest operations in a problem."""
    steps_max: int = 4
    """Most operations in a problem."""
    number_max: int = 20
    """Largest number given in a problem."""

    def __post_init__(self) -> None:
        if self.split != MISSING:
            demand(self.split in ("train", "test"), "arithmetic.split", self.split, "use train or test")
        if self.questions != MISSING:
            demand(self.questions > 0, "arithmetic.questions", self.questions, "use 1 or more")
        demand(1 <= self.steps_min <= self.steps_max, "arithmetic.steps_min", self.steps_min,
                f"use 1 to steps_max={self.steps_max}")
        demand(self.number_max >= 5, "arithmetic.number_max", self.number_max, "use 5 or more")


@dataclass
class Source:
    """Where questions come from: exactly one of a local file, a pinned hub file, the generator."""

    path: str | None = None
    """Local .jsonl, .json, .csv or .parquet file; its content (not its name) enters the key."""
    id: str | None = None
    """Hub data set id."""
    revision: str | None = None
    """Hub commit (40 hex digits): a branch name would let the data change under a key."""
    file: str | None = None
    """File inside the hub data set."""
    arithmetic: ArithmeticConfig | None = None
    """Generated problems instead of a file."""
    question_field: str = "question"
    """Column of the question."""
    answer_field: str | None = None
    """Column of the gold answer; null = unlabelled."""
    answer_format: AnswerFormat = AnswerFormat.plain
    """Where the answer stands in that column."""
    limit: int | None = None
    """Use the first so many questions; null = all."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            demand(self.limit > 0, "limit", self.limit, "use 1 or more, or null for all")
        if self.revision is not None:
            demand(re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None, "revision", self.revision,
                    "give the commit's 40 hex digits (a branch or tag may move)")

    def check_source(self, key: str) -> None:
        """Raise ConfigError unless there is a usable source; `key` is the config path of this node."""
        if self.path is not None and self.arithmetic is not None:
            raise ConfigError(f"{key}.path={self.path} beside {key}.arithmetic: two sources of questions",
                              "choose a group for files, such as data=jsonl (eval=gsm8k for a task), or set "
                              f"{key}.arithmetic=null")
        if self.path is not None or self.arithmetic is not None:
            return
        if self.id is None:
            raise ConfigError(f"{key}.path=null: no source of questions", f"give {key}.path=FILE.jsonl")
        for name in ("revision", "file"):
            if getattr(self, name) is None:
                raise ConfigError(f"{key}.{name}=null while {key}.id={self.id}", f"give {key}.{name}, or {key}.path=FILE")


@dataclass
class DataConfig(Source):
    """Training questions, with the paper's settings for them."""

    name: str = MISSING
    """Label in reports."""
    epochs: int = 1
    """Paper's epochs for this data (train.epochs takes it unless given)."""
    max_length: int = 3072
    """Paper's longest sequence for this data, tokens (train.max_length takes the larger of this and the model's)."""
