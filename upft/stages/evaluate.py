"""Stage `evaluate`: one model, one task: ask, grade, score.

Base and trained model are asked with the same seeds, so their answers pair question by question. Answers are graded in
processes of their own while others are being drawn; they go to the log as they come, and those that another evaluation of
the same model holds (fewer answers a question, the same questions in another file) are taken over. Writes answers.jsonl,
scores.json (see `upft.answers`), ledger.json. Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from upft import answers, asking, evaluation, grading, ledger, models, rollouts, shapes
from upft.graders import Graders
from upft.prompts import Prompter
from upft.sample_log import SampleLog
from upft.sampler import Engine, Sampling, resolve_sampling
from upft.specs import EvaluateSpec, Generated
from upft.stages import Host, told
from upft.store import RESUME

_END = 16
"""Tokens at the end of a prompt that can open a thought."""


def run(spec: EvaluateSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Ask every question `spec.n` times and grade each answer."""
    asked_for, questions = evaluation.items(spec)
    if host.share is not None:
        asked_for = list(host.share.of(iter(asked_for)))
    if questions.duplicates:
        host.console.warn(f"{questions.name}: {questions.duplicates} duplicate questions, each asked once")
    source, adapter = models.trained_as(models.resolve(spec.model.source), inputs.get("model"))
    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    sampling = resolve_sampling(spec.sampling, source, tokenizer)
    evaluation.check_sampling(spec, sampling)
    elsewhere, rescue, cost = host.elsewhere(spec, inputs), rollouts.Rescue(), ledger.Ledger()
    with host.meter(out) as meter:
        engine = host.engines.later(told(elsewhere, answers.SCORES), spec.sampling.engine, source, spec.sampling.dtype,
                                    spec.model.trust_remote_code, adapter)
        prompts = evaluation.prompts(spec, asked_for, Prompter(tokenizer, spec.prompt), engine.context)
        asked = rollouts.Asked.of(prompts, spec.n, spec.sampling.seed)
        with SampleLog(out / RESUME) as log, Graders() as graders:
            marks = _Marks(graders, spec, asked_for, asked, tokenizer)  # the whole stage grades, its shards do not
            drawn = rollouts.gather(engine, sampling, asked, log, elsewhere, rescue, host.console, "answering", "answers",
                                    marks.put if host.share is None else None)
            priced = rollouts.price(cost, asked, drawn, shapes.read_shape(source))
            about = {**_about(spec, sampling, engine), "reused_after_interruption": rescue.reused,
                     "taken_from_other_evaluations": rescue.taken, "dropped_log_lines": rescue.dropped}
            if host.share is not None:
                rollouts.hand_over(log, priced, out)
                (out / answers.SCORES).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            else:
                marks.wait(host, len(asked))
                answers.write(out, _rows(spec, asked_for, asked, priced, marks), about)
    cost.reused_tokens = rescue.taken_tokens
    host.settle(cost, meter, out)


class _Marks:
    """The verdicts on answers, by number, as the graders give them."""

    def __init__(self, graders: Graders, spec: EvaluateSpec, asked_for: list[asking.Item], asked: rollouts.Asked,
                 tokenizer: Any) -> None:
        self._graders, self._spec, self._asked_for, self._asked, self._tokenizer = graders, spec, asked_for, asked, tokenizer
        self.verdicts: dict[int, grading.Verdict] = {}
        self._order = asked.order(np.arange(len(asked)))
        self._first = self._right = 0

    def put(self, number: int, rollout: rollouts.Rollout) -> Mapping[str, float | str]:
        """Have one more graded; what the progress bar tells of those done by now."""
        item = self._asked_for[number // self._spec.n]
        # A template that opens the thought itself leaves only its end to the completion.
        prompt = self._tokenizer.decode(list(self._asked.prompt(number).ids[-_END:]), skip_special_tokens=False)
        self._graders.put(number, grading.reopened(prompt, self.text(rollout)), item.gold, item.kind)
        self._take(self._graders.ready())
        return self._progress()

    def _progress(self) -> Mapping[str, float | str]:
        """The accuracy of those asked first, up to the first that is not graded: short answers end early and are right more or
        less often than long ones, so that of all graded by now it would say nothing."""
        while self._first < len(self._order) and (found := self.verdicts.get(int(self._order[self._first]))) is not None:
            self._right += found.right
            self._first += 1
        return {"accuracy": f"{self._right / self._first:.1%} of the first {self._first:,}"} if self._first else {}

    def text(self, rollout: rollouts.Rollout) -> str:
        """An answer as it reads."""
        return str(self._tokenizer.decode(list(rollout.ids), skip_special_tokens=True))

    def wait(self, host: Host, count: int) -> None:
        """Until all are graded."""
        with host.console.bar("grading", count, "answers") as bar:
            bar.advance(len(self.verdicts))
            for one in self._graders.rest():
                self._take(iter([one]))
                bar.advance(1)

    def _take(self, found: Iterator[tuple[int, grading.Verdict]]) -> None:
        for number, verdict in found:
            self.verdicts[number] = verdict


def _rows(spec: EvaluateSpec, asked_for: list[asking.Item], asked: rollouts.Asked, drawn: Iterator[rollouts.Rollout],
          marks: _Marks) -> Iterator[dict[str, Any]]:
    """The lines of answers.jsonl."""
    styled = isinstance(spec.questions.source, Generated)
    for number, rollout in enumerate(drawn):
        item, verdict, completion = asked_for[number // spec.n], marks.verdicts[number], marks.text(rollout)
        yield {
            "id": item.id, "index": rollout.index, "question": item.text, "gold": item.gold,
            "prompt_ids": asked.prompt(number).ids, "ids": rollout.ids, "completion": completion,
            "extracted": verdict.extracted,
            "vote": None if verdict.extracted is None else grading.vote(verdict.extracted, item.kind),
            "right": verdict.right, "reason": verdict.reason, "finish_reason": rollout.finish_reason,
            "tokens": len(rollout.ids), **({"style": _style(completion)} if styled else {}),
        }


def _about(spec: EvaluateSpec, sampling: Sampling, engine: Engine) -> dict[str, Any]:
    """How the task was asked, and by what."""
    settings = asdict(sampling)
    return {
        "task": spec.task, "protocol": spec.protocol.name, "kind": spec.kind.name, "n": spec.n,
        **{name: settings[name] for name in ("temperature", "top_p", "top_k", "seed")},
        "stop_ids": sorted(sampling.stop_ids), "max_tokens": spec.max_tokens, "protocol_context": spec.context,
        "engine": engine.name, "per_request_seed": engine.per_request_seed, "context": engine.context,
    }


def _style(text: str) -> str | None:
    from upft.toy.arithmetic import style_of

    return style_of(text)
