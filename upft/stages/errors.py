"""Stage `errors`: where errors begin, from continuations of right and of wrong traces.

Reads the continuations and their grades; writes errors.json (its keys: `upft.analyses.branching.errors`), values.jsonl
(a line a question) and ledger.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import ledger, outcomes
from upft.analyses import branching
from upft.specs import ErrorsSpec
from upft.stages import Host, keep


def run(spec: ErrorsSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Compare the two groups at every length."""
    with ledger.Meter() as meter:
        told = json.loads((inputs["branches"] / "samples.json").read_text(encoding="utf-8"))
        points = outcomes.read(inputs["branches"], inputs["outcomes"])
        sides = branching.sides(points)
        lengths = sorted({point.t for point in points})
        found = branching.errors(sides, lengths, told["traces_a_question"], spec.margin, spec.seed)
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    keep(out, [one.told() for one in sides])
    found = {**found, "prefixes": told["questions"]}
    (out / "errors.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
