"""What is asked of an engine and what came of it: prompts, numbered requests with their seeds, completions.

Floor 4, under those who draw. Holds some bytes a request, however many they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from upft.sample_log import SampleLog
from upft.sampler import Request, request_seed


@dataclass(frozen=True)
class Prompt:
    """What is asked: ids of the rendered conversation, and how many tokens may answer."""

    question_id: str
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt. ids end with the stop token when finish_reason is `stop`. logprobs, cached: as in
    `sampler.Completion`."""

    question_id: str
    index: int
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None = None
    cached: int = field(default=0, compare=False)

    def cut(self, max_tokens: int, logprobs: bool) -> Rollout | None:
        """What sampling up to `max_tokens` would have given, its random numbers being the same; None where this one
        does not tell: it was cut earlier, or its log-probabilities are asked for and were not kept."""
        if logprobs and self.logprobs is None:
            return None
        kept = self.logprobs if logprobs else None
        if len(self.ids) > max_tokens:
            return replace(self, ids=self.ids[:max_tokens], finish_reason="length",
                           logprobs=None if kept is None else kept[:max_tokens])
        if len(self.ids) == max_tokens or self.finish_reason == "stop":
            return replace(self, logprobs=kept)
        return None


class Asked:
    """All requests of a call: `n` of each of `prompts`, numbered question by question.

    prompt: gives the i-th prompt, from memory or from a file, to any thread. limits, lengths: [prompts], of each its
    max_tokens and its number of tokens. Holds 24 bytes a request.
    """

    def __init__(self, prompt: Callable[[int], Prompt], question_ids: Iterable[str], limits: np.ndarray, lengths: np.ndarray,
                 n: int, run_seed: int) -> None:
        self._prompt, self.n = prompt, n
        self._seeds = np.fromiter((request_seed(q, index, run_seed) for q in question_ids for index in range(n)),
                                  dtype=np.int64, count=n * len(limits))
        self._run_seed = run_seed
        self._by_seed = np.argsort(self._seeds, kind="stable")
        self._limits, self._lengths = limits, lengths
        self._last: tuple[int, Prompt] | None = None

    @classmethod
    def of(cls, prompts: Sequence[Prompt], n: int, run_seed: int) -> Asked:
        """From prompts in memory."""
        return cls(prompts.__getitem__, (p.question_id for p in prompts),
                   np.array([p.max_tokens for p in prompts], dtype=np.int64),
                   np.array([len(p.ids) for p in prompts], dtype=np.int64), n, run_seed)

    def __len__(self) -> int:
        return len(self._seeds)

    def prompt(self, number: int) -> Prompt:
        """The prompt of a request. Threads may ask at once: an engine's, and the reader's."""
        which, last = number // self.n, self._last
        if last is None or last[0] != which:
            self._last = last = which, self._prompt(which)
        return last[1]

    def request(self, number: int) -> Request:
        """A request; its id is its number."""
        prompt = self.prompt(number)
        return Request(str(number), prompt.ids, prompt.max_tokens, int(self._seeds[number]))

    def find(self, question_id: str, index: int) -> int | None:
        """The number of a question's `index`-th request; None where it is not asked for."""
        seed = request_seed(question_id, index, self._run_seed)
        place = int(np.searchsorted(self._seeds, seed, sorter=self._by_seed))
        if place == len(self._seeds) or self._seeds[self._by_seed[place]] != seed:
            return None
        return int(self._by_seed[place])

    def length(self, number: int) -> int:
        """Tokens of a request's prompt."""
        return int(self._lengths[number // self.n])

    def limit(self, number: int) -> int:
        """Most tokens of a request."""
        return int(self._limits[number // self.n])

    def order(self, missing: np.ndarray) -> np.ndarray:
        """Numbers in the order in which to draw them: the longest first (what is long to draw starts early, and a batch
        too large for the memory fails at once), like lengths together, a question's requests side by side."""
        which = missing // self.n
        return missing[np.lexsort((missing, -self._lengths[which], -self._limits[which]))]


class Drawn:
    """Completions by request number: in memory, or (with a log) on disk, where they survive this process."""

    def __init__(self, count: int, log: SampleLog | None) -> None:
        self._log = log
        self._held: list[Rollout | None] = [None] * count if log is None else []
        self._places = np.full(0 if log is None else count, -1, dtype=np.int64)

    def put(self, number: int, rollout: Rollout, taken: bool = False) -> None:
        """Keep one; taken: from another sampling, which paid for it."""
        if self._log is None:
            self._held[number] = rollout
        else:
            self._places[number] = self._log.append(record(rollout) | ({"taken": True} if taken else {}))

    def found(self, number: int, place: int) -> None:
        """One is in the log already."""
        self._places[number] = place

    def missing(self) -> np.ndarray:
        """Numbers that are not there."""
        if self._log is None:
            return np.array([i for i, r in enumerate(self._held) if r is None], dtype=np.int64)
        return np.flatnonzero(self._places < 0)

    def __getitem__(self, number: int) -> Rollout:
        if self._log is None:
            held = self._held[number]
            assert held is not None
            return held
        return read(self._log.at(int(self._places[number])))

    def __len__(self) -> int:
        return len(self._held) if self._log is None else len(self._places)

    def __iter__(self) -> Iterator[Rollout]:
        """All, in order of their numbers."""
        return (self[i] for i in range(len(self)))


def record(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a line of the log."""
    line: dict[str, Any] = {"id": rollout.question_id, "index": rollout.index, "ids": rollout.ids,
                            "finish_reason": rollout.finish_reason, "cached": rollout.cached}
    if rollout.logprobs is not None:
        line["logprobs"] = rollout.logprobs
    return line


def read(line: dict[str, Any]) -> Rollout:
    """A rollout from a line of the log, or of a finished sampling."""
    scores = line.get("logprobs")
    return Rollout(str(line["id"]), int(line["index"]), tuple(line["ids"]), str(line["finish_reason"]),
                   None if scores is None else tuple(scores), int(line.get("cached", 0)))
