"""Stage `kl`: where training acts, as divergence from the base model by token position, over the base model's own traces.

Reads a sampling of whole traces and the training; writes divergences.jsonl (a line a trace: forward, reverse [tokens], nats),
kl.json (its keys: `upft.analyses.divergences.summary`, and dtype) and ledger.json. Both models are on one device; shares of the
questions may be compared by jobs of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upft import adapters, diagnosis, divergence, ledger, models, prefix, traces
from upft.analyses.divergences import Apart, summary
from upft.errors import DataError
from upft.sample_log import SampleLog
from upft.specs import KlSpec
from upft.stages import Host
from upft.store import RESUME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(spec: KlSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Compare the two models on every trace. Raises DataError where there is none."""
    host.engines.close()  # an engine holds the memory that the models need
    with host.meter(out) as meter:
        sampled = traces.read(inputs["samples"])
        compared = [divergence.Trace(question.id, trace.index, prefix.trace_row(question.id, question.prompt_ids, trace.ids))
                    for question in (sampled if host.share is None else host.share.of(sampled))
                    for trace in question.traces if trace.ids]
        if not compared and host.share is None:  # of a share there may be none
            raise DataError(f"{inputs['samples']} holds no traces to compare the models on", "raise analysis.kl.questions")
        with SampleLog(out / RESUME) as log:
            pairs, flops = divergence.compare(lambda: (_opened(spec, None), _opened(spec, inputs["model"])), compared,
                                              host.compute, log, host.console, host.shards)
            if host.share is not None:
                log.leave(out)
            else:
                _write(spec, inputs, [Apart(one.question, *pair) for one, pair in zip(compared, pairs, strict=True)], out)
    host.settle(ledger.Ledger(scored_tokens=2 * sum(len(one.row.input_ids) for one in compared), flops=flops), meter, out)


def _write(spec: KlSpec, inputs: Mapping[str, Path], found: Sequence[Apart], out: Path) -> None:
    length = spec.prefix_len if spec.prefix_len is not None else diagnosis.suggested_length(inputs["diagnosis"])
    with (out / "divergences.jsonl").open("w", encoding="utf-8") as stream:
        for one in found:
            stream.write(json.dumps({"question": one.question, "forward": one.forward.tolist(),
                                     "reverse": one.reverse.tolist()}) + "\n")
    told = summary(found, length, spec.longest, spec.seed) | {"dtype": spec.dtype.name}
    (out / "kl.json").write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _opened(spec: KlSpec, trained: Path | None) -> PreTrainedModel:
    """The trained model, or (None) the base."""
    import torch

    source, adapter = models.trained_as(models.resolve(spec.model.source), trained)
    model = models.load_model(source, getattr(torch, spec.dtype.name), spec.model.trust_remote_code)
    if adapter is not None:
        adapters.load(model, adapter)
    return model
