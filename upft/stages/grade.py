"""Stage `grade`: which of the sampled whole traces end in the data's answer.

Writes verdicts.jsonl (a line a whole trace, in the order of the samples), grades.json (counts) and ledger.json. One
grading serves every method and cap. Needs the tokenizer for the traces' text; knows no method.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upft import grading, ledger, models, traces
from upft.errors import DataError
from upft.graders import Graders
from upft.selection import Trace
from upft.specs import GradeSpec
from upft.stages import Host

TOGETHER = 4096
"""Traces that are with the graders at once, a question's all together."""


def run(spec: GradeSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Grade every whole trace. Raises DataError for a question without a gold answer."""
    samples = inputs["samples"]
    tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
    told = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    noun = "prefixes" if "sources" in told else "questions"  # as `branch` tells it: what its traces are answers to
    questions = graded = right = unread = some = 0
    with ledger.Meter() as meter, host.console.bar("grading", told["questions"], noun) as bar, Graders() as graders, \
            (out / traces.VERDICTS).open("w", encoding="utf-8") as stream:
        asked = traces.read(samples)
        for together in _blocks(asked):
            for question, verdicts in _graded(together, tokenizer, graders):
                for trace, verdict in verdicts:
                    line = {"id": question.id, "index": trace.index, "right": verdict.right, "extracted": verdict.extracted,
                            "reason": verdict.reason}
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                questions, graded = questions + 1, graded + len(verdicts)
                right += sum(v.right for _, v in verdicts)
                unread += sum(v.extracted is None for _, v in verdicts)
                some += any(v.right for _, v in verdicts)
            bar.advance(len(together))
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    (out / "grades.json").write_text(json.dumps({
        "questions": questions,
        "traces": graded,
        "right": right,
        "no_answer": unread,
        "questions_with_a_right_trace": some,
    }, indent=1) + "\n", encoding="utf-8")
    host.console.say(f"  {right:,} of {graded:,} traces are right; {questions - some:,} of {questions:,} {noun} have none")


def _blocks(asked: Iterator[traces.Sampled]) -> Iterator[list[traces.Sampled]]:
    """Questions in blocks of TOGETHER traces or a few more."""
    block: list[traces.Sampled] = []
    held = 0
    for question in asked:
        block.append(question)
        held += len(question.traces)
        if held >= TOGETHER:
            yield block
            block, held = [], 0
    if block:
        yield block


def _graded(questions: Sequence[traces.Sampled], tokenizer: Any,
            graders: Graders) -> Iterator[tuple[traces.Sampled, list[tuple[Trace, grading.Verdict]]]]:
    """Each question with the verdicts on its whole traces."""
    asked: list[tuple[traces.Sampled, Trace]] = []
    for question in questions:
        if question.answer is None:
            raise DataError(f"question {question.id} has no gold answer: {question.text[:60]!r}",
                            "name the column that holds them: data.answer_field=COLUMN")
        asked_with = question.prompt_ids[:len(question.prompt_ids) - question.prefix]
        begun = question.prompt_ids[len(asked_with):]
        prompt = tokenizer.decode(asked_with, skip_special_tokens=False)
        for trace in question.traces:
            if trace.whole:
                text = tokenizer.decode([*begun, *trace.ids], skip_special_tokens=True)
                graders.put(len(asked), grading.reopened(prompt, text), question.answer)
                asked.append((question, trace))
    verdicts = dict(graders.rest())
    found: dict[str, list[tuple[Trace, grading.Verdict]]] = {question.id: [] for question in questions}
    for number, (question, trace) in enumerate(asked):
        found[question.id].append((trace, verdicts[number]))
    return ((question, found[question.id]) for question in questions)
