"""The analyses of many cells: what they found, over seeds, settings side by side.

What looks at the base model alone (consistency, errors) is told once a model: its traces under several seeds are traces of one
model. What compares it with a trained one (coverage, kl) is told for each setting, over its seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft.analyses import branching, consistency, divergences
from upft.hashing import digest
from upft.report import analyses, panels, series
from upft.report import wording as w
from upft.report.analyses import Section
from upft.report.figures import Drawn, drawn, styled
from upft.report.settings import Looked, Setting, by_seed, without_seeds
from upft.report.table import Table

ALONE = ("consistency", "errors")
"""Analyses of the base model alone."""
Seeds = tuple[int, int]
"""(the cell's, the training's); of what looks at the base model alone twice the cell's."""


@dataclass(frozen=True)
class Found:
    """What an analysis found. who: the setting, or base; method: its method; seeds: under which it was asked, in order; told:
    keys as in a cell's summary; cells: keys of the analyses' artifacts."""

    who: str
    method: str
    seeds: tuple[Seeds, ...]
    told: Mapping[str, Any]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """One analysis that was asked in one way of one base model and what was made of it."""

    name: str
    model: str
    found: tuple[Found, ...]


def looked(name: str, specs: Mapping[str, Any], told: Mapping[str, Any], artifact: Path) -> Looked:
    """One analysis of a cell. specs: role -> spec.json of the cell's stages. Raises DataError for a damaged file."""
    asked = {role: spec.get("spec", {}) for role, spec in specs.items() if role.startswith(f"analysis:{name}")}
    if name not in ALONE:  # of the base model, for what is asked of the trained ones is not the same for all
        asked = {role: spec for role, spec in asked.items() if spec.get("trained") is None and role != f"analysis:{name}"}
    return Looked(artifact.name, digest(without_seeds(asked)), told, read(name, artifact, told))


def read(name: str, artifact: Path, told: Mapping[str, Any]) -> Any:
    """What an analysis found of each question; None where its artifact, of an earlier version, does not say."""
    file = artifact / ("divergences.jsonl" if name == "kl" else "values.jsonl")
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    if name == "kl":
        traces = [divergences.Apart.read(line) for line in lines]
        return divergences.Parted.of(traces, told["prefix_len"], len(told["t"]))
    kinds: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "consistency": consistency.Counted.read, "errors": branching.Sides.read, "coverage": branching.Solved.read}
    return [kinds[name](line) for line in lines]


def pooled(name: str, by: Sequence[Sequence[Looked]]) -> dict[str, Any] | None:
    """One summary of several seeds' artifacts (by: `settings.by_seed`); None where they cannot be taken together."""
    of = [one for some in by for one in some]
    told, values = of[0].told, [one.values for one in of]
    if any(one is None for one in values):
        return None
    try:
        if name == "consistency":
            return consistency.summary(consistency.together(values), told["longest"], told["edges"])
        if name == "errors":
            return branching.errors(branching.together(values), told["t"], told["continuations"], told["margin"], 0)
        if name == "coverage":
            return branching.coverage([branching.mean([one.values for one in some]) for some in by], told["t"],
                                      told["continuations"], 0)
        formats = {one.told.get("dtype") for one in of}
        return divergences.over_seeds([divergences.Parted.mean([one.values for one in some]) for some in by],
                                      told["prefix_len"]) | {"dtype": formats.pop()} if len(formats) == 1 else None
    except ValueError:
        return None


def studies(settings: Sequence[Setting]) -> list[Study]:
    """Every analysis that any cell was asked for, in the order of `analyses.LABELS`."""
    groups: dict[tuple[str, str, str], dict[str, list[tuple[Setting, Seeds, Looked]]]] = {}
    several = len({setting.data for setting in settings}) > 1
    for name in analyses.LABELS:
        for setting in settings:
            for case in setting.cases:
                if (one := case.looked.get(name)) is not None:
                    who = "base" if name in ALONE else f"{setting.data}: {setting.name}" if several else setting.name
                    rows = groups.setdefault((name, setting.model, one.ask), {}).setdefault(who, [])
                    if all(other.key != one.key for _, _, other in rows):  # cells share what looks at the base model alone
                        rows.append((setting, (case.seeds[0], case.seeds[0 if name in ALONE else 1]), one))
    return [Study(name, model, tuple(found for who, rows in by.items() for found in _found(name, who, rows)))
            for (name, model, _), by in groups.items()]


def _found(name: str, who: str, rows: Sequence[tuple[Setting, Seeds, Looked]]) -> list[Found]:
    rows = sorted(rows, key=lambda row: (row[1], row[2].key))
    if len(rows) > 1 and (told := pooled(name, [[one for _, _, one in some] for some in by_seed(
            rows, lambda row: row[1])])) is not None:
        return [Found(who, rows[0][0].method, tuple(sorted({seed for _, seed, _ in rows})), told,
                      tuple(one.key for _, _, one in rows))]
    return [Found(who if len(rows) == 1 else f"{who}, seed {w.seeds(*seed)}", setting.method, (seed,), one.told, (one.key,))
            for setting, seed, one in rows]


def sections(every: Sequence[Study]) -> list[Section]:
    """A section a study, figures named NAME-N."""
    several = len({study.model for study in every}) > 1
    return [_section(study, number, several) for number, study in enumerate(every)]


def _section(study: Study, number: int, several: bool) -> Section:
    parts = [analyses.sections({study.name: one.told}, one.method)[0] for one in study.found]
    title = parts[0].title + (f": {study.model}" if several else "")
    text: list[str] = []
    if study.name == "coverage":
        text.append(analyses.split_intro(study.found[0].told, "the base model and of what training made of it"))
    for one, part in zip(study.found, parts, strict=True):
        under = f"seed{'s' * (len(one.seeds) > 1)} {', '.join(w.seeds(*seed) for seed in one.seeds)}"
        text.append(f"{one.who[0].upper()}{one.who[1:]}, {under}: " + " ".join(
            analyses.splits(one.told) if study.name == "coverage" else part.text))
    caption = parts[0].figures[0][1]
    if any(len(one.seeds) > 1 for one in study.found):
        caption += (" Seeds: the base model's traces under all of them are traces of one model." if study.name in ALONE else
                    " With several seeds the intervals cover other questions and other trainings.")
    return Section(title, tuple(text), ((f"{study.name}-{number}", caption),), tuple(tables(study, number)))


def tables(study: Study, number: int) -> list[Table]:
    """The tables of a study, named NAME-N."""
    found = [(one.who, one.told) for one in study.found]
    names = [f"{study.name}-{number}" + (f"-{place}" if place else "") for place in range(len(found))]
    match study.name:
        case "consistency":
            return [analyses.consistency_table(one.told, name) for one, name in zip(study.found, names, strict=True)]
        case "errors":
            return [analyses.errors_table(one.told, name) for one, name in zip(study.found, names, strict=True)]
        case "coverage":
            return [analyses.coverage_table(found, f"{study.name}-{number}")]
        case _:
            return [analyses.acting_table(found, f"acting-{number}"), analyses.kl_table(found, f"{study.name}-{number}")]


def draw(every: Sequence[Study]) -> dict[str, Drawn]:
    """A figure a study; of a base model asked under seeds that cannot be taken together the first."""
    figures = {}
    with styled():
        for number, (study, section) in enumerate(zip(every, sections(every), strict=True)):
            found = study.found
            match study.name:
                case "consistency":
                    figure = panels.consistency(found[0].told)
                case "errors":
                    figure = panels.errors(found[0].told)
                case "coverage":
                    figure = panels.coverage([(one.who, one.told) for one in found])
                case _:
                    colours = series.colours([one.method for one in found])
                    figure = panels.divergences([(one.who, colours[one.method][0], one.told) for one in found])
            name = f"{study.name}-{number}"
            figures[name] = drawn(name, " ".join(section.text), figure)
    return figures


def as_json(every: Sequence[Study]) -> list[dict[str, Any]]:
    """For results.json."""
    return [{"analysis": study.name, "model": study.model, "who": one.who,
             "method": None if study.name in ALONE else one.method, "seeds": [seed for seed, _ in one.seeds],
             "train_seeds": [seed for _, seed in one.seeds], "artifacts": list(one.cells),
             "found": dict(one.told)} for study in every for one in study.found]
