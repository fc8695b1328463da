"""Stage `consistency`: how many different prefixes the traces of one question have.

Reads a sampling and, where questions are told apart by difficulty, its grades; writes consistency.json (its keys:
`upft.analyses.consistency.summary`), values.jsonl (a line a question) and ledger.json. Holds one question's traces at a time.
Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import ledger, traces
from upft.analyses.consistency import Counted, summary
from upft.diagnosis import Trace
from upft.errors import DataError
from upft.specs import ConsistencySpec
from upft.stages import Host, keep


def run(spec: ConsistencySpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Count. Raises DataError where no question has two traces."""
    counted: list[Counted] = []
    with ledger.Meter() as meter:
        for question in traces.read(inputs["samples"], inputs.get("grades")):
            if len(question.traces) < 2:
                continue
            verdicts = [trace.right for trace in question.traces if trace.right is not None]
            counted.append(Counted.of(question.id, [_cut(trace.ids, trace.ended, spec.longest) for trace in question.traces],
                                      sum(verdicts) / len(verdicts) if verdicts else None, spec.longest))
    if not counted:
        raise DataError(f"{inputs['samples']}: no question has two traces", "sample more: analysis.consistency.n")
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    keep(out, [one.told() for one in counted])
    found = summary(counted, spec.longest, spec.edges)
    (out / "consistency.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _cut(ids: tuple[int, ...], ended: bool, longest: int) -> Trace:
    """As much of a trace as is counted; what goes on beyond was cut there."""
    return Trace(ids[:longest], "stop" if ended and len(ids) <= longest else "length", True)
