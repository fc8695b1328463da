"""Stage `branch`: continuations of the first tokens of traces.

A prefix that several traces share is continued once for all of them; one whose trace was over by then, or that fills the
model's context, is not continued, it is its own outcome. Writes points.jsonl (a line a trace and length: which prefix that is),
and for grading the files of a sampling: questions.jsonl (a line a prefix: its prompt with the prefix at its end),
samples.jsonl, samples.json; ledger.json. Knows nothing of answers but the verdicts by which it chooses traces.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upft import alone, ledger, models, rollouts, shapes, traces
from upft.errors import DataError
from upft.sample_log import SampleLog
from upft.sampler import resolve_sampling
from upft.selection import Trace
from upft.shards import Share
from upft.specs import BranchSpec
from upft.stages import Host, told
from upft.store import RESUME

FILE = "samples.json"


def run(spec: BranchSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Continue each prefix `spec.n` times. Raises DataError where there is none."""
    source, adapter = models.trained_as(models.resolve(spec.model.source), inputs.get("model"))
    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    cost, rescue = ledger.Ledger(), rollouts.Rescue()
    with host.meter(out) as meter:
        prefixes = _Prefixes(out, alone.context(traces.told(inputs["samples"])))
        sampled = traces.read(inputs["samples"], inputs.get("grades"))
        for question in sampled if host.share is None else host.share.of(sampled):
            for trace in chosen(question.traces, spec):
                prefixes.add(question, trace, spec)
        prefixes.close(spec, host.share)
        if prefixes.full:
            host.console.warn(f"{prefixes.full} prefixes fill the model's context: not continued, each is its own outcome")
        elsewhere = host.elsewhere(spec, inputs)
        engine = host.engines.later(told(elsewhere, FILE), spec.sampling.engine, source, spec.sampling.dtype,
                                    spec.model.trust_remote_code, adapter)
        limits = prefixes.fit(engine.context)
        sampling = resolve_sampling(spec.sampling, source, tokenizer)
        asked = rollouts.Asked(prefixes.prompt, prefixes.ids(), limits, prefixes.lengths, spec.n, spec.sampling.seed)
        with SampleLog(out / RESUME) as log:
            drawn = rollouts.gather(engine, sampling, asked, log, elsewhere, rescue, host.console, "continuing",
                                    "continuations")
            priced = rollouts.price(cost, asked, drawn, shapes.read_shape(source))
            unfinished = 0
            if host.share is not None:
                rollouts.hand_over(log, priced, out)
            else:
                with (out / traces.SAMPLES).open("w", encoding="utf-8") as stream:
                    for rollout in priced:
                        unfinished += rollout.finish_reason == "length"
                        _write(stream, rollout.question_id, rollout.index, rollout.ids, rollout.finish_reason)
                    for id_ in prefixes.over():
                        _write(stream, id_, 0, (), "stop")
    cost.reused_tokens = rescue.taken_tokens
    host.settle(cost, meter, out)
    (out / FILE).write_text(json.dumps({
        "questions": prefixes.count, "sources": prefixes.questions, "over": prefixes.count - len(limits),
        **({"full": prefixes.full} if prefixes.full else {}),
        "traces_a_question": spec.n, "unfinished_traces": unfinished, "engine": engine.name,
        "per_request_seed": engine.per_request_seed, "context": engine.context, "reused_after_interruption": rescue.reused,
        "taken_from_other_samplings": rescue.taken, "dropped_log_lines": rescue.dropped,
        "stop_ids": sorted(sampling.stop_ids), "top_p": sampling.top_p, "top_k": sampling.top_k,
    }, indent=1) + "\n", encoding="utf-8")


def chosen(of: tuple[Trace, ...], spec: BranchSpec) -> list[Trace]:
    """Which of a question's traces are continued: the first ones, or the first right and the first wrong ones."""
    if not spec.both:
        return list(of[:spec.traces])
    right, wrong = ([t for t in of if t.right is side][:spec.traces] for side in (True, False))
    return [*right, *wrong] if right and wrong else []


class _Prefixes:
    """The different prefixes, in a file: those that are continued, then those that are over. In memory are only where each
    stands and how long it is. lengths: [continued], tokens of prompt and prefix; full: how many fill the context in which the
    traces were sampled."""

    def __init__(self, out: Path, context: float) -> None:
        self._context, self.full = context, 0
        self._path, self._over_path = out / traces.QUESTIONS, out / "over.jsonl"
        self._stream, self._over = self._path.open("wb"), self._over_path.open("wb")
        self._points = (out / "points.jsonl").open("w", encoding="utf-8")
        self._places, self._lengths, self._rooms = array("q"), array("q"), array("q")
        self._question, self._known = "", set[str]()
        self.lengths = self.limits = np.zeros(0, dtype=np.int64)
        self.questions = self.count = 0

    def add(self, question: traces.Sampled, trace: Trace, spec: BranchSpec) -> None:
        """Cut one trace at every length; traces of a question come one after the other."""
        if question.id != self._question:
            self._question, self._known = question.id, set()
            self.questions += 1
        for t in spec.at:
            ids = trace.ids[:t]
            # A whole trace that is shorter, or that the limit cut here, is all there is of it.
            over = len(trace.ids) < t or (trace.ended and len(trace.ids) == t) or len(ids) >= spec.trace_max_tokens
            full = not over and len(question.prompt_ids) + len(ids) >= self._context
            over |= full
            id_ = f"{question.id}/{hashlib.sha256(','.join(map(str, ids)).encode()).hexdigest()[:16]}{'.' if over else ''}"
            self._points.write(json.dumps({"question": question.id, "trace": trace.index, "t": t, "prefix": id_,
                                           "right": trace.right, "ended": over}) + "\n")
            if id_ in self._known:
                continue
            self._known.add(id_)
            self.count += 1
            self.full += full
            line = json.dumps({"id": id_, "text": question.text, "answer": question.answer,
                               "prompt_ids": [*question.prompt_ids, *ids], "prefix": len(ids)}, ensure_ascii=False).encode()
            if over:
                self._over.write(line + b"\n")
                continue
            self._places.append(self._stream.tell())
            self._lengths.append(len(question.prompt_ids) + len(ids))
            self._rooms.append(spec.trace_max_tokens - len(ids))
            self._stream.write(line + b"\n")

    def close(self, spec: BranchSpec, share: Share | None) -> None:
        """No more are coming. Raises DataError where there is none (of a share there may be none)."""
        if not self.count and share is None:
            raise DataError("no question has both right and wrong traces to continue" if spec.both else
                            "there are no traces to continue",
                            "sample more traces (analysis.errors.n) of more questions (analysis.errors.questions)")
        self._over.close()
        with self._over_path.open("rb") as over:
            for line in over:
                self._stream.write(line)
        self._stream.close()
        self._points.close()
        self._over_path.unlink()
        self._file, self._turn = self._path.open("rb"), threading.Lock()
        self.lengths = np.array(self._lengths, dtype=np.int64)

    def fit(self, context: int) -> np.ndarray:
        """Most tokens of a continuation of each: [continued]."""
        room = context - self.lengths
        if len(room) and room.min() < 1:
            raise DataError(f"{int((room < 1).sum())} prefixes fill the model's context of {context} tokens",
                            "use smaller lengths (analysis.errors.at, analysis.coverage.at) or shorter questions")
        self.limits = np.minimum(np.array(self._rooms, dtype=np.int64), room)
        return self.limits

    def prompt(self, number: int) -> rollouts.Prompt:
        """What is continued."""
        with self._turn:  # engines of a call ask for prompts from threads of their own
            self._file.seek(self._places[number])
            text = self._file.readline()
        line = json.loads(text)
        return rollouts.Prompt(line["id"], tuple(line["prompt_ids"]), int(self.limits[number]))

    def ids(self) -> Iterator[str]:
        """Of every prefix that is continued, in order."""
        for number, line in enumerate(traces.lines(self._path)):
            if number == len(self._places):
                return
            yield str(line["id"])

    def over(self) -> Iterator[str]:
        """Of every prefix that is not, in order."""
        for number, line in enumerate(traces.lines(self._path)):
            if number >= len(self._places):
                yield str(line["id"])


def _write(stream: Any, id_: str, index: int, ids: tuple[int, ...], finish_reason: str) -> None:
    stream.write(json.dumps({"id": id_, "index": index, "kind": "trace", "ids": ids, "finish_reason": finish_reason},
                            separators=(",", ":")) + "\n")
