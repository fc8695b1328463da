"""Settings, tables and figures of many cells -> one page (report.html), the same as Markdown, and results.json.

Chooses what to show and in which order; the templates say how it looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

from upft.report import curves, markdown, page, paper
from upft.report import settings as s
from upft.report import wording as w
from upft.report.costs import estimated, shares
from upft.report.figures import Drawn
from upft.report.knobs import leaves
from upft.report.settings import Case, Setting, TaskFound
from upft.report.studies import Study
from upft.report.studies import as_json as studies_json
from upft.report.studies import sections as sections_of
from upft.report.table import MARKS, Table
from upft.report.tables import unlike
from upft.statistics import NOISE, holm

EXAMPLES = 4
"""Answer pairs to show for a setting and task."""
SCHEMA = 1
"""Version of results.json; results.schema.json describes it."""


def render(settings: Sequence[Setting], cases: Sequence[Case], tables: Sequence[Table], figures: Mapping[str, Drawn],
           commands: Sequence[str], studies: Sequence[Study] = (), missing: Sequence[str] = ()) -> str:
    """The whole page. missing: cells that should be on it and are not."""
    from markupsafe import Markup

    return page.environment().get_template("overview.html.j2").render(
        title=title(settings), under=under(settings, cases), absent=absent(missing), findings=findings(settings), tables=tables,
        many=w.multiplicity(comparisons(settings)), settings=len(settings),
        marks=MARKS, figures=page.shown(figures), captions={name: curves.caption(name) for name in _own(figures)},
        own=_own(figures), analyses=sections_of(studies), unbroken=page.unbroken, examples=_examples(settings),
        shorten=page.rest, commands=commands, versions=versions(cases), resolved=_resolved(settings),
        css=Markup((page.FOLDER / "style.css.j2").read_text(encoding="utf-8")), script=Markup(page.script()),
        policy=page.policy())


def _own(figures: Mapping[str, Drawn]) -> list[str]:
    """Names of the figures that are not an analysis's."""
    return [name for name in figures if name.rpartition("-")[0] in curves.CAPTIONS]


def title(settings: Sequence[Setting]) -> str:
    """Methods, models and data of the page."""
    names = [list(dict.fromkeys(getattr(one, field) for one in settings)) for field in ("method", "model", "data")]
    methods, models, data = (", ".join(found) if len(found) <= 5 else f"{len(found)} {what}"
                             for found, what in zip(names, ("methods", "models", "data sets"), strict=True))
    return f"{methods} of {models} on {data}"


def under(settings: Sequence[Setting], cases: Sequence[Case]) -> str:
    """How many cells and settings, under which seeds."""
    seeds = sorted({seed for one in settings for seed in one.seeds})
    own, training = ({seed[place] for seed in seeds} for place in (0, 1))
    told = _seeds("seed", own) if own == training else f"{_seeds('seed', own)}, {_seeds('training seed', training)}"
    return f"{len(cases)} cell{'s' * (len(cases) != 1)}, {len(settings)} setting{'s' * (len(settings) != 1)}, {told}"


def absent(missing: Sequence[str]) -> str:
    """Which cells are not on the page; nothing where all are."""
    if not missing:
        return ""
    cells = "1 cell of this sweep has" if len(missing) == 1 else f"{len(missing)} cells of this sweep have"
    return f"{cells} no report yet: {'; '.join(missing)}"


def _seeds(name: str, found: Set[int]) -> str:
    ordered = sorted(found)
    shown = ", ".join(map(str, ordered)) if len(ordered) <= 12 else f"{ordered[0]} to {ordered[-1]}"
    return f"{name}{'s' * (len(ordered) != 1)} {shown}"


def findings(settings: Sequence[Setting]) -> list[dict[str, str]]:
    """For each model, data and method, and each way the models were asked, the setting with the highest accuracy, and how
    sure its change is: settings that answered other questions are not chosen from together."""
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for one in settings:
        groups.setdefault((one.model, one.data, one.method, one.asked), []).append(one)
    out = []
    several = len({key[:2] for key in groups}) > 1
    adjusted = corrected(settings)
    for (model, data, *_), group in groups.items():
        found = group[0] if len(group) == 1 else max(group, key=lambda one: one.overall.accuracy.value)
        where = f" of {model} on {data}" if several else ""
        what = next(iter(found.tasks)) if found.mean is None else f"the mean of {len(found.tasks)} tasks"
        entry = found.overall
        verb = {"gain": "raised", "loss": "lowered"}.get(entry.paired.verdict, "did not measurably change")
        chosen = f" Best of {len(group)} settings, so by choice rather high." if len(group) > 1 else ""
        noise = f"; inside noise. A change of {w.points(entry.detectable)} points would likely have shown" \
            if entry.paired.verdict == NOISE else ""
        of_all = (f" ({w.p_value(adjusted[settings.index(found)])} by Holm's correction for all {len(settings)} settings)"
                  if len(settings) > 1 else "")
        out.append({"verdict": entry.paired.verdict,
                    "what": page.unbroken(f"{found.name}{where} {verb} accuracy on {what}: {w.percent(entry.base.value)} → "
                                          f"{w.percent(entry.accuracy.value)}."),
                    "numbers": page.unbroken(
                        f"Difference {w.signed(entry.paired.difference)} points "
                        f"{w.interval(entry.paired.low, entry.paired.high)}, {w.p_value(entry.paired.p_value)}{of_all}{noise}. "
                        f"{len(found.seeds)} seed{'s' * (len(found.seeds) != 1)}.{chosen}")})
    return out


def corrected(settings: Sequence[Setting]) -> list[float]:
    """The p-value of each setting's change, over its tasks, by Holm's correction for all of them: whichever of them is chosen
    to be told, that one of so many looks like a change by chance is counted in."""
    return holm([one.overall.paired.p_value for one in settings])


def comparisons(settings: Sequence[Setting]) -> int:
    """Tests against the base model in the tables of results, each at the 5% level; a setting in both tables counts once."""
    return sum(len(one.tasks) + (one.mean is not None) for one in settings)


def _examples(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Of each model, data and method the first setting with a prefix marked."""
    out, seen = [], set()
    for one in sorted(settings, key=lambda one: (one.model, one.data, one.prefix_len is None)):
        if (one.model, one.data, one.method) in seen:
            continue
        seen.add((one.model, one.data, one.method))
        evidence = one.cases[0].again()
        for task, (base, trained) in evidence.tasks.items():
            pairs = page.differing(base, trained, EXAMPLES, evidence.decode, one.prefix_len)
            if pairs:
                out.append({"title": f"{one.model}, {one.data}: {one.name} on {task}", "method": one.method,
                            "prefix_len": one.prefix_len, "pairs": pairs})
    return out


def versions(cases: Sequence[Case]) -> list[tuple[str, str]]:
    """Every version that any stage of any cell ran with."""
    return page.versions(case.versions for case in cases)


def _resolved(settings: Sequence[Setting]) -> list[dict[str, str]]:
    return [{"title": f"{one.model}, {one.data}: {one.name}", "text": json.dumps(
        one.cases[0].specs(), indent=1, ensure_ascii=False, sort_keys=True)}
        for one in settings]


def _apart(settings: Sequence[Setting]) -> list[dict[str, str]]:
    """As `_resolved`, of the first setting; of the others the lines in which they differ from it but for the keys of artifacts,
    so that report.md does not grow by whole specs."""
    out, first = [], dict(leaves(settings[0].cases[0].specs()))
    for place, one in enumerate(settings):
        title = f"{one.model}, {one.data}: {one.name}"
        if place == 0:
            out.append({"title": title, "text": _resolved([one])[0]["text"]})
            continue
        mine = dict(leaves(one.cases[0].specs()))
        lines = [f"{key} = {json.dumps(mine[key], ensure_ascii=False)}" if key in mine else f"{key}: none"
                 for key in dict.fromkeys([*first, *mine])
                 if mine.get(key, ...) != first.get(key, ...) and ".inputs." not in key]
        out.append({"title": f"{title}: what differs from the first", "text": "\n".join(lines)})
    return out


def as_markdown(settings: Sequence[Setting], cases: Sequence[Case], tables: Sequence[Table], figures: Mapping[str, Drawn],
                commands: Sequence[str], studies: Sequence[Study] = (), missing: Sequence[str] = ()) -> str:
    """report.md: what the page says."""
    parts = [f"# {markdown.escaped(title(settings))}\n\n{markdown.escaped(under(settings, cases))}\n"]
    parts += [f"**{markdown.escaped(absent(missing))}**\n"] if missing else []
    parts += [f"**{markdown.escaped(one['what'])}** {markdown.escaped(one['numbers'])}\n" for one in findings(settings)]
    parts += [markdown.table(one) for one in tables if one.name != "cells"]
    parts += [f"![{markdown.escaped(figures[name].alt)}](figures/{name}.svg)\n\n{curves.caption(name)}\n"
              for name in _own(figures)]
    parts += [markdown.section(one, figures) for one in sections_of(studies)]
    parts += [markdown.examples(one["title"], one["pairs"], one["method"], one["prefix_len"]) for one in _examples(settings)]
    parts += [markdown.table(one) for one in tables if one.name == "cells"]
    parts.append("## How to repeat it\n\n" + "\n".join(f"    {command}" for command in commands) + "\n")
    parts.append("".join(f"- {name}: {markdown.escaped(found)}\n" for name, found in versions(cases)))
    parts.append("## Everything each result depends on\n\n" + "\n".join(
        markdown.folded(one["title"], one["text"]) for one in _apart(settings)))
    parts += [f"{many}\n"] if (many := w.multiplicity(comparisons(settings))) else []
    return "\n".join(parts)


def as_json(settings: Sequence[Setting], cases: Sequence[Case], figures: Mapping[str, Drawn],
            commands: Sequence[str], studies: Sequence[Study] = (), missing: Sequence[str] = (),
            files: Sequence[str] = ()) -> dict[str, Any]:
    """results.json (docs/report.md). files: the tables and figures beside it."""
    return {
        "schema": SCHEMA, "title": title(settings), "source_of_published": paper.told()["source"], "commands": list(commands),
        "missing": list(missing), "files": list(files),
        "figures": {name: drawn.alt for name, drawn in figures.items()},
        "bases": [{"model": base.model, "tasks": {task: _asked(one) | {"accuracy": asdict(one.accuracy)}
                                                  for task, one in base.tasks.items()},
                   "mean": None if base.mean is None else asdict(base.mean), "knobs": list(base.knobs)}
                  for base in s.bases(settings)],
        "settings": [{
            "model": one.model, "data": one.data, "method": one.method, "prefix_len": one.prefix_len, "ratio": one.ratio,
            "knobs": list(one.knobs), "seeds": [seed for seed, _ in one.seeds],
            "train_seeds": [seed for _, seed in one.seeds], "cells": [case.key for case in one.cases], "length": one.length,
            "tasks": {task: _found(found) for task, found in one.tasks.items()},
            "mean": None if one.mean is None else _found(one.mean), "cost": dict(one.cost),
            "estimated": sorted(estimated(one)), "shares": shares(one, settings),
            "training_questions": one.questions, "p_value_of_all": p_value,
            "published": {table: asdict(line) | {"unlike": unlike(one, line)} for table in ("unsupervised", "supervised")
                          if (line := paper.line(table, one.model, one.data, one.method)) is not None},
        } for one, p_value in zip(settings, corrected(settings), strict=True)],
        "analyses": studies_json(studies),
        "cells": [{
            "key": case.key,
            **{name: case.results[name] for name in ("model", "data", "method", "prefix_len", "ratio", "seed")},
            "train_seed": case.seeds[1],
            "accuracy": {task: {side: e[side]["accuracy"] for side in ("base", "trained")}
                         for task, e in case.results["tasks"].items()},
            "comparison": case.results["comparison"],
            "stages": dict(case.stages),
            "provenance": {name: case.provenance.get(name) for name in ("git", "host", "finished", "command", "versions")},
        } for case in cases],
    }


def _asked(found: TaskFound) -> dict[str, Any]:
    return {"protocol": found.protocol, "asked": dict(found.asked), "questions": found.questions, "samples": found.samples,
            "judge_accepted": found.judge_accepted}


def _found(found: TaskFound) -> dict[str, Any]:
    return _asked(found) | {"accuracy": asdict(found.accuracy), "base": asdict(found.base),
                            "paired": asdict(found.paired) | {"smallest_detectable": found.detectable}}
