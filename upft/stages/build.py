"""Stage `build`: samples -> training rows of ids with a supervised mask.

Reads questions.jsonl and samples.jsonl, writes rows.arrow, rows.json (what was built, what was left out, one
row of each kind to look at) and ledger.json. Knows no engine and no optimiser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upft import ledger, models, prefix
from upft.choices import CutUnit
from upft.errors import DataError
from upft.plan import BuildSpec
from upft.prompts import Prompter
from upft.stages import Host

WORDLESS = "no word in the completion"
"""Why a row is left out that is cut by words and gets no EOS."""


def run(spec: BuildSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Build one row a question from its first sample."""
    with ledger.Meter() as meter:
        tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
        rows, left_out = build(spec, inputs["samples"], Prompter(tokenizer, spec.prompt))
        if not rows:
            raise DataError(f"no training rows: {sum(left_out.values())} questions were left out ({_counts(left_out)})",
                            "raise train.max_length or sample.trace_max_tokens, or give shorter questions")
        prefix.write_rows(out / prefix.FILE, rows)
    for reason, count in left_out.items():
        if count:
            host.console.warn(f"{count} rows left out: {reason}")
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)
    supervised = [row.supervised for row in rows]
    (out / "rows.json").write_text(json.dumps({
        "prefix_rows": sum(row.kind == "prefix" for row in rows),
        "trace_rows": sum(row.kind == "trace" for row in rows),
        "left_out": left_out,
        "mean_supervised": sum(supervised) / len(rows),
        "mean_prompt": sum(len(row.input_ids) - n for row, n in zip(rows, supervised, strict=True)) / len(rows),
        "longest": max(len(row.input_ids) for row in rows),
        "examples": [example(row, tokenizer) for row in firsts(rows)],
    }, indent=1, ensure_ascii=False) + "\n")


def build(spec: BuildSpec, samples: Path, prompter: Prompter) -> tuple[list[prefix.Row], dict[str, int]]:
    """(rows in question order, how many were left out by reason)."""
    stop_ids = set(json.loads((samples / "samples.json").read_text())["stop_ids"])
    first = {s["id"]: s for s in _lines(samples / "samples.jsonl") if s["index"] == 0}
    rows: list[prefix.Row] = []
    left_out = {"the whole trace was cut by the length limit": 0, f"longer than train.max_length={spec.max_length}": 0}
    unfinished, too_long = left_out
    for question in _lines(samples / "questions.jsonl"):
        sample = first[question["id"]]
        if prefix.carries_trace(question["id"], spec.ratio):
            if sample["finish_reason"] == "length" and not spec.keep_unfinished:
                left_out[unfinished] += 1
                continue
            row = prefix.trace_row(question["id"], question["prompt_ids"], sample["ids"])
        else:
            completion = sample["ids"]
            if spec.unit is CutUnit.word:
                completion = prompter.words(completion, spec.prefix_len, stop_ids)
                if not completion and not spec.eos:  # an EOS alone would be a row still
                    left_out[WORDLESS] = left_out.get(WORDLESS, 0) + 1
                    continue
            prompt = prompter.ids(question["text"], spec.suffix)
            row = prefix.prefix_row(question["id"], prompt, completion, spec.prefix_len, prompter.eos_id, stop_ids,
                                    spec.eos)
        if len(row.input_ids) > spec.max_length:
            left_out[too_long] += 1
            continue
        rows.append(row)
    return rows, left_out


def firsts(rows: list[prefix.Row]) -> list[prefix.Row]:
    """The first row of each kind."""
    seen: dict[str, prefix.Row] = {}
    for row in rows:
        seen.setdefault(row.kind, row)
    return list(seen.values())


def example(row: prefix.Row, tokenizer: Any) -> dict[str, Any]:
    """A row as text: segments of (decoded ids, supervised or not), with the ids themselves."""
    segments: list[tuple[list[int], bool]] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        supervised = label != prefix.UNSUPERVISED
        if not segments or segments[-1][1] != supervised:
            segments.append(([], supervised))
        segments[-1][0].append(token)
    return {"kind": row.kind, "question_id": row.question_id, "input_ids": row.input_ids, "labels": row.labels,
            "segments": [[tokenizer.decode(ids, skip_special_tokens=False), supervised] for ids, supervised in segments]}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
