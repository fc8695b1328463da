"""Many completions for many prompts: requests, seeds, progress and the cost of it.

Floor 4, between the engines and the stages that ask them (sampling, evaluation). Knows no method and no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from upft.console import Console
from upft.errors import EngineError
from upft.ledger import Ledger, model_flops
from upft.sample_log import SampleLog
from upft.sampler import Engine, Request, Sampling, request_seed
from upft.shapes import Shape


@dataclass(frozen=True)
class Prompt:
    """What is asked: ids of the rendered conversation, and how many tokens may answer."""

    question_id: str
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt. ids end with the stop token when finish_reason is `stop`."""

    question_id: str
    index: int
    ids: tuple[int, ...]
    finish_reason: str


@dataclass
class Rescue:
    """What was found of an earlier run that ended before its time."""

    reused: int = 0
    """Completions that were not sampled again."""
    dropped: int = 0
    """Lines of the log that were incomplete or damaged."""


def roll_out(engine: Engine, sampling: Sampling, prompts: Sequence[Prompt], n: int, run_seed: int, console: Console,
             label: str, keep: Path | None = None, rescue: Rescue | None = None) -> list[Rollout]:
    """`n` completions of every prompt, ordered by prompt and index.

    keep: folder of a log to which each completion is written as it finishes; what an earlier run with the same
    arguments left there is not sampled again. rescue: filled with what was found. Raises EngineError when a completion
    is missing, OSError where the log cannot be written; what is in the log stays there in both cases.
    """
    requests = [
        Request(f"{prompt.question_id}/{index}", prompt.ids, prompt.max_tokens,
                request_seed(prompt.question_id, index, run_seed))
        for prompt in prompts for index in range(n)
    ]
    if keep is None:
        done: dict[str, Rollout] = {}
        _draw(engine, sampling, requests, done, None, console, label)
    else:
        with SampleLog(keep) as log:
            done = _kept(log, requests)
            found = rescue if rescue is not None else Rescue()
            found.reused, found.dropped = len(done), log.dropped
            if log.dropped:
                console.warn(f"{log.path}: {log.dropped} incomplete or damaged lines are left out and sampled again")
            if done:
                console.say(f"  {label}: going on from an earlier run, {len(done):,} of {len(requests):,} answers are there")
            _draw(engine, sampling, requests, done, log, console, label)
    missing = [r.id for r in requests if r.id not in done]
    if missing:
        raise EngineError(f"{engine.name} returned {len(done)} of {len(requests)} completions (without {missing[0]})",
                          "run the same command again; if it stays, try the other engine (sample.engine, eval.engine)")
    return [done[r.id] for r in requests]


def _kept(log: SampleLog, requests: Sequence[Request]) -> dict[str, Rollout]:
    """The log's completions of these requests."""
    limits = {r.id: r.max_tokens for r in requests}
    done: dict[str, Rollout] = {}
    for record in log.read():
        if len(record["ids"]) <= limits.get(record["id"], 0):
            done[record["id"]] = _rollout(record["id"], tuple(record["ids"]), record["finish_reason"])
    return done


def _draw(engine: Engine, sampling: Sampling, requests: Sequence[Request], done: dict[str, Rollout],
          log: SampleLog | None, console: Console, label: str) -> None:
    """Sample what `done` lacks into it, and into the log first."""
    rest = [r for r in requests if r.id not in done]
    if not rest:
        return
    with console.bar(label, len(rest), "answers") as bar:
        for completion in engine.generate(rest, sampling):
            if log is not None:
                log.append({"id": completion.id, "ids": completion.ids, "finish_reason": completion.finish_reason})
            done[completion.id] = _rollout(completion.id, completion.ids, completion.finish_reason)
            bar.advance(1, tokens=len(completion.ids))


def _rollout(name: str, ids: tuple[int, ...], finish_reason: str) -> Rollout:
    question, _, index = name.rpartition("/")
    return Rollout(question, int(index), ids, finish_reason)


def price(ledger: Ledger, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], shape: Shape | None) -> None:
    """Put the tokens and FLOPs of rollouts into a ledger: each request reads its prompt and writes its completion."""
    lengths = {prompt.question_id: len(prompt.ids) for prompt in prompts}
    for rollout in rollouts:
        prompt, sampled = lengths[rollout.question_id], len(rollout.ids)
        ledger.prompt_tokens += prompt
        ledger.sampled_tokens += sampled
        if shape is not None:
            tokens = prompt + sampled
            ledger.flops += model_flops(shape.parameters, shape.layers, shape.hidden, tokens, tokens / 2, backward=False)
