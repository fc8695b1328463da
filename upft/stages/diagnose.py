r"""Stage `diagnose`: how alike the traces of one question begin, before anything is trained.

Reads samples.jsonl, writes diagnosis.json (its keys: `upft.diagnosis.Diagnosis.found`) and ledger.json. Needs the
tokenizer only where whole traces were sampled, whose text is searched for `\boxed{`. Knows no engine and no gold answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from upft import diagnosis, ledger, models
from upft.specs import DiagnoseSpec
from upft.stages import Host

BOX = "\\boxed{"


def run(spec: DiagnoseSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Look at the samples and say what prefix length they suggest."""
    with ledger.Meter() as meter:
        found = diagnose(spec, inputs["samples"])
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    (out / diagnosis.FILE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if found["suggested"] is not None:
        tokens = "token" if found["suggested"] == 1 else "tokens"
        host.console.say(f"  suggested prefix length: {found['suggested']} {tokens}. {found['reason']}")


def diagnose(spec: DiagnoseSpec, samples: Path) -> dict[str, Any]:
    """What diagnosis.json holds; one question of the samples is in memory at a time."""
    tokenizer: Any = None
    found = diagnosis.Diagnosis(spec.longest)
    greedy = _greedy(samples)
    for rows in _questions(samples / "samples.jsonl"):
        whole = rows[0]["kind"] == "trace"
        texts = [""] * len(rows)
        if whole:
            if tokenizer is None:
                tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
            texts = tokenizer.batch_decode([row["ids"] for row in rows], skip_special_tokens=True,
                                           clean_up_tokenization_spaces=False)
        found.add([diagnosis.Trace(row["ids"], row["finish_reason"], whole, None if greedy else row.get("logprobs"),
                                   BOX in text) for row, text in zip(rows, texts, strict=True)])
    return found.found(spec.agreement)


def _greedy(samples: Path) -> bool:
    """Whether no token was drawn: its log-probability is then the model's own and tells no entropy."""
    asked = samples / "spec.json"
    return asked.is_file() and json.loads(asked.read_text(encoding="utf-8"))["spec"]["sampling"]["temperature"] == 0


def _questions(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of each question."""
    with path.open(encoding="utf-8") as stream:
        for _, rows in groupby(map(json.loads, stream), key=itemgetter("id")):
            yield list(rows)
