"""Many completions for many prompts: what is there already, wherever it lies, the rest from an engine, and the cost of it.

Floor 4, between the engines and the stages that ask them (sampling, evaluation). Requests are made when an engine has
room for them and completions go to disk as they come, so what is held does not grow with their number (but for some
bytes a request). Knows no method and no task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from upft import sample_log
from upft.console import Console
from upft.errors import EngineError
from upft.ledger import Ledger, forward_flops
from upft.numbered import Asked, Drawn, Prompt, Rollout, read
from upft.sample_log import SampleLog
from upft.sampler import Completion, Engine, Request, Sampling
from upft.shapes import Shape

Watch = Callable[[int, Rollout], Mapping[str, "float | str"]]
"""Gets each completion and its number as it comes, and says what the progress bar should tell beside the rates."""


@dataclass
class Rescue:
    """What was there before anything was sampled."""

    reused: int = 0
    """Completions of an earlier run that ended before its time."""
    dropped: int = 0
    """Lines of its log that were incomplete or damaged."""
    joined: int = 0
    """Completions that shards of this sampling have drawn."""
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


@dataclass(frozen=True)
class Elsewhere:
    """Folders that hold completions which need not be drawn again.

    shards: of jobs that drew their shares of this very sampling; related: samplings (or evaluations) of the same model with
    the same settings, which paid for theirs.
    """

    shards: Sequence[Path] = ()
    related: Sequence[Path] = ()

    def __iter__(self) -> Iterator[Path]:
        return iter((*self.shards, *self.related))


def gather(engine: Engine, sampling: Sampling, asked: Asked, log: SampleLog, elsewhere: Elsewhere, rescue: Rescue,
           console: Console, label: str, unit: str, watch: Watch | None = None) -> Drawn:
    """All completions: those of an earlier run's log, those that lie elsewhere, and the rest from the engine. watch: gets
    those that are there first. Raises what `draw` raises."""
    drawn = resumed(log, asked, sampling.logprobs, rescue, console, label)
    if len(drawn.missing()):
        for shard in elsewhere.shards:
            join(shard, asked, drawn, sampling.logprobs, rescue)
        for earlier in elsewhere.related:
            take_over(earlier, asked, drawn, sampling.logprobs, rescue)
    if rescue.joined:
        console.say(f"  {label}: {rescue.joined:,} of {len(asked):,} were drawn by {len(elsewhere.shards)} shards")
    if rescue.taken:
        console.say(f"  {label}: {rescue.taken:,} of {len(asked):,} are in the store already")
    if watch is not None:
        for number in np.setdiff1d(np.arange(len(asked)), drawn.missing()).tolist():
            watch(number, drawn[number])
    draw(engine, sampling, asked, drawn, console, label, unit, watch)
    return drawn


def hand_over(log: SampleLog, priced: Iterator[Rollout], out: Path) -> None:
    """Leave what a shard has drawn in its artifact, for `join`. priced: from `price`."""
    for _ in priced:
        pass
    log.leave(out)


def join(shard: Path, asked: Asked, drawn: Drawn, logprobs: bool, rescue: Rescue) -> None:
    """Put what a shard of this sampling has drawn into `drawn`."""
    missing = np.zeros(len(asked), dtype=bool)
    missing[drawn.missing()] = True
    for _, line in sample_log.lines(shard / sample_log.FILE):
        if line is None:
            continue
        rollout = read(line)
        number = asked.find(rollout.question_id, rollout.index)
        if number is None or not missing[number] or rollout.cut(asked.limit(number), logprobs) != rollout:
            continue
        taken = bool(line.get("taken"))
        drawn.put(number, rollout, taken)
        missing[number] = False
        if taken:
            rescue.taken += 1
            rescue.taken_tokens += len(rollout.ids)
        else:
            rescue.joined += 1


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
         unit: str = "answers", watch: Watch | None = None) -> None:
    """Sample what `drawn` lacks. Raises EngineError where the engine leaves some out."""
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
