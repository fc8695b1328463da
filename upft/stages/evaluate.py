"""Stage `evaluate`: one model, one task: ask, grade, score.

Base and trained model are asked with the same seeds, so their answers pair question by question. Writes
answers.jsonl (a row an answer), scores.json, ledger.json. Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upft import datasets, grading, ledger, models, rollouts, shapes, statistics
from upft.errors import DataError
from upft.plan import EvaluateSpec, Generated, HubRef
from upft.prompts import Prompter
from upft.sampler import resolve_sampling
from upft.stages import Host
from upft.store import RESUME


def run(spec: EvaluateSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Ask every question `spec.n` times and grade each answer."""
    questions = datasets.load(spec.questions)
    if questions.duplicates:
        host.console.warn(f"{questions.name}: {questions.duplicates} duplicate questions, each asked once")
    source, adapter = _opened(spec, inputs.get("model"))
    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    prompter = Prompter(tokenizer, spec.prompt)
    with ledger.Meter() as meter:
        engine = host.engines.get(spec.sampling.engine, source, spec.sampling.dtype, spec.model.trust_remote_code,
                                  adapter)
        prompts: list[rollouts.Prompt] = []
        for question in questions.rows:
            ids = tuple(prompter.ids(question.text))
            if len(ids) >= engine.context:
                raise DataError(f"task {spec.task}: question {question.id} has {len(ids)} tokens, the model's context "
                                f"{engine.context}", "leave it out of the task's file, or use a model with a longer context")
            prompts.append(rollouts.Prompt(question.id, ids, min(spec.max_tokens, engine.context - len(ids))))
        sampling = resolve_sampling(spec.sampling, source, tokenizer)
        drawn = rollouts.roll_out(engine, sampling, prompts, spec.n, spec.sampling.seed, host.console, "answering",
                                  keep=out / RESUME)
        texts = [tokenizer.decode(r.ids, skip_special_tokens=True) for r in drawn]
        gold = {question.id: question for question in questions.rows}
        verdicts = []
        with host.console.bar("grading", len(drawn), "answers") as bar:
            for rollout, text in zip(drawn, texts, strict=True):
                answer = gold[rollout.question_id].answer
                assert answer is not None  # Config.check demands an answer field
                verdicts.append(grading.grade(text, answer))
                bar.advance(1)
    cost = ledger.Ledger()
    meter.fill(cost, host.gpus)
    for _ in rollouts.price(cost, rollouts.Asked.of(prompts, spec.n, spec.sampling.seed), drawn, shapes.read_shape(source)):
        pass
    cost.write(out)

    asked = {prompt.question_id: prompt.ids for prompt in prompts}
    styled = isinstance(spec.questions.source, Generated)
    with (out / "answers.jsonl").open("w", encoding="utf-8") as stream:
        for rollout, text, verdict in zip(drawn, texts, verdicts, strict=True):
            question = gold[rollout.question_id]
            row: dict[str, Any] = {
                "id": question.id, "index": rollout.index, "question": question.text, "gold": question.answer,
                "completion": text, "extracted": verdict.extracted, "right": verdict.right, "reason": verdict.reason,
                "finish_reason": rollout.finish_reason, "tokens": len(rollout.ids),
                "prompt_ids": asked[question.id], "completion_ids": rollout.ids,
            }
            if styled:
                row["style"] = _style(text)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    correct = np.array([v.right for v in verdicts], dtype=float).reshape(len(prompts), spec.n)
    estimate = statistics.accuracy(correct)
    (out / "scores.json").write_text(json.dumps({
        "task": spec.task,
        "questions": len(prompts),
        "samples": spec.n,
        "temperature": spec.sampling.temperature,
        "accuracy": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "unfinished": sum(r.finish_reason == "length" for r in drawn),
        "no_answer": sum(v.extracted is None for v in verdicts),
        "mean_tokens": sum(len(r.ids) for r in drawn) / len(drawn),
        "engine": engine.name,
        "per_request_seed": engine.per_request_seed,
    }, indent=1) + "\n")


def _opened(spec: EvaluateSpec, trained: Path | None) -> tuple[Path | HubRef, Path | None]:
    """(model, adapter) to ask: the base, the trained weights, or the base with an adapter that was not merged."""
    if trained is None:
        return models.resolve(spec.model.source), None
    if (trained / "model").is_dir():
        return trained / "model", None
    return models.resolve(spec.model.source), trained / "adapter"


def _style(text: str) -> str | None:
    from upft.toy.arithmetic import style_of

    return style_of(text)
