"""Stage `reference`: log-probabilities of the pairs' completions under the model before training.

Once for every beta, rate and seed that a verifier is trained with. Writes logprobs.safetensors ([rows], a sum over the
completion's tokens), reference.json and ledger.json. Knows no loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from upft import fit, ledger, models, prefix, scoring
from upft.specs import ReferenceSpec
from upft.stages import Host
from upft.store import RESUME


def run(spec: ReferenceSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Score every row of `inputs["rows"]`."""
    host.engines.close()  # an engine holds the memory that the model needs
    source = models.resolve(spec.model.source)
    dtype = fit.weights_dtype(spec, spec.frozen)
    with host.meter(out) as meter:
        rows = prefix.read_rows(inputs["rows"] / prefix.FILE)
        scored = scoring.score(lambda: models.load_model(source, dtype, spec.model.trust_remote_code), rows, spec.precision,
                               host.compute, out / RESUME, host.console, "reference")
        scoring.write(out, scored.logprobs)
    host.settle(ledger.Ledger(scored_tokens=scored.tokens, flops=scored.flops), meter, out)
    (out / "reference.json").write_text(json.dumps({
        "rows": len(rows),
        "mean_logprob": float(scored.logprobs.mean()),
    }, indent=1) + "\n", encoding="utf-8")
