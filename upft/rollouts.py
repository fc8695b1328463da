"""Many completions for many prompts: requests, seeds, what is there already, progress and the cost of it.

Floor 4, between the engines and the stages that ask them (sampling, evaluation). Requests are made when an engine has
room for them and completions go to disk as they come, so what is held does not grow with their number (but for some
bytes a request). Knows no method and no task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from upft.console import Console
from upft.errors import EngineError
from upft.ledger import Ledger, forward_flops
from upft.sample_log import SampleLog
from upft.sampler import Completion, Engine, Request, Sampling, request_seed
from upft.shapes import Shape


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

    prompt: gives the i-th prompt, from memory or from a file. limits, lengths: [prompts], of each its max_tokens and
    its number of tokens. Holds 24 bytes a request.
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
        """The prompt of a request."""
        which = number // self.n
        if self._last is None or self._last[0] != which:
            self._last = which, self._prompt(which)
        return self._last[1]

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


@dataclass
class Rescue:
    """What was there before anything was sampled."""

    reused: int = 0
    """Completions of an earlier run that ended before its time."""
    dropped: int = 0
    """Lines of its log that were incomplete or damaged."""
    taken: int = 0
    """Completions taken over from other samplings of the same model, settings and questions."""
    taken_tokens: int = 0
    """Their tokens."""


def roll_out(engine: Engine, sampling: Sampling, prompts: Sequence[Prompt], n: int, run_seed: int, console: Console,
             label: str, keep: Path | None = None, rescue: Rescue | None = None) -> list[Rollout]:
    """`n` completions of every prompt, ordered by prompt and index.

    keep: folder of a log to which each completion is written as it finishes; what an earlier run with the same
    arguments left there is not sampled again. rescue: filled with what was found. Raises EngineError when a completion
    is missing, OSError where the log cannot be written; what is in the log stays there in both cases.
    """
    asked = Asked.of(prompts, n, run_seed)
    if keep is None:
        drawn = Drawn(len(asked), None)
        draw(engine, sampling, asked, drawn, console, label)
        return list(drawn)
    with SampleLog(keep) as log:
        drawn = resumed(log, asked, sampling.logprobs, rescue if rescue is not None else Rescue(), console, label)
        draw(engine, sampling, asked, drawn, console, label)
        return list(drawn)


def resumed(log: SampleLog, asked: Asked, logprobs: bool, rescue: Rescue, console: Console, label: str) -> Drawn:
    """What the log of an earlier run holds of what is asked."""
    drawn = Drawn(len(asked), log)
    for place, line in log.read():
        rollout = read(line)
        number = asked.find(rollout.question_id, rollout.index)
        if number is not None and rollout.cut(asked.limit(number), logprobs) == rollout:
            drawn.found(number, place)
            if line.get("taken"):
                rescue.taken += 1
                rescue.taken_tokens += len(rollout.ids)
    rescue.dropped, rescue.reused = log.dropped, len(asked) - len(drawn.missing()) - rescue.taken
    if log.dropped:
        console.warn(f"{log.path}: {log.dropped} incomplete or damaged lines are left out and sampled again")
    if rescue.reused:
        console.say(f"  {label}: going on from an earlier run, {rescue.reused:,} of {len(asked):,} are there")
    return drawn


def take_over(earlier: Path, asked: Asked, drawn: Drawn, logprobs: bool, rescue: Rescue) -> None:
    """Put what another artifact holds of what is asked, cut where less is asked for, into `drawn`.

    earlier: the artifact of a sampling or an evaluation of the same model with the same settings; the prompt of each
    question is compared.
    """
    missing = np.zeros(len(asked), dtype=bool)
    missing[drawn.missing()] = True
    left = int(missing.sum())
    for rollout, prompt_ids in _earlier(earlier):
        if left == 0:
            return
        number = asked.find(rollout.question_id, rollout.index)
        if number is None or not missing[number]:
            continue
        cut = rollout.cut(asked.limit(number), logprobs)
        if cut is None or list(asked.prompt(number).ids) != prompt_ids:
            continue
        drawn.put(number, replace(cut, cached=0), taken=True)
        missing[number], left = False, left - 1
        rescue.taken += 1
        rescue.taken_tokens += len(cut.ids)


def _earlier(artifact: Path) -> Iterator[tuple[Rollout, list[int]]]:
    """(completion, ids of its prompt) of a finished evaluation or sampling."""
    if (artifact / "answers.jsonl").is_file():
        with (artifact / "answers.jsonl").open(encoding="utf-8") as answers:
            for line in answers:
                row = json.loads(line)
                yield read(row), row["prompt_ids"]
        return
    with (artifact / "questions.jsonl").open(encoding="utf-8") as questions, \
            (artifact / "samples.jsonl").open(encoding="utf-8") as samples:
        question: dict[str, Any] = {}
        for line in samples:
            rollout = read(json.loads(line))
            while question.get("id") != rollout.question_id:  # both files are in the order of the questions
                question = json.loads(next(questions))
            yield rollout, question["prompt_ids"]


def draw(engine: Engine, sampling: Sampling, asked: Asked, drawn: Drawn, console: Console, label: str,
         unit: str = "answers", watch: Callable[[int, Rollout], Mapping[str, float | str]] | None = None) -> None:
    """Sample what `drawn` lacks. watch: gets each completion as it comes, and says what the progress bar should tell
    beside the rates. Raises EngineError where the engine leaves some out."""
    rest = asked.order(drawn.missing())
    if len(rest) == 0:
        return
    waiting: dict[int, Prompt] = {}  # of requests in the engine's hands, so that none is read from disk twice

    def requests() -> Iterator[Request]:
        for number in map(int, rest):
            request = asked.request(number)
            waiting[number] = asked.prompt(number)
            yield request

    with console.bar(label, len(rest), unit) as bar:
        for completion in engine.generate(requests(), sampling):
            number = int(completion.id)
            rollout = _rollout(waiting.pop(number), number % asked.n, completion)
            drawn.put(number, rollout)
            bar.advance(1, len(completion.ids), **(watch(number, rollout) if watch is not None else {}))
    missing = drawn.missing()
    if len(missing):
        raise EngineError(f"{engine.name} returned {len(rest) - len(missing)} of {len(rest)} completions (without the "
                          f"{int(missing[0]) % asked.n + 1}. of question {asked.prompt(int(missing[0])).question_id})",
                          "run the same command again; if it stays, try the other engine (sample.engine, eval.engine)")


def _rollout(prompt: Prompt, index: int, completion: Completion) -> Rollout:
    scores = completion.logprobs
    return Rollout(prompt.question_id, index, completion.ids, completion.finish_reason,
                   None if scores is None else tuple(round(x, 5) for x in scores), completion.cached)


def price(ledger: Ledger, asked: Asked, drawn: Iterable[Rollout], shape: Shape | None) -> Iterator[Rollout]:
    """Put the tokens and FLOPs of rollouts into a ledger as they go by: each request reads its prompt (but for what was
    cached) and writes its completion."""
    for number, rollout in enumerate(drawn):
        prompt, sampled = asked.length(number), len(rollout.ids)
        ledger.prompt_tokens += prompt
        ledger.cached_tokens += rollout.cached
        ledger.sampled_tokens += sampled
        if shape is not None:
            ledger.flops += forward_flops(shape, prompt + sampled) - forward_flops(shape, rollout.cached)
        yield rollout
