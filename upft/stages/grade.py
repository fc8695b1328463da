"""Stage `grade`: which of the sampled whole traces end in the data's answer.

Writes verdicts.jsonl (a line a whole trace, in the order of the samples), grades.json (counts) and ledger.json. One
grading serves every method and cap. Needs the tokenizer for the traces' text; knows no method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import grading, ledger, models, traces
from upft.errors import DataError
from upft.plan import GradeSpec
from upft.stages import Host


def run(spec: GradeSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Grade every whole trace. Raises DataError for a question without a gold answer."""
    samples = inputs["samples"]
    tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
    told = json.loads((samples / "samples.json").read_text())
    questions = graded = right = unread = some = 0
    with ledger.Meter() as meter, host.console.bar("grading", told["questions"], "questions") as bar, \
            (out / traces.VERDICTS).open("w", encoding="utf-8") as stream:
        for question in traces.read(samples):
            if question.answer is None:
                raise DataError(f"question {question.id} has no gold answer: {question.text[:60]!r}",
                                "name the column that holds them: data.answer_field=COLUMN")
            whole = [trace for trace in question.traces if trace.whole]
            texts = tokenizer.batch_decode([list(trace.ids) for trace in whole], skip_special_tokens=True)
            verdicts = [grading.grade(text, question.answer) for text in texts]
            for trace, verdict in zip(whole, verdicts, strict=True):
                stream.write(json.dumps({"id": question.id, "index": trace.index, "right": verdict.right,
                                         "extracted": verdict.extracted, "reason": verdict.reason}, ensure_ascii=False) + "\n")
            questions, graded = questions + 1, graded + len(whole)
            right += sum(v.right for v in verdicts)
            unread += sum(v.extracted is None for v in verdicts)
            some += any(v.right for v in verdicts)
            bar.advance(1)
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    (out / "grades.json").write_text(json.dumps({
        "questions": questions,
        "traces": graded,
        "right": right,
        "no_answer": unread,
        "questions_with_a_right_trace": some,
    }, indent=1) + "\n")
    host.console.say(f"  {right:,} of {graded:,} traces are right; {questions - some:,} of {questions:,} questions have none")
