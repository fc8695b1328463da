"""What `plan=true` shows: stages with hit or miss, what they would cost, and the first row of each kind.

Floor 6. Needs the tokenizer and the questions, never weights or a GPU. Tokens that are not sampled yet are
shown as a gap of their length; where the samples are in the store the rows are the real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from upft import asking, datasets, diagnosis, models, prefix, shapes
from upft.choices import CutUnit
from upft.config import Config
from upft.console import Console
from upft.ledger import model_flops
from upft.plan import Plan, Stage
from upft.prompts import Prompter
from upft.specs import BranchSpec, BuildSpec, DiagnoseSpec, EvaluateSpec, PairSpec, SampleSpec, TrainSpec
from upft.stages import build as build_stage
from upft.store import Store

GAP = -1
"""Stands for a token that is not sampled yet."""


@dataclass
class Estimate:
    """Upper bounds on what a stage would cost."""

    what: str
    prompt_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0


def show(config: Config, cell: Plan, store: Store, console: Console) -> None:
    """Print the plan. Raises for bad input just as a run would."""
    estimates = {stage.key: estimate(stage, cell) for stage in cell.stages}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "key", "state", "work"):
        table.add_column(column, no_wrap=True)
    for column in ("prompt tokens", "new tokens <=", "FLOPs <="):
        table.add_column(column, justify="right", no_wrap=True)
    for stage in cell.stages:
        there = store.find(stage.name, stage.key) is not None
        cost = estimates[stage.key]
        table.add_row(escape(stage.label), stage.key, "[cyan]hit[/]" if there else "miss", escape(cost.what),
                      f"{cost.prompt_tokens:,}" if cost.prompt_tokens else "",
                      f"{cost.new_tokens:,}" if cost.new_tokens else "", f"{cost.flops:.2g}" if cost.flops else "")
    console.say(table, markup=True)
    console.say()
    for row in rows(cell, store):
        show_row(row, console, config.run.ids)


def estimate(stage: Stage, cell: Plan) -> Estimate:
    """Counts from the questions and the tokenizer; FLOPs from the model's config.json."""
    spec = stage.spec
    if isinstance(spec, (SampleSpec, EvaluateSpec)):
        source = models.resolve(spec.model.source)
        questions = datasets.load(spec.questions)
        prompter = Prompter(models.load_tokenizer(source, spec.model.trust_remote_code), spec.prompt)
        texts = [q.text for q in questions.rows] if isinstance(spec, SampleSpec) else [
            item.text for item in asking.items(questions, spec.wording, spec.kind)]
        prompt_tokens = spec.n * sum(len(prompter.ids(text)) for text in texts)
        if isinstance(spec, SampleSpec):
            traces = sum(prefix.carries_trace(q.id, spec.trace_ratio) for q in questions.rows)
            prefixes = len(questions.rows) - traces
            bound = _longest(cell) if spec.max_tokens is None else spec.max_tokens
            new = spec.n * (prefixes * bound + traces * spec.trace_max_tokens)
            named = "t=auto" if spec.max_tokens is None else str(bound)
            what = (f"{prefixes:,} prefixes of {named}, " if prefixes else "") + f"{traces:,} whole traces, n={spec.n}"
        else:
            new = spec.n * len(questions.rows) * spec.max_tokens
            what = f"{len(questions.rows):,} questions, {spec.protocol.name} protocol, n={spec.n}"
        if questions.duplicates:
            what += f" ({questions.duplicates} duplicates left out)"
        return Estimate(what, prompt_tokens, new, _flops(source, prompt_tokens + new, len(questions.rows) * spec.n, False))
    if isinstance(spec, BranchSpec):
        return _branching(stage, spec)
    if isinstance(spec, TrainSpec):
        rows_from = stage.inputs["rows"]
        build, sample = rows_from.spec, rows_from.inputs["samples"].spec
        assert isinstance(sample, SampleSpec)
        if isinstance(build, PairSpec):
            return Estimate("as many pairs as the traces give")
        assert isinstance(build, BuildSpec)
        length = _longest(cell) if build.prefix_len is None and build.ratio < 1 else build.prefix_len or 0
        most = min(build.traces, build.traces if build.cap is None else build.cap)
        source = models.resolve(spec.model.source)
        questions = datasets.load(sample.questions)
        prompter = Prompter(models.load_tokenizer(source, spec.model.trust_remote_code), build.prompt)
        prompts = supervised = 0
        for q in questions.rows:
            trace = prefix.carries_trace(q.id, build.ratio)
            prompts += len(prompter.ids(q.text, "" if trace else build.suffix))
            supervised += sample.trace_max_tokens if trace else length + build.eos
        count, prompts, supervised = len(questions.rows) * most, prompts * most, supervised * most
        steps = math.ceil(count / spec.batch_size) * spec.epochs
        tokens = (prompts + supervised) * spec.epochs
        most_of_them = "at most " if build.right else ""
        return Estimate(f"{most_of_them}{count:,} rows, {steps:,} steps", prompts * spec.epochs, supervised * spec.epochs,
                        _flops(source, tokens, count * spec.epochs, True))
    return Estimate("")


def _branching(stage: Stage, spec: BranchSpec) -> Estimate:
    """As if no two traces had a prefix in common and none were over."""
    sample = stage.inputs["samples"].spec
    assert isinstance(sample, SampleSpec)
    source = models.resolve(spec.model.source)
    prompter = Prompter(models.load_tokenizer(source, spec.model.trust_remote_code), sample.prompt)
    lengths = [len(prompter.ids(question.text)) for question in datasets.load(sample.questions).rows]
    each = spec.n * min(sample.n, spec.traces * (2 if spec.both else 1))
    requests = each * len(lengths) * len(spec.at)
    prompts = each * (sum(lengths) * len(spec.at) + sum(spec.at) * len(lengths))
    new = each * len(lengths) * sum(spec.trace_max_tokens - t for t in spec.at)
    return Estimate(f"at most {requests:,} continuations", prompts, new, _flops(source, prompts + new, requests, False))


def sampling(cell: Plan) -> Stage:
    """The stage whose samples become rows (a pilot's do not)."""
    return cell.report.inputs["rows"].inputs["samples"]


def _longest(cell: Plan) -> int:
    """The longest prefix that prefix.len=auto may come to."""
    spec = cell.named("diagnose")[0].spec
    assert isinstance(spec, DiagnoseSpec)
    return spec.longest


def _length(spec: BuildSpec, cell: Plan, store: Store) -> int | None:
    """The prefix length (0 where there are no prefixes); None where a diagnosis that is not there yet will find it."""
    if spec.prefix_len is not None or spec.ratio == 1:
        return spec.prefix_len or 0
    stage = cell.named("diagnose")[0]
    found = store.find(stage.name, stage.key)
    return None if found is None else diagnosis.suggested_length(found.path)


def _flops(source: Any, tokens: int, sequences: int, backward: bool) -> float:
    shape = shapes.read_shape(source)
    if shape is None or not sequences:
        return 0.0
    return model_flops(shape.parameters, shape.layers, shape.hidden, tokens, tokens / sequences / 2, backward)


def rows(cell: Plan, store: Store) -> list[dict[str, Any]]:
    """The first row of each kind: built ones where the samples are there, else with gaps for what is unsampled."""
    build = cell.named("build")[0]  # of the first round
    sample = build.inputs["samples"]
    built = store.find(build.name, build.key)
    if built is not None:
        return list(built.json("rows.json")["examples"])
    spec = build.spec
    assert isinstance(spec, BuildSpec)
    assert isinstance(sample.spec, SampleSpec)
    tokenizer = models.load_tokenizer(models.resolve(spec.model.source), spec.model.trust_remote_code)
    prompter = Prompter(tokenizer, spec.prompt)
    sampled, length = store.find(sample.name, sample.key), _length(spec, cell, store)
    kinds = 1 if spec.ratio in (0, 1) else 2
    grades = store.find("grade", build.inputs["grades"].key) if spec.right else None
    if sampled is not None and length is not None and (grades is not None or not spec.right):
        made = build_stage.build(spec, length, sampled.path, prompter, build_stage.Tally(),
                                 None if grades is None else grades.path)
        return [build_stage.example(row, tokenizer) for row in build_stage.firsts(made, kinds)]
    shown = f"t=auto (<= {_longest(cell)})" if length is None else str(length)
    gap = [GAP] * (_longest(cell) if length is None else length)
    found: dict[str, dict[str, Any]] = {}
    for question in datasets.load(sample.spec.questions).rows:
        kind = "trace" if prefix.carries_trace(question.id, spec.ratio) else "prefix"
        if kind in found:
            continue
        prompt = prompter.ids(question.text, "" if kind == "trace" else spec.suffix)
        segments: list[list[Any]] = [[tokenizer.decode(prompt, skip_special_tokens=False), False]]
        ids, labels = list(prompt), [prefix.UNSUPERVISED] * len(prompt)
        if kind == "trace":
            right = " of a right trace" if spec.right else ""
            segments.append([f"‹up to {sample.spec.trace_max_tokens} sampled tokens{right}, with the stop token›", True])
        else:
            cut = "sampled tokens" if spec.unit is CutUnit.token else "words, or tokens if these are fewer"
            segments.append([f"‹{shown} {cut}›", True])
            ids += gap
            labels += gap
            if spec.eos:
                segments.append([tokenizer.decode([prompter.eos_id], skip_special_tokens=False), True])
                ids.append(prompter.eos_id)
                labels.append(prompter.eos_id)
        found[kind] = {"kind": kind, "question_id": question.id, "segments": segments, "input_ids": ids, "labels": labels}
        if len(found) == kinds:
            break
    return list(found.values())


def show_row(row: dict[str, Any], console: Console, ids: bool) -> None:
    """Print one row; supervised text is in ⟦brackets⟧ (and bold green on a terminal)."""
    console.say(f"[bold]first {row['kind']} row[/] (question {escape(row['question_id'])}; ⟦supervised⟧)", markup=True)
    text = "".join(f"[bold green]⟦{escape(part)}⟧[/]" if supervised else escape(part)
                   for part, supervised in row["segments"])
    console.say("  " + text.replace("\n", "\n  "), markup=True)
    if ids:
        console.say(f"  input_ids {_plain(row['input_ids'])}")
        console.say(f"  labels    {_plain(row['labels'])}")
    console.say()


def _plain(ids: list[int]) -> str:
    return "[" + ", ".join("?" if i == GAP else str(i) for i in ids) + "]"


