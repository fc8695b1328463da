"""Stage `report`: what the cell found, from the artifacts alone.

Reads the summaries, answers and ledgers upstream; writes results.json (every number shown), report.html,
figures/ and ledger.json. The same artifacts give the same report. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upft import answers, diagnosis, ledger
from upft.errors import DataError
from upft.plan import ReportSpec
from upft.report import figures, page, results
from upft.report.evidence import Answer, Answers, Evidence, StageRecord
from upft.stages import Host

LABELS = {"samples": "sample", "diagnosis": "diagnose prefixes", "rows": "build rows", "train": "train"}


def run(spec: ReportSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Write the report of one cell. Raises DataError for answers that cannot be paired."""
    with ledger.Meter() as meter:
        evidence = read(spec, inputs)
        found = results.results(evidence)
        drawn = figures.draw(found, evidence.metrics)
        (out / "figures").mkdir()
        for name, figure in drawn.items():
            (out / "figures" / f"{name}.svg").write_bytes(figure.svg)
            (out / "figures" / f"{name}.pdf").write_bytes(figure.pdf)
        (out / "report.html").write_text(page.render(found, evidence, drawn), encoding="utf-8")
        (out / "results.json").write_text(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                                          encoding="utf-8")
    cost = ledger.Ledger()
    meter.fill(cost)
    cost.write(out)


def read(spec: ReportSpec, inputs: Mapping[str, Path]) -> Evidence:
    """The evidence in the artifacts upstream. A summary that is not there is an empty one."""
    method = spec.method.name.upper()
    pilot = {"pilot": "sample the pilot"} if "pilot" in inputs else {}
    sides = {"base": "base", "trained": method}
    labels = {**pilot, **LABELS,
              **{f"{side}:{t}": f"evaluate {name} on {t}" for side, name in sides.items() for t in spec.tasks},
              **{f"judged:{side}:{t}": f"judge {name} on {t}" for side, name in sides.items() for t in spec.tasks
                 if f"judged:{side}:{t}" in inputs}}
    stages = tuple(
        StageRecord(role, label, inputs[role].name, ledger.Ledger.read(inputs[role]), _json(inputs[role] / "spec.json"),
                    _json(inputs[role] / "provenance.json"))
        for role, label in labels.items())
    return Evidence(
        spec, stages, samples=_json(inputs["samples"] / "samples.json"),
        diagnosis=_json(inputs["diagnosis"] / diagnosis.FILE), rows=_json(inputs["rows"] / "rows.json"),
        train=_json(inputs["train"] / "train.json"), metrics=tuple(_lines(inputs["train"] / "metrics.jsonl")),
        tasks={task: (_answers(last(inputs, "base", task)), _answers(last(inputs, "trained", task))) for task in spec.tasks},
        asked={task: _json(last(inputs, "base", task) / answers.SCORES) for task in spec.tasks})


def last(inputs: Mapping[str, Path], side: str, task: str) -> Path:
    """The artifact whose answers count: the judge's where one has looked."""
    return inputs.get(f"judged:{side}:{task}", inputs[f"{side}:{task}"])


def _answers(folder: Path) -> Answers:
    path = folder / answers.FILE
    return Answers.of([Answer.read(row) for row in _lines(path)], str(path))


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
