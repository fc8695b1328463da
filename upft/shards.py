"""Shares of a stage's questions: what each of several jobs draws of a sampling or an evaluation, or compares two models on.

Floor 2, beside the plan. Cutting is the machine's business and enters no key: each request has a seed of its own, so it changes
no completion. A shard is a job beside the stage; its artifact lies in STORE/shards until the stage has taken it up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from upft.plan import Stage
from upft.sharing import DRAWN

ROOM = "shards"
"""Their folder in the store."""
CUT = frozenset(stage for stage, _ in DRAWN.values()) | {"kl"}
"""Stages that can be cut."""
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The `number`-th (from 1) of `count` equal parts of the questions."""

    number: int
    count: int

    def of(self, questions: Iterator[T]) -> Iterator[T]:
        """Every `count`-th one: a file is often in the order of difficulty, so neighbours go to different shares."""
        return islice(questions, self.number - 1, None, self.count)

    def __str__(self) -> str:
        return f"{self.number}of{self.count}"


@dataclass(frozen=True)
class Shard:
    """A job that draws a share of a stage. Among jobs it stands where stages do."""

    whole: Stage
    share: Share

    @property
    def name(self) -> str:
        """The store's folder of its artifact."""
        return ROOM

    @property
    def key(self) -> str:
        """The stage's key and the share."""
        return f"{self.whole.key}-{self.share}"

    @property
    def label(self) -> str:
        """The stage's label and the share."""
        return f"{self.whole.label}, shard {self.share.number} of {self.share.count}"

    @property
    def identity(self) -> dict[str, Any]:
        """What its artifact says of itself."""
        return {"stage": ROOM, "share": str(self.share), "of": self.whole.identity}


Job = Stage | Shard
"""What one job makes."""


def of(stage: Stage, count: int) -> list[Shard]:
    """All shards of a stage; none where it is one job."""
    return [Shard(stage, Share(number, count)) for number in range(1, count + 1)] if count > 1 and stage.name in CUT else []


def whole(job: Job) -> Stage:
    """The stage that a job makes, or makes a share of."""
    return job.whole if isinstance(job, Shard) else job


def split(key: str) -> tuple[str, Share | None]:
    """A job's key as the stage's and the share; None where it makes all of it."""
    found = re.fullmatch(r"(\w+)-(\d+)of(\d+)", key)
    return (key, None) if found is None else (found[1], Share(int(found[2]), int(found[3])))
