"""Stage `report`: what the cell found, from the artifacts alone.

Reads the summaries, answers and ledgers upstream; writes results.json (every number shown), report.html,
report.md,
tables/, figures/ and ledger.json. The same artifacts give the same report. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from upft import alone, answers, diagnosis, ledger, shapes, traces
from upft.choices import MethodName
from upft.errors import DataError
from upft.report import analyses, figures, files, page, results, settings, tables
from upft.report.evidence import Answer, Answers, Decode, Evidence, StageRecord
from upft.specs import HubRef, ReportSpec
from upft.stages import Host

LABELS = {"pilot": "sample the pilot", "samples": "sample", "diagnosis": "diagnose prefixes", "grades": "grade traces",
          "rows": "build rows", "train": "train", "pairs": "pair traces", "reference": "score pairs by the base model",
          "verifier": "train the verifier"}
MEASURED = {"base": "evaluate base on {}", "generator": "evaluate {} on {}", "candidates": "evaluate {} on {}, to choose from",
            "trained": "evaluate {} on {}", "judged": "judge {} on {}"}


def run(spec: ReportSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Write the report of one cell. Raises DataError for answers that cannot be paired."""
    with ledger.Meter() as meter:
        evidence = replace(read(spec, inputs), command=host.command)
        found = results.results(evidence)
        drawn = figures.draw(found, evidence.metrics)
        alone = settings.settings([settings.Case.of("", evidence, {})])
        made = [table for table in tables.tables(alone, []) if table.name != "cells"]
        sections = analyses.sections(found.get("analyses", {}), found["method"])
        analysed = [table for section in sections for table in section.tables]
        files.write(out, [*made, *analysed], drawn)
        (out / "report.md").write_text(page.as_markdown(found, evidence, drawn, made), encoding="utf-8")
        (out / "report.html").write_text(page.render(found, evidence, drawn, made), encoding="utf-8")
        (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                                          encoding="utf-8")
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)


def read(spec: ReportSpec, inputs: Mapping[str, Path], answered: Callable[[Path, int], Answers] | None = None) -> Evidence:
    """The evidence in the artifacts upstream. A summary that is not there is an empty one. answered: reads answers (folder, how
    many token ids of each) where not `answers_of` does."""
    answered = answered or answers_of
    stages = tuple(
        StageRecord(role, label(spec, role), folder.name, ledger.Ledger.read(folder), _json(folder / "spec.json"),
                    _json(folder / "provenance.json"))
        for role, folder in sorted(inputs.items(), key=lambda item: _place(item[0])))

    rows = _json(inputs["rows"] / "rows.json")
    length = rows.get("prefix_len", spec.prefix_len) or 0

    def summary(role: str, file: str) -> dict[str, Any]:
        return _json(inputs[role] / file) if role in inputs else {}

    def both(role: str) -> dict[str, tuple[Answers, Answers]]:
        return {task: (answered(last(inputs, "base", task), length), answered(last(inputs, role, task), length))
                for task in spec.tasks if f"{role}:{task}" in inputs}

    rounds = sorted(int(role.partition(":")[2]) for role in inputs if role.startswith("rows:"))
    return Evidence(
        spec, stages, samples=_json(inputs["samples"] / "samples.json"),
        diagnosis=_json(inputs["diagnosis"] / diagnosis.FILE), rows=rows,
        train=_json(inputs["train"] / "train.json"), metrics=tuple(_lines(inputs["train"] / "metrics.jsonl")),
        tasks=both("trained"), grades=summary("grades", "grades.json"), pairs=summary("pairs", "pairs.json"),
        verifier=summary("verifier", "train.json"), generator=both("generator"),
        earlier=tuple(summary(f"rows:{number}", "rows.json") for number in rounds),
        chosen={task: summary(f"trained:{task}", "scores.json") for task in spec.tasks if f"generator:{task}" in inputs},
        asked={task: _json(last(inputs, "base", task) / answers.SCORES) for task in spec.tasks},
        analyses={name: summary(f"analysis:{name}", f"{name}.json") for name in analyses.LABELS
                  if f"analysis:{name}" in inputs},
        decode=_decoder(inputs["train"]), pilot=_pilot(spec, inputs, ":1" if rounds else ""))


def _pilot(spec: ReportSpec, inputs: Mapping[str, Path], mark: str) -> alone.Pilot | None:
    """What a pilot adds. mark: ends the roles of the first round, which is the base model's as the pilot is. One that a method
    needs no length from, but an analysis of it does, adds nothing; one whose samples are gone all that its ledger has."""
    if "pilot" not in inputs:
        return None
    pilot, samples, rows = inputs["pilot"], inputs[f"samples{mark}"], inputs[f"rows{mark}"]
    if not all((folder / name).is_file() for folder in (pilot, samples) for name in (traces.SAMPLES, traces.QUESTIONS)):
        cost = ledger.Ledger.read(pilot)
        return alone.Pilot(cost.prompt_tokens, cost.sampled_tokens, None, 0)
    build, length = spec_of(rows)["spec"], _json(rows / "rows.json")["prefix_len"]
    found = alone.of_pilot(
        pilot, samples, alone.Need(build["traces"], build["cap"], build["ratio"], build["right"]), length or 0,
        int(_json(inputs[f"diagnosis{mark}"] / diagnosis.FILE)["longest"]), _shape(inputs[f"train{mark}"]))
    return found if length is not None else replace(found, prompt_tokens=0, sampled_tokens=0, flops=0.0)


def _shape(train: Path) -> shapes.Shape | None:
    """Of the model, from its training's artifact: config.json of the weights, or of the base model that an adapter names."""
    if (train / "model").is_dir():
        return shapes.read_shape(train / "model")
    adapter = _json(train / "adapter" / "adapter_config.json")
    base, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    if base is None:
        return None
    return shapes.read_shape(Path(base) if revision is None else HubRef(base, revision))


def last(inputs: Mapping[str, Path], side: str, task: str) -> Path:
    """The artifact whose answers count: the judge's where one has looked."""
    return inputs.get(f"judged:{side}:{task}", inputs[f"{side}:{task}"])


def spec_of(folder: Path) -> dict[str, Any]:
    """What an artifact's stage was told; empty where it does not say."""
    return _json(folder / "spec.json")


def label(spec: ReportSpec, role: str) -> str:
    """What a stage is called in the report, from the role it plays for it."""
    kind, _, of = role.partition(":")
    if kind in LABELS:
        return f"{LABELS[kind]}, round {of}" if of else LABELS[kind]
    if kind == "analysis":
        return analyses.label(role)
    method = spec.label or spec.method.name.upper()
    if kind == "judged":
        side, _, task = of.partition(":")
        return MEASURED[kind].format("base" if side == "base" else method, task)
    if kind == "trained" and spec.method is MethodName.vstar:
        return f"choose answers on {of}"
    if kind in ("generator", "candidates"):
        method = "its generator"
    return MEASURED[kind].format(*([of] if kind == "base" else [method, of]))


def _place(role: str) -> tuple[int, int, int]:
    """Rounds in order, each one's stages in theirs; what measures comes last."""
    kind, _, of = role.partition(":")
    if kind in LABELS:
        return 0, 0 if kind == "pilot" else int(of) if of else 10**6, list(LABELS).index(kind)
    if kind == "analysis":
        return 2, analyses.place(role), 0
    return 1, list(MEASURED).index(kind), 0


def _decoder(train: Path) -> Decode | None:
    """Of the tokenizer saved with the weights or the adapter."""
    files = [path for path in (train / "model" / "tokenizer.json", train / "adapter" / "tokenizer.json") if path.is_file()]
    if not files:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(files[0]))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))


def answers_of(folder: Path, first: int) -> Answers:
    """All answers in an evaluation's artifact, with the first so many token ids of each."""
    path = folder / answers.FILE
    return Answers.of([Answer.read(row, first) for row in _lines(path)], str(path))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(value, dict)  # written by our own stages
    return value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number} is not JSON: {error}",
                                "run the same command with run.repair=true to build the artifact again") from error
