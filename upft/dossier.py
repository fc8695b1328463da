"""The report on many cells: reads report artifacts and what they were made from, writes one folder.

    report.html  report.md  results.json  tables/NAME.tex  tables/NAME.csv  figures/NAME.svg  figures/NAME.pdf

The same artifacts give the same bytes. Knows where artifacts lie; what is said of them is `upft.report`'s. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from upft import redaction
from upft.choices import MethodName
from upft.errors import DataError, StoreError
from upft.report import curves, files, overview, studies
from upft.report.evidence import Answers
from upft.report.settings import Case, newest, settings
from upft.report.tables import tables
from upft.specs import ReportSpec
from upft.stages import report as stage


def write(reports: Sequence[Path], out: Path, command: str | None = None, missing: Sequence[str] = ()) -> Path:
    """Write the report on those cells into `out` and return its page.

    reports: folders of report artifacts, `STORE/report/KEY`, with the artifacts they were made from in the same store.
    command: what makes these cells, where one command does (a sweep's); else the commands that the cells themselves note.
    missing: names of cells that belong to these and have no report.
    Files of an earlier report in `out` are replaced, others are left alone. Raises StoreError for a folder that is no report,
    or whose artifacts are gone, and DataError for answers that cannot be paired.
    """
    if not reports:
        raise DataError("a report on no cell", "give at least one report artifact")
    cases = newest(list(read_all({Path(one).resolve() for one in reports})))
    found = settings(cases)
    ordered = [case for one in found for case in one.cases]
    every = studies.studies(found)
    made, figures = tables(found, ordered), curves.draw(found) | studies.draw(every)
    analysed = [table for section in studies.sections(every) for table in section.tables]
    commands = [redaction.text(one) for one in ([command] if command is not None else commands_of(ordered))]
    told = overview.as_json(found, ordered, figures, commands, every, missing,
                            files.names([*made, *analysed], figures))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.clear(out)
        # first, so that what is written next is listed even where the writing is cut short
        (out / files.RESULTS).write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                                         encoding="utf-8")
        files.write(out, [*made, *analysed], figures)
        (out / "report.md").write_text(overview.as_markdown(found, ordered, made, figures, commands, every, missing),
                                       encoding="utf-8")
        (out / "report.html").write_text(overview.render(found, ordered, made, figures, commands, every, missing),
                                         encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report cannot be written into {out}: {error.strerror}", "give another folder") from error
    return out / "report.html"


def read_all(folders: Iterable[Path]) -> Iterator[Case]:
    """Report artifacts one after the other, those with the same base model's answers side by side: such answers are read once,
    and what is held beside the cells themselves is one cell's answers. Raises StoreError."""
    held: dict[Path, Answers] = {}
    opened = [(folder, *_opened(folder)) for folder in folders]
    for folder, spec, places in sorted(opened, key=lambda one: (_bases(one[1], one[2]), one[0].name)):
        bases = _bases(spec, places)
        for gone in set(held) - set(bases):
            del held[gone]

        def answered(path: Path, first: int, bases: Sequence[Path] = bases) -> Answers:
            if path not in bases:
                return stage.answers_of(path, 0)
            if path not in held:
                held[path] = stage.answers_of(path, 0)
            return held[path]

        yield _case(folder, spec, places, answered)


def read(folder: Path) -> Case:
    """One report artifact with what it was made from. Raises StoreError."""
    return _case(folder, *_opened(folder), lambda path, first: stage.answers_of(path, 0))


def _case(folder: Path, spec: ReportSpec, places: Mapping[str, Path], answered: Callable[[Path, int], Answers]) -> Case:
    evidence = stage.read(spec, places, answered)
    told = {record.role: record.spec for record in evidence.stages}
    looked = {name: studies.looked(name, told, found, places[f"analysis:{name}"])
              for name, found in evidence.analyses.items()}
    provenance = folder / "provenance.json"
    return Case.of(folder.name, evidence,
                   json.loads(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}, looked,
                   lambda: {role: stage.spec_of(place) for role, place in places.items()}, lambda: stage.read(spec, places))


def _bases(spec: ReportSpec, places: Mapping[str, Path]) -> list[Path]:
    """Where the base model's answers lie."""
    return [stage.last(places, "base", task) for task in spec.tasks]


def _opened(folder: Path) -> tuple[ReportSpec, dict[str, Path]]:
    """(what a report was told, role -> the artifact that plays it). Raises StoreError."""
    try:
        identity = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        spec, inputs = report_spec(identity["spec"]), identity["inputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is no report artifact: {error}", "give STORE/report/KEY") from error
    root, places = folder.parent.parent, {}
    for role, key in inputs.items():
        # a key is the hash of its stage too, so no two stages share one
        found = [path for path in sorted(root.glob(f"*/{key}")) if path.is_dir()]
        if not found:
            raise StoreError(f"{folder}: the artifact {key} ({role}) that it was made from is not in {root}",
                             "run the cell again: the same command builds what is missing")
        places[role] = found[0]
    return spec, places


def report_spec(told: dict[str, Any]) -> ReportSpec:
    """From the canonical form in spec.json."""
    values = {name: value for name, value in told.items() if name != "type"}
    return ReportSpec(**{**values, "method": MethodName[values["method"]], "tasks": tuple(values["tasks"])})


def commands_of(cases: Sequence[Case]) -> list[str]:
    """The commands that made the cells, as they noted them, each once; where one did not, the settings of its report."""
    commands: dict[str, None] = {}
    for case in cases:
        commands.setdefault(str(case.provenance.get("command") or _rebuilt(case)))
    return list(commands)


def _rebuilt(case: Case) -> str:
    """The cell by the groups its report names; other settings stand in the specs."""
    r, method = case.results, case.spec.method.name
    if re.search("label filter", r["method"]):
        method += "_label_filter"
    prefix = [] if r["prefix_len"] is None else [f"prefix.len={r['prefix_len']}", f"prefix.ratio={r['ratio']:g}"]
    return " ".join(["python run.py", f"model={r['model']}", f"data={r['data']}", f"method={method}", *prefix,
                     f"seed={r['seed']}", *([f"train.seed={r['train_seed']}"] if "train_seed" in r else []),
                     " # and what else its specs below say"])
