"""Stage `judge`: another model looks at the answers that the rule calls wrong and may accept them.

The paper's protocol, where it was used: an answer counts when the rule or the judge accepts it. Reads the answers of one
evaluation, writes answers.jsonl and scores.json in the same format, with the rule's verdict (`rule`) and the judge's
(`judge`) kept beside the sum of both (`right`); judge.json; ledger.json. Replies go to the log as they come. Grades nothing
itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upft import answers, judging, ledger, rollouts, shapes
from upft.sampler import resolve_sampling
from upft.specs import JudgeSpec, SamplingSpec
from upft.stages import Host
from upft.store import RESUME


def run(spec: JudgeSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Ask the judge about every answer that the rule calls wrong, greedily and once."""
    source, tokenizer, prompter = judging.opened(spec)
    sampling = resolve_sampling(SamplingSpec(spec.engine, spec.dtype, 0.0, 1.0, 0, 0), source, tokenizer)
    cost, replies = ledger.Ledger(), {}
    with host.meter(out) as meter:
        rows = answers.read(inputs["answers"])
        shape = shapes.read_shape(source)
        engine = host.engines.later(None if shape is None else {"engine": spec.engine.name, "per_request_seed": True,
                                                                "context": shape.context},
                                    spec.engine, source, spec.dtype, spec.model.trust_remote_code)
        cases = judging.cases(spec, rows, prompter, engine.context)
        prompts = [case.prompt for case in cases if case.prompt is not None]
        drawn = rollouts.roll_out(engine, sampling, prompts, 1, 0, host.console, "judging", keep=out / RESUME)
        asked = rollouts.Asked.of(prompts, 1, 0)
        for rollout in rollouts.price(cost, asked, drawn, shape):
            replies[rollout.question_id] = tokenizer.decode(rollout.ids, skip_special_tokens=True)
    about = json.loads((inputs["answers"] / answers.SCORES).read_text(encoding="utf-8"))
    refused = {case.id: case.why for case in cases if case.prompt is None}
    accepted = sum(judging.accepts(spec, reply) for reply in replies.values())
    counts = {"asked": len(replies), "accepted": accepted, "not_asked": len(refused),
              "why_not": {why: list(refused.values()).count(why) for why in sorted(set(map(str, refused.values())))}}
    answers.write(out, _rows(spec, inputs["answers"], replies, refused), {**about, "judge": counts})
    (out / "judge.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    host.settle(cost, meter, out)


def _rows(spec: JudgeSpec, folder: Path, replies: Mapping[str, str],
          refused: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    for row in answers.read(folder):
        case, rule = judging.name(row), row["right"]
        row["rule"], row["judge"] = rule, None
        if case in replies:
            accepted = judging.accepts(spec, replies[case])
            row["judge"] = {"accepted": accepted, "reply": replies[case]}
            row["right"], row["reason"] = accepted, "judge accepts" if accepted else row["reason"]
        elif case in refused:
            row["judge"] = {"accepted": False, "reply": None, "why": refused[case]}
        yield row
