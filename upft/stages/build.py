"""Stage `build`: samples -> training rows of ids with a supervised mask.

Reads questions.jsonl and samples.jsonl side by side (and verdicts.jsonl, where traces are kept by their answers), writes
rows.arrow, rows.json (what was built, what was left out, what the method would have sampled alone, one row of each kind to
look at) and ledger.json. Which traces become rows is `upft.selection`'s to say. Knows no engine and no optimiser.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upft import alone, diagnosis, ledger, models, prefix, selection, shapes, traces
from upft.choices import CutUnit
from upft.errors import DataError
from upft.prompts import Prompter
from upft.selection import Trace
from upft.specs import BuildSpec
from upft.stages import Host

WORDLESS = "no word in the completion"
"""Why a row is left out that is cut by words and gets no EOS."""
UNFINISHED = "the whole trace was cut by the length limit"
SHORT = "the length limit cut the trace before the prefix was full"
"""An EOS behind it would teach the model to end where nothing ended."""
CRAMPED = "the model's context has no room for the prefix"
"""Sampled for prefixes alone the question would not have been asked; rows do not depend on what shares their sampling."""
NONE_RIGHT = "no trace is right"


@dataclass
class Tally:
    """What was counted while rows were built.

    left_out: questions (of several rows a question: rows) by reason. repeated: right traces whose row was there already.
    sampled_tokens: of all samples, used or not; used_tokens: of those, the ones in rows. alone: what the method would have
    sampled had it sampled for itself. examples: the first row of each kind.
    """

    questions: int = 0
    prefix_rows: int = 0
    trace_rows: int = 0
    supervised: int = 0
    prompt: int = 0
    longest: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    sampled_tokens: int = 0
    used_tokens: int = 0
    alone: ledger.Sampling = field(default_factory=ledger.Sampling)
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

    def lose(self, reason: str) -> None:
        """Count what is left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def run(spec: BuildSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Build the rows that the method chooses from each question's traces."""
    with ledger.Meter() as meter:
        length = spec.prefix_len
        if length is None and spec.ratio < 1:
            length = diagnosis.suggested_length(inputs["diagnosis"])
        source = models.resolve(spec.model.source)
        tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
        tally = Tally(alone=ledger.Sampling(shapes.read_shape(source)))
        made = build(spec, length or 0, inputs["samples"], Prompter(tokenizer, spec.prompt), tally, inputs.get("grades"))
        prefix.write_rows(out / prefix.FILE, made)
        if not tally.rows:
            raise _nothing(spec, tally)
    for reason, count in tally.left_out.items():
        if count:
            host.console.warn(f"{count} rows left out: {reason}")
    cost = ledger.Ledger(discarded_tokens=tally.sampled_tokens - tally.used_tokens)
    meter.fill(cost)
    cost.write(out)
    (out / "rows.json").write_text(json.dumps({
        "prefix_len": length,
        "prefix_len_from": None if length is None else "diagnosis" if spec.prefix_len is None else "config",
        "questions": tally.questions,
        "prefix_rows": tally.prefix_rows,
        "trace_rows": tally.trace_rows,
        "left_out": tally.left_out,
        "repeated": tally.repeated,
        "supervised_tokens": tally.supervised,
        "used_tokens": tally.used_tokens,
        "alone": tally.alone.told(),
        "mean_supervised": tally.supervised / tally.rows,
        "mean_prompt": tally.prompt / tally.rows,
        "longest": tally.longest,
        "examples": [example(row, tokenizer) for row in tally.examples.values()],
    }, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _nothing(spec: BuildSpec, tally: Tally) -> DataError:
    what = f"no training rows: {sum(tally.left_out.values())} questions were left out ({_counts(tally.left_out)})"
    if tally.left_out.get(NONE_RIGHT):
        return DataError(what, "sample more traces (method.n), look at the grade stage's verdicts and at data.answer_format, "
                               "or use a method that needs no right trace: method=upft")
    return DataError(what, "raise train.max_length or sample.trace_max_tokens, or give shorter questions")


def build(spec: BuildSpec, length: int, samples: Path, prompter: Prompter, tally: Tally,
          grades: Path | None = None) -> Iterator[prefix.Row]:
    """Rows in question order, prefixes of `length` tokens; counts them, and what was left out, in `tally`.

    grades: the verdicts, where the spec keeps right traces only. Raises DataError where the samples are not those of the
    questions.
    """
    told = traces.told(samples)
    need = alone.Need(spec.traces, spec.cap, spec.ratio, spec.right)
    context = alone.context(told)
    cutter = _Cutter(spec, length, prompter, set(told["stop_ids"]))
    tally.left_out |= {UNFINISHED: 0, cutter.too_long: 0} | ({NONE_RIGHT: 0} if spec.right else {})
    for question in traces.read(samples, grades):
        tally.questions += 1
        mine = question.traces[:spec.traces]
        whole = prefix.carries_trace(question.id, spec.ratio)
        tally.sampled_tokens += sum(len(trace.ids) for trace in question.traces)
        needed = need.tokens(question, length, context)
        if needed is None:
            tally.lose(CRAMPED)
            continue
        tally.alone.add(len(question.prompt_ids), list(needed.values()))
        rows = {trace.index: cutter.row(question, trace, whole) for trace in mine if trace.right or not spec.right}
        if spec.right:
            good = [trace for trace in mine if isinstance(rows.get(trace.index), Made)]
            chosen = selection.right_ones(good, spec.cap, _ids(rows))
            if not chosen:
                tally.lose(next((lost for lost in rows.values() if isinstance(lost, str)), NONE_RIGHT))
            tally.repeated += len(good) - len(selection.different(good, _ids(rows)))
        else:
            chosen = selection.first(mine, spec.cap)
        for trace in chosen:
            made = rows[trace.index]
            if isinstance(made, str):
                tally.lose(made)
                continue
            tally.add(made.row, made.used)
            yield made.row


@dataclass(frozen=True)
class Made:
    """A row and how many sampled tokens are in it."""

    row: prefix.Row
    used: int


def _ids(rows: Mapping[int, Made | str]) -> Callable[[Trace], list[int]]:
    """What training would see of a trace whose row was made."""
    def ids(trace: Trace) -> list[int]:
        made = rows[trace.index]
        assert isinstance(made, Made)  # of the others nobody asks
        return made.row.input_ids

    return ids


class _Cutter:
    """Makes the row of one trace, or says why there is none."""

    def __init__(self, spec: BuildSpec, length: int, prompter: Prompter, stop_ids: set[int]) -> None:
        self._spec, self._length, self._prompter, self._stop_ids = spec, length, prompter, stop_ids
        self._asked: tuple[str, list[int]] = "", []
        self.too_long = f"longer than train.max_length={spec.max_length}"

    def row(self, question: traces.Sampled, trace: Trace, whole: bool) -> Made | str:
        """whole: whether the question carries whole traces."""
        spec, completion, used = self._spec, list(trace.ids), len(trace.ids)
        if whole:
            if not trace.ended and not spec.keep_unfinished:
                return UNFINISHED
            row = prefix.trace_row(question.id, question.prompt_ids, completion)
        else:
            if not trace.ended and len(trace.ids) < self._length:
                return SHORT
            if spec.unit is CutUnit.word:
                completion = self._prompter.words(completion, self._length, self._stop_ids)
                if not completion and not spec.eos:  # an EOS alone would be a row still
                    return WORDLESS
            used = min(used, len(completion), self._length)
            row = prefix.prefix_row(question.id, self._prompt(question), completion, self._length, self._prompter.eos_id,
                                    self._stop_ids, spec.eos)
        return self.too_long if len(row.input_ids) > spec.max_length else Made(row, used)

    def _prompt(self, question: traces.Sampled) -> list[int]:
        """With the task suffix; kept for the question's other traces."""
        if self._asked[0] != question.id:
            self._asked = question.id, self._prompter.ids(question.text, self._spec.suffix)
        return self._asked[1]


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


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
