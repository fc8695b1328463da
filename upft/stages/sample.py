"""Stage `sample`: the model's own solutions, one sampling for every prefix length up to its own.

Most questions get `max_tokens` tokens; the share that a hash of the question puts under `trace_ratio` gets
whole traces. What another sampling of the same model and settings holds already (fewer or more traces a question,
longer ones, other questions) is taken over instead of being sampled again. The gold answers, where the data has them,
travel along for later stages; nothing here looks at them. Writes questions.jsonl, samples.jsonl, samples.json,
ledger.json; holds some bytes a question in memory, whatever their number.
"""

from __future__ import annotations

import json
import threading
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upft import datasets, diagnosis, ledger, models, prefix, rollouts, shapes
from upft.choices import Engine
from upft.errors import DataError
from upft.prompts import Prompter
from upft.sample_log import SampleLog
from upft.sampler import resolve_sampling
from upft.shards import Share
from upft.specs import SampleSpec
from upft.stages import Host, told
from upft.store import RESUME

FILE = "samples.json"


def run(spec: SampleSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Sample `spec.n` completions of every question that fits the model's context."""
    longest = spec.max_tokens if spec.max_tokens is not None else diagnosis.suggested_length(inputs["diagnosis"])
    source, adapter = models.trained_as(models.resolve(spec.model.source), inputs.get("model"))
    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    cost, rescue, found = ledger.Ledger(), rollouts.Rescue(), Found()
    with host.meter(out) as meter:
        # May refuse a question: before the engine starts.
        asked_for = _Questions.written(spec, out / "questions.jsonl", Prompter(tokenizer, spec.prompt), host.share)
        elsewhere = host.elsewhere(spec, inputs)
        engine = host.engines.later(told(elsewhere, FILE), spec.sampling.engine, source, spec.sampling.dtype,
                                    spec.model.trust_remote_code, adapter)
        too_long = asked_for.fit(engine.context, longest, spec.trace_max_tokens)
        said(host, asked_for, too_long, engine.context)
        sampling = resolve_sampling(spec.sampling, source, tokenizer, spec.logprobs)
        asked = rollouts.Asked(asked_for.prompt, asked_for.ids(), asked_for.limits, asked_for.lengths, spec.n,
                               spec.sampling.seed)
        with SampleLog(out / RESUME) as log:
            drawn = rollouts.gather(engine, sampling, asked, log, elsewhere, rescue, host.console, "sampling",
                                    "questions" if spec.n == 1 else "traces")
            priced = rollouts.price(cost, asked, drawn, shapes.read_shape(source))
            if host.share is not None:
                rollouts.hand_over(log, priced, out)
            else:
                with (out / "samples.jsonl").open("w", encoding="utf-8") as stream:
                    for number, rollout in enumerate(priced):
                        kind = "trace" if asked_for.whole[number // spec.n] else "prefix"
                        found.count(kind, rollout.finish_reason)
                        stream.write(json.dumps(_row(rollout, kind), separators=(",", ":")) + "\n")
    cost.reused_tokens = rescue.taken_tokens
    host.settle(cost, meter, out)
    (out / FILE).write_text(json.dumps({
        "questions": len(asked_for.limits),
        "duplicates": asked_for.duplicates,
        "too_long": too_long.count,
        "traces_a_question": spec.n,
        "prefix_tokens": longest,
        "prefix_requests": found.prefixes,
        "trace_requests": found.traces,
        "unfinished_traces": found.unfinished,
        "engine": engine.name,
        "per_request_seed": engine.per_request_seed,
        "context": engine.context,
        "reused_after_interruption": rescue.reused,
        "taken_from_other_samplings": rescue.taken,
        "dropped_log_lines": rescue.dropped,
        "logprobs": spec.logprobs,
        "stop_ids": sorted(sampling.stop_ids),
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }, indent=1) + "\n", encoding="utf-8")
    if spec.sampling.engine is Engine.vllm and not engine.per_request_seed:
        host.console.say("  vLLM here cannot seed requests; the engine is seeded instead (noted in samples.json)")


@dataclass
class Found:
    """Counts of what was drawn."""

    prefixes: int = 0
    traces: int = 0
    unfinished: int = 0
    """Whole traces that the length limit cut."""

    def count(self, kind: str, finish_reason: str) -> None:
        """One more."""
        if kind == "prefix":
            self.prefixes += 1
        else:
            self.traces += 1
            self.unfinished += finish_reason == "length"


@dataclass(frozen=True)
class TooLong:
    """Questions that do not fit the model's context."""

    count: int
    first: str | None


class _Questions:
    """The questions as they are asked, in a file; in memory are only where each stands and how long it is.

    lengths, limits: [questions], tokens of the prompt and most tokens of an answer; whole: [questions], whether it
    carries a whole trace.
    """

    def __init__(self, path: Path, places: np.ndarray, lengths: np.ndarray, whole: np.ndarray, name: str,
                 duplicates: int, part: bool) -> None:
        self._path, self._places, self._part = path, places, part
        self.lengths, self.whole, self.limits = lengths, whole, np.zeros_like(lengths)
        self.name, self.duplicates = name, duplicates
        self._file, self._turn = path.open("rb"), threading.Lock()

    @classmethod
    def written(cls, spec: SampleSpec, path: Path, prompter: Prompter, share: Share | None) -> _Questions:
        """Read, check, render and write every question of the data, or of a share of it. Raises DataError and ModelError."""
        stream = datasets.Stream(spec.questions)
        places, lengths, whole = array("q"), array("q"), array("b")
        with path.open("wb") as out:
            for question in stream if share is None else share.of(iter(stream)):
                ids = prompter.ids(question.text)
                places.append(out.tell())
                lengths.append(len(ids))
                whole.append(prefix.carries_trace(question.id, spec.trace_ratio))
                out.write(json.dumps({"id": question.id, "text": question.text, "answer": question.answer,
                                      "prompt_ids": ids}, ensure_ascii=False).encode() + b"\n")
        return cls(path, np.array(places), np.array(lengths), np.array(whole, dtype=bool), stream.name, stream.duplicates,
                   share is not None)

    def fit(self, context: int, prefix_tokens: int, trace_tokens: int) -> TooLong:
        """Set the limits; leave out (of the file too) what does not fit: a prefix must fit whole, of a trace a token.

        Raises DataError where nothing is left of all questions (of a share there may be nothing).
        """
        wanted = np.where(self.whole, trace_tokens, prefix_tokens)
        room = context - self.lengths
        fits = room >= np.where(self.whole, 1, wanted)
        lost = np.flatnonzero(~fits)
        if len(lost) == len(fits) and not self._part:
            raise DataError(f"all {len(fits)} questions are longer than the model's context of {context} tokens",
                            "use shorter questions or a model with a longer context")
        first = self._line(int(lost[0]))["id"] if len(lost) else None
        if len(lost):
            self._leave_only(np.flatnonzero(fits))
        self.limits = np.minimum(wanted, room)[fits]
        self.lengths, self.whole = self.lengths[fits], self.whole[fits]
        return TooLong(len(lost), first)

    def _leave_only(self, kept: np.ndarray) -> None:
        shorter = self._path.with_suffix(".fits")
        places = []
        with shorter.open("wb") as out:
            for i in kept.tolist():
                places.append(out.tell())
                self._file.seek(int(self._places[i]))
                out.write(self._file.readline())
        self._file.close()
        shorter.replace(self._path)
        self._file, self._places = self._path.open("rb"), np.array(places, dtype=np.int64)

    def _line(self, number: int) -> dict[str, Any]:
        with self._turn:  # engines of a call ask for prompts from threads of their own
            self._file.seek(int(self._places[number]))
            text = self._file.readline()
        line = json.loads(text)
        assert isinstance(line, dict)
        return line

    def prompt(self, number: int) -> rollouts.Prompt:
        """A question's prompt."""
        line = self._line(number)
        return rollouts.Prompt(line["id"], tuple(line["prompt_ids"]), int(self.limits[number]))

    def ids(self) -> Iterator[str]:
        """Of every question, in order."""
        with self._path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)["id"]


def _row(rollout: rollouts.Rollout, kind: str) -> dict[str, Any]:
    """A line of samples.jsonl."""
    row = {"id": rollout.question_id, "index": rollout.index, "kind": kind, "ids": rollout.ids,
           "finish_reason": rollout.finish_reason}
    return row if rollout.logprobs is None else {**row, "logprobs": rollout.logprobs}


def said(host: Host, questions: _Questions, too_long: TooLong, context: int) -> None:
    """Tell what was left out; a question is never cut to fit."""
    if questions.duplicates:
        host.console.warn(f"{questions.name}: {questions.duplicates} duplicate questions, each kept once")
    if too_long.count:
        host.console.warn(f"{questions.name}: {too_long.count} questions do not fit the model's context of {context} "
                          f"tokens and are left out (first: {too_long.first})")
