"""Stage `coverage`: what training moved, from prefixes of both models continued by both.

Reads four sets of continuations and their grades (`branches PROPOSER by SOLVER`, `outcomes ...`); writes coverage.json (its
keys: `upft.analyses.branching.coverage`), values.jsonl (a line a question) and ledger.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import ledger, outcomes
from upft.analyses import branching
from upft.errors import DataError
from upft.specs import CoverageSpec
from upft.stages import Host, keep


def run(spec: CoverageSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Split the change. Raises DataError where the four were not made of the same questions."""
    with ledger.Meter() as meter:
        told = json.loads((inputs["branches base by base"] / "samples.json").read_text(encoding="utf-8"))
        cells = {(i, j): outcomes.read(inputs[f"branches {i} by {j}"], inputs[f"outcomes {i} by {j}"])
                 for i, j in branching.CELLS}
        try:
            solved = branching.solved(cells)
        except ValueError as error:
            raise DataError(f"coverage: {error}", "an artifact is damaged: use run.repair=true") from error
        lengths = sorted({point.t for point in cells["base", "base"]})
        found = branching.coverage([solved], lengths, told["traces_a_question"], spec.seed)
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    keep(out, [one.told() for one in solved])
    (out / "coverage.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
