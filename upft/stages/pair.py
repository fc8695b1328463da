"""Stage `pair`: graded traces -> pairs of a right and a wrong one, as rows.

Writes rows.arrow (rows 2n and 2n + 1 are pair n, the right trace first), pairs.json and ledger.json. The rows are whole-trace
rows: the prompt that was sampled from, and the trace, supervised. Knows no loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from upft import ledger, prefix, selection, traces
from upft.errors import DataError
from upft.selection import Trace
from upft.specs import PairSpec
from upft.stages import Host

NONE_RIGHT, NONE_WRONG = "no trace is right", "no trace is wrong"
UNFIT = "cut by the length limit, or longer than train.max_length"


@dataclass
class Tally:
    """What was counted while pairs were made. left_out: questions without a pair, by reason."""

    questions: int = 0
    paired: int = 0
    pairs: int = 0
    right_tokens: int = 0
    wrong_tokens: int = 0
    unfit: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: {NONE_RIGHT: 0, NONE_WRONG: 0, UNFIT: 0})


def run(spec: PairSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Pair the traces of every question that has both kinds."""
    with ledger.Meter() as meter:
        tally = Tally()
        prefix.write_rows(out / prefix.FILE, pairs(spec, inputs["samples"], inputs["grades"], tally))
    lost = ", ".join(f"{count:,} questions: {reason}" for reason, count in tally.left_out.items() if count)
    if not tally.pairs:
        raise DataError(f"no pair of a right and a wrong trace: {lost}",
                        "a verifier needs questions that the model answers both ways: sample more traces (method.n) or other "
                        "questions, or use method=rft")
    host.console.say(f"  {tally.pairs:,} pairs from {tally.paired:,} of {tally.questions:,} questions"
                     + (f" ({lost})" if lost else ""))
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    (out / "pairs.json").write_text(json.dumps({
        "questions": tally.questions,
        "questions_with_pairs": tally.paired,
        "pairs": tally.pairs,
        "supervised_tokens": tally.right_tokens + tally.wrong_tokens,
        "mean_right_tokens": tally.right_tokens / tally.pairs,
        "mean_wrong_tokens": tally.wrong_tokens / tally.pairs,
        "unfit_traces": tally.unfit,
        "left_out": tally.left_out,
    }, indent=1) + "\n", encoding="utf-8")


def pairs(spec: PairSpec, samples: Path, grades: Path, tally: Tally) -> Iterator[prefix.Row]:
    """Rows in question order, each pair's right trace before its wrong one; counts them in `tally`."""
    for question in traces.read(samples, grades):
        tally.questions += 1
        graded = [trace for trace in question.traces[:spec.traces] if trace.right is not None]
        fit = [trace for trace in graded if _fits(spec, question, trace)]
        tally.unfit += len(graded) - len(fit)
        chosen = selection.pairs(fit, spec.cap)
        if not chosen:
            tally.left_out[_reason(graded)] += 1
        tally.paired += bool(chosen)
        for right, wrong in chosen:
            tally.pairs += 1
            tally.right_tokens += len(right.ids)
            tally.wrong_tokens += len(wrong.ids)
            yield prefix.trace_row(question.id, question.prompt_ids, right.ids)
            yield prefix.trace_row(question.id, question.prompt_ids, wrong.ids)


def _fits(spec: PairSpec, question: traces.Sampled, trace: Trace) -> bool:
    return (trace.ended or spec.keep_unfinished) and len(question.prompt_ids) + len(trace.ids) <= spec.max_length


def _reason(graded: list[Trace]) -> str:
    """Why a question has no pair."""
    if not any(trace.right for trace in graded):
        return NONE_RIGHT
    return NONE_WRONG if all(trace.right for trace in graded) else UNFIT
