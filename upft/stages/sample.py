"""Stage `sample`: the model's own solutions, no longer than the method needs.

Most questions get `max_tokens` tokens; the share that a hash of the question puts under `trace_ratio` gets
whole traces. The gold answers, where the data has them, travel along for later stages; nothing here looks
at them. Writes questions.jsonl, samples.jsonl, samples.json, ledger.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import datasets, ledger, models, prefix, rollouts, shapes
from upft.choices import Engine
from upft.errors import DataError
from upft.plan import SampleSpec
from upft.prompts import Prompter
from upft.sampler import resolve_sampling
from upft.stages import Host
from upft.store import RESUME


def run(spec: SampleSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Sample `spec.n` completions of every question that fits the model's context."""
    del inputs
    questions = datasets.load(spec.questions)
    source = models.resolve(spec.model.source)
    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    prompter = Prompter(tokenizer, spec.prompt)
    with ledger.Meter() as meter:
        rendered = [tuple(prompter.ids(question.text)) for question in questions.rows]  # may refuse: before the engine
        engine = host.engines.get(spec.sampling.engine, source, spec.sampling.dtype, spec.model.trust_remote_code)
        prompts: list[rollouts.Prompt] = []
        kinds: dict[str, str] = {}
        too_long: list[str] = []
        for question, ids in zip(questions.rows, rendered, strict=True):
            kind = "trace" if prefix.carries_trace(question.id, spec.trace_ratio) else "prefix"
            wanted = spec.trace_max_tokens if kind == "trace" else spec.max_tokens
            room = engine.context - len(ids)
            if room < (1 if kind == "trace" else wanted):
                too_long.append(question.id)
                continue
            kinds[question.id] = kind
            prompts.append(rollouts.Prompt(question.id, ids, min(wanted, room)))
        said(host, questions, too_long, engine.context)
        if not prompts:
            raise DataError(f"all {len(questions.rows)} questions are longer than the model's context of "
                            f"{engine.context} tokens", "use shorter questions or a model with a longer context")
        sampling = resolve_sampling(spec.sampling, source, tokenizer)
        rescue = rollouts.Rescue()
        drawn = rollouts.roll_out(engine, sampling, prompts, spec.n, spec.sampling.seed, host.console, "sampling",
                                  keep=out / RESUME, rescue=rescue)
    cost = ledger.Ledger()
    meter.fill(cost, host.gpus)
    rollouts.price(cost, prompts, drawn, shapes.read_shape(source))
    cost.write(out)

    asked = {prompt.question_id: prompt for prompt in prompts}
    with (out / "questions.jsonl").open("w", encoding="utf-8") as stream:
        for question in questions.rows:
            if question.id in asked:
                stream.write(json.dumps({"id": question.id, "text": question.text, "answer": question.answer,
                                         "prompt_ids": list(asked[question.id].ids)}, ensure_ascii=False) + "\n")
    with (out / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for rollout in drawn:
            stream.write(json.dumps({"id": rollout.question_id, "index": rollout.index,
                                     "kind": kinds[rollout.question_id], "ids": list(rollout.ids),
                                     "finish_reason": rollout.finish_reason}) + "\n")
    traces = [r for r in drawn if kinds[r.question_id] == "trace"]
    (out / "samples.json").write_text(json.dumps({
        "questions": len(prompts),
        "duplicates": questions.duplicates,
        "too_long": len(too_long),
        "prefix_requests": len(drawn) - len(traces),
        "trace_requests": len(traces),
        "unfinished_traces": sum(r.finish_reason == "length" for r in traces),
        "engine": engine.name,
        "per_request_seed": engine.per_request_seed,
        "reused_after_interruption": rescue.reused,
        "dropped_log_lines": rescue.dropped,
        "stop_ids": sorted(sampling.stop_ids),
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }, indent=1) + "\n")
    if spec.sampling.engine is Engine.vllm and not engine.per_request_seed:
        host.console.say("  vLLM here cannot seed requests; the engine is seeded instead (noted in samples.json)")


def said(host: Host, questions: datasets.Questions, too_long: list[str], context: int) -> None:
    """Tell what was left out; a question is never cut to fit."""
    if questions.duplicates:
        host.console.warn(f"{questions.name}: {questions.duplicates} duplicate questions, each kept once")
    if too_long:
        host.console.warn(f"{questions.name}: {len(too_long)} questions do not fit the model's context of {context} "
                          f"tokens and are left out (first: {too_long[0]})")
