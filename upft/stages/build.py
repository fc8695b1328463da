"""Stage `build`: samples -> training rows of ids with a supervised mask.

Reads questions.jsonl and samples.jsonl side by side, writes rows.arrow, rows.json (what was built, what was left out,
one row of each kind to look at) and ledger.json. Knows no engine and no optimiser.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from upft import diagnosis, ledger, models, prefix
from upft.choices import CutUnit
from upft.errors import DataError
from upft.plan import BuildSpec
from upft.prompts import Prompter
from upft.stages import Host

WORDLESS = "no word in the completion"
"""Why a row is left out that is cut by words and gets no EOS."""


@dataclass
class Tally:
    """What was counted while rows were built.

    left_out: questions by reason. sampled_tokens: of all samples, used or not; used_tokens: of those, the ones in rows.
    examples: the first row of each kind.
    """

    prefix_rows: int = 0
    trace_rows: int = 0
    supervised: int = 0
    prompt: int = 0
    longest: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    sampled_tokens: int = 0
    used_tokens: int = 0
    examples: dict[str, prefix.Row] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows built."""
        return self.prefix_rows + self.trace_rows

    def add(self, row: prefix.Row, used: int) -> None:
        """Count a row with `used` sampled tokens in it."""
        self.prefix_rows += row.kind == "prefix"
        self.trace_rows += row.kind == "trace"
        self.supervised += row.supervised
        self.prompt += len(row.input_ids) - row.supervised
        self.longest = max(self.longest, len(row.input_ids))
        self.used_tokens += used
        self.examples.setdefault(row.kind, row)


def run(spec: BuildSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Build one row a question from its first sample."""
    with ledger.Meter() as meter:
        length = diagnosis.suggested_length(inputs["diagnosis"]) if spec.prefix_len is None else spec.prefix_len
        tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
        tally = Tally()
        prefix.write_rows(out / prefix.FILE, build(spec, length, inputs["samples"], Prompter(tokenizer, spec.prompt), tally))
        if not tally.rows:
            left_out = sum(tally.left_out.values())
            raise DataError(f"no training rows: {left_out} questions were left out ({_counts(tally.left_out)})",
                            "raise train.max_length or sample.trace_max_tokens, or give shorter questions")
    for reason, count in tally.left_out.items():
        if count:
            host.console.warn(f"{count} rows left out: {reason}")
    cost = ledger.Ledger(discarded_tokens=tally.sampled_tokens - tally.used_tokens)
    meter.fill(cost)
    cost.write(out)
    (out / "rows.json").write_text(json.dumps({
        "prefix_len": length,
        "prefix_len_from": "diagnosis" if spec.prefix_len is None else "config",
        "prefix_rows": tally.prefix_rows,
        "trace_rows": tally.trace_rows,
        "left_out": tally.left_out,
        "mean_supervised": tally.supervised / tally.rows,
        "mean_prompt": tally.prompt / tally.rows,
        "longest": tally.longest,
        "examples": [example(row, tokenizer) for row in tally.examples.values()],
    }, indent=1, ensure_ascii=False) + "\n")


def build(spec: BuildSpec, length: int, samples: Path, prompter: Prompter, tally: Tally) -> Iterator[prefix.Row]:
    """Rows in question order, prefixes of `length` tokens; counts them, and what was left out, in `tally`.

    Raises DataError where the samples are not those of the questions.
    """
    stop_ids = set(json.loads((samples / "samples.json").read_text())["stop_ids"])
    unfinished, too_long = "the whole trace was cut by the length limit", f"longer than train.max_length={spec.max_length}"
    tally.left_out |= {unfinished: 0, too_long: 0}
    for question, sample in answered(samples, tally):
        completion = sample["ids"]
        used = len(completion)
        if prefix.carries_trace(question["id"], spec.ratio):
            if sample["finish_reason"] == "length" and not spec.keep_unfinished:
                tally.left_out[unfinished] += 1
                continue
            row = prefix.trace_row(question["id"], question["prompt_ids"], completion)
        else:
            if spec.unit is CutUnit.word:
                completion = prompter.words(completion, length, stop_ids)
                if not completion and not spec.eos:  # an EOS alone would be a row still
                    tally.left_out[WORDLESS] = tally.left_out.get(WORDLESS, 0) + 1
                    continue
            used = min(used, len(completion), length)
            prompt = prompter.ids(question["text"], spec.suffix)
            row = prefix.prefix_row(question["id"], prompt, completion, length, prompter.eos_id, stop_ids, spec.eos)
        if len(row.input_ids) > spec.max_length:
            tally.left_out[too_long] += 1
            continue
        tally.add(row, used)
        yield row


def answered(samples: Path, tally: Tally) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(question, its first sample) in order, a question in memory at a time; counts the tokens of all samples.

    Raises DataError where questions.jsonl and samples.jsonl do not hold the same questions in the same order.
    """
    drawn = groupby(_lines(samples / "samples.jsonl"), key=itemgetter("id"))
    for question in chain(_lines(samples / "questions.jsonl"), [None]):
        id_, rows = next(drawn, (None, iter(())))
        if id_ != (None if question is None else question["id"]):
            raise DataError(f"{samples}: samples.jsonl has question {id_} where questions.jsonl has "
                            f"{None if question is None else question['id']}",
                            "the artifact is damaged: set it aside and run the same command again")
        if question is not None:
            first = next(rows)
            tally.sampled_tokens += len(first["ids"]) + sum(len(row["ids"]) for row in rows)
            yield question, first


def firsts(rows: Iterable[prefix.Row], kinds: int = 2) -> list[prefix.Row]:
    """The first row of each kind; reads no further once it has `kinds` of them."""
    seen: dict[str, prefix.Row] = {}
    for row in rows:
        seen.setdefault(row.kind, row)
        if len(seen) == kinds:
            break
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
