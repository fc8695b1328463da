"""Many cells -> settings: cells that differ in their seeds only are one, with intervals over questions and seeds.

Pure: what was read from the artifacts in, numbers out. All statistics of a report on many cells are computed here, once.
"""

from __future__ import annotations

import dataclasses
import statistics as plain
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from upft import statistics
from upft.hashing import digest
from upft.report import page
from upft.report.costs import cost
from upft.report.evidence import Evidence
from upft.report.knobs import differ, order
from upft.report.results import results
from upft.specs import ReportSpec
from upft.statistics import Estimate, Paired

T = TypeVar("T")


@dataclass(frozen=True)
class Looked:
    """One analysis of one cell. key: of its artifact; ask: a digest of what was asked, seeds and the training aside; told: its
    summary; values: what it found of each question (`upft.report.studies.read`), None where that was not kept."""

    key: str
    ask: str
    told: Mapping[str, Any]
    values: Any = None


@dataclass(frozen=True)
class Case:
    """What is held of one cell: some kilobytes, however long its answers. results: computed anew from the artifacts, so that
    reports of other versions stand side by side; provenance: of the report itself; science: a digest of everything the
    result depends on but the seeds; seeds: (the cell's, the training's); asked: one of how the base model was asked;
    stages: role -> key; correct: task -> (base, trained), each [questions, samples]; losses: [steps, 2], step and loss;
    looked: its analyses by name; specs, again: read what its stages were told, and all of its evidence, once more.
    """

    key: str
    spec: ReportSpec
    results: Mapping[str, Any]
    provenance: Mapping[str, Any]
    science: str
    seeds: tuple[int, int]
    asked: str
    stages: Mapping[str, str]
    versions: Mapping[str, Sequence[str]]
    correct: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    losses: NDArray[np.float64]
    looked: Mapping[str, Looked]
    specs: Callable[[], Mapping[str, Any]]
    again: Callable[[], Evidence]

    @classmethod
    def of(cls, key: str, evidence: Evidence, provenance: Mapping[str, Any], looked: Mapping[str, Looked] | None = None,
           specs: Callable[[], Mapping[str, Any]] | None = None, again: Callable[[], Evidence] | None = None) -> Case:
        """From the evidence, which is held on to only where specs and again are not given."""
        told = {role: record.spec for record in evidence.stages if (role := record.role)}
        losses = np.array([(row["step"], row["loss"]) for row in evidence.metrics if "step" in row and "loss" in row])
        found = {name: value for name, value in results(evidence).items() if name not in ("diagnosis", "analyses")}
        questions = {task: digest(list(base.ids)) for task, (base, _) in evidence.tasks.items()}
        base_told = {role: spec for role, spec in told.items() if role.startswith(("base:", "judged:base:"))}
        mark = digest([science(told), questions, evidence.method, [evidence.spec.model, evidence.spec.data]])
        return cls(key, evidence.spec, found, provenance, mark, (evidence.spec.seed, evidence.train_seed),
                   digest([evidence.spec.model, science(base_told), questions]),
                   {record.role: record.key for record in evidence.stages}, page.found_versions(evidence.stages),
                   {task: (base.correct > 0, trained.correct > 0) for task, (base, trained) in evidence.tasks.items()},
                   losses.reshape(-1, 2), looked or {}, specs or (lambda: told), again or (lambda: evidence))


def science(told: Mapping[str, Any]) -> dict[str, Any]:
    """Role -> spec without seeds, of the stages that the result depends on: analyses look at it from outside."""
    return {role: without_seeds(spec.get("spec", {})) for role, spec in told.items() if not role.startswith("analysis:")}


@dataclass(frozen=True)
class TaskFound:
    """A setting's accuracy on a task, and its difference from the base model on the same questions. detectable: the smallest
    true difference that a repetition would find four times in five; judged: judge's artifact -> answers that it accepted, the
    rule not, None where no judge was asked."""

    accuracy: Estimate
    base: Estimate
    paired: Paired
    questions: int
    samples: int
    protocol: str | None
    asked: Mapping[str, Any]
    detectable: float = 1.0
    judged: Mapping[str, int] | None = None

    @property
    def judge_accepted(self) -> int | None:
        """Answers that a judge accepted, the rule not; None where none was asked."""
        return None if self.judged is None else sum(self.judged.values())


@dataclass(frozen=True)
class Setting:
    """Cells that differ in their seeds only, by seed. knobs: what sets it apart from others of its name, such as
    `train.lr=1e-05`. mean: over the tasks, None with one task."""

    cases: tuple[Case, ...]
    knobs: tuple[str, ...]
    tasks: Mapping[str, TaskFound]
    mean: TaskFound | None
    cost: Mapping[str, float | None]

    @property
    def first(self) -> Mapping[str, Any]:
        """results.json of the first seed."""
        return self.cases[0].results

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.first["model"])

    @property
    def data(self) -> str:
        """Name of the training questions."""
        return str(self.first["data"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.first["method"])

    @property
    def prefix_len(self) -> int | None:
        """Tokens; None for whole traces."""
        found: int | None = self.first["prefix_len"]
        return found

    @property
    def ratio(self) -> float:
        """Share of whole traces."""
        return float(self.first["ratio"])

    @property
    def seeds(self) -> list[tuple[int, int]]:
        """(the cell's, the training's) of each cell, in order."""
        return [case.seeds for case in self.cases]

    @property
    def asked(self) -> str:
        """As `Case.asked`: settings that share it are compared on the same questions."""
        return self.cases[0].asked

    @property
    def questions(self) -> int | None:
        """Training questions."""
        found: int | None = self.first["training"]["questions"]
        return found

    @property
    def adapters(self) -> bool:
        """Whether adapters were trained instead of all weights."""
        train = self.cases[0].specs().get("train", {})
        return train.get("spec", {}).get("lora") is not None

    @property
    def length(self) -> float | None:
        """Mean trained response tokens a row."""
        found = [case.results["training"]["mean_trained_length"] for case in self.cases]
        return None if None in found else plain.fmean(found)

    @property
    def name(self) -> str:
        """Method and what it was set to, for a reader."""
        parts = [] if self.prefix_len is None else [f"t = {self.prefix_len}", f"p = {self.ratio:g}"]
        return ", ".join([self.method, *parts, *self.knobs])

    @property
    def overall(self) -> TaskFound:
        """The mean over tasks, or the one task."""
        return self.mean if self.mean is not None else next(iter(self.tasks.values()))


@dataclass(frozen=True)
class Base:
    """An untrained model on the tasks, all its answers under several seeds together. asked: as `Case.asked`; knobs: what sets
    this way to ask apart from others of the same model, such as `eval.limit=50`."""

    model: str
    tasks: Mapping[str, TaskFound]
    mean: Estimate | None
    asked: str
    knobs: tuple[str, ...] = ()


def settings(cases: Sequence[Case]) -> list[Setting]:
    """The settings, by model, data and method in the order of the paper's tables, then prefix length and ratio."""
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda one: (one.seeds, one.key)):
        groups.setdefault(case.science, []).append(case)
    named: dict[tuple[Any, ...], list[str]] = {}
    for mark, group in groups.items():
        named.setdefault(_name(group[0]), []).append(mark)
    knobs = {mark: found for marks in named.values()
             for mark, found in zip(marks, _differ([groups[mark][0] for mark in marks], science), strict=True)}
    return sorted((_setting(tuple(group), knobs[mark]) for mark, group in groups.items()),
                  key=lambda s: (s.model, s.data, _order(s.method), s.method, s.prefix_len or 0, s.ratio, order(s.knobs)))


def _name(case: Case) -> tuple[Any, ...]:
    r = case.results
    return r["model"], r["data"], r["method"], r["prefix_len"], r["ratio"]


def _differ(cases: Sequence[Case], what: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What sets each apart; specs are read only where there are several."""
    return differ([what(case.specs()) for case in cases]) if len(cases) > 1 else [()]


ORDER = ("SFT", "RFT", "V-STaR", "UPFT", "UPFT + label filter")


def _order(method: str) -> int:
    return ORDER.index(method) if method in ORDER else len(ORDER)


def newest(cases: Sequence[Case]) -> list[Case]:
    """Of several reports on one cell (another version of a stage wrote another, or analyses were asked for later) the last one
    finished, with what earlier ones have of the analyses that it lacks."""
    found: dict[tuple[str, tuple[int, int]], Case] = {}
    for case in sorted(cases, key=lambda one: (str(one.provenance.get("finished", "")), one.key)):
        cell = case.science, case.seeds
        earlier = found[cell].looked if cell in found else {}
        found[cell] = dataclasses.replace(case, looked={**earlier, **case.looked})
    return list(found.values())


def without_seeds(spec: Any) -> Any:
    """A spec without the seeds that differ between runs; those of generated questions are what the questions are."""
    if isinstance(spec, Mapping):
        kept = spec.get("type") == "Generated"
        return {key: without_seeds(value) for key, value in spec.items() if (key != "seed" or kept) and key != "trained"}
    if isinstance(spec, (list, tuple)):
        return [without_seeds(value) for value in spec]
    return spec


def _setting(cases: tuple[Case, ...], knobs: tuple[str, ...]) -> Setting:
    tasks = list(cases[0].correct)
    if len(cases) == 1:
        told = cases[0].results
        found = {task: TaskFound(Estimate(**e["trained"]["accuracy"]), Estimate(**e["base"]["accuracy"]), _paired(e["paired"]),
                                 e["questions"], e["trained"]["samples"], e["protocol"], e["asked"],
                                 e["paired"]["smallest_detectable"], _judged(cases, task))
                 for task, e in told["tasks"].items()}
        mean, questions = told["mean"], sum(one.questions for one in found.values())
        overall = None if mean is None else TaskFound(
            Estimate(**mean["trained"]["accuracy"]), Estimate(**mean["base"]["accuracy"]), _paired(mean["paired"]),
            questions, 0, mean["protocol"], {},
            statistics.smallest_detectable((mean["paired"]["high"] - mean["paired"]["low"]) / 2, questions))
        return Setting(cases, knobs, found, overall, cost(cases))
    sides = [{task: np.array([np.mean([case.correct[task][side].mean(axis=1) for case in some], axis=0)
                              for some in by_seed(cases, lambda case: case.seeds)]) for task in tasks} for side in (0, 1)]
    found = {}
    for task in tasks:
        e = cases[0].results["tasks"][task]
        base, trained = sides[0][task], sides[1][task]
        found[task] = TaskFound(statistics.over_seeds(trained), statistics.over_seeds(base),
                                statistics.paired_over_seeds(base, trained), e["questions"], e["trained"]["samples"],
                                e["protocol"], e["asked"], statistics.detectable_over_seeds([base], [trained]),
                                _judged(cases, task))
    overall = None
    if len(tasks) > 1:
        before, after = (list(side.values()) for side in sides)
        protocols = {one.protocol for one in found.values()}
        overall = TaskFound(statistics.macro_over_seeds(after), statistics.macro_over_seeds(before),
                            statistics.paired_macro_over_seeds(before, after), sum(one.questions for one in found.values()), 0,
                            protocols.pop() if len(protocols) == 1 else None, {},
                            statistics.detectable_over_seeds(before, after))
    return Setting(cases, knobs, found, overall, cost(cases))


def _judged(cases: Sequence[Case], task: str, sides: Sequence[str] = ("base", "trained")) -> dict[str, int] | None:
    """As `TaskFound.judged`."""
    found = {case.stages[role]: int(case.results["tasks"][task][side]["judge_accepted"] or 0)
             for case in cases for side in sides if (role := f"judged:{side}:{task}") in case.stages}
    return found or None


def _paired(told: Mapping[str, Any]) -> Paired:
    return Paired(**{f.name: told[f.name] for f in dataclasses.fields(Paired)})


def by_seed(found: Sequence[T], seeds: Callable[[T], tuple[int, int]]) -> list[list[T]]:
    """What counts as one seed: what has a sampling seed in common, for trainings on the same samples are alike and no new ones;
    under one sampling seed alone each training. seeds: (the cell's, the training's)."""
    several = len({seeds(one)[0] for one in found}) > 1
    out: dict[Any, list[T]] = {}
    for one in found:
        out.setdefault(seeds(one)[0] if several else seeds(one), []).append(one)
    return list(out.values())


def bases(every: Sequence[Setting]) -> list[Base]:
    """The untrained models, one for each way it was asked. Answers under several seeds are several answers of one model."""
    groups: dict[str, list[Case]] = {}
    for setting in every:
        for case in setting.cases:
            groups.setdefault(case.asked, []).append(case)
    named: dict[str, list[str]] = {}
    for asked, cases in groups.items():
        named.setdefault(cases[0].spec.model, []).append(asked)
    knobs = {asked: found for several in named.values()
             for asked, found in zip(several, _differ([groups[asked][0] for asked in several], _asked), strict=True)}
    return [_base(group, knobs[asked]) for asked, group in groups.items()]


def _asked(told: Mapping[str, Any]) -> dict[str, Any]:
    """Of the specs what the base model was asked."""
    return {role: spec for role, spec in science(told).items() if role.startswith(("base:", "judged:base:"))}


def _base(cases: Sequence[Case], knobs: tuple[str, ...]) -> Base:
    found = {}
    for task in cases[0].correct:
        evaluations: dict[str, NDArray[np.bool_]] = {}
        for case in cases:
            key = case.stages.get(f"judged:base:{task}") or case.stages[f"base:{task}"]
            evaluations.setdefault(key, case.correct[task][0])
        correct = np.concatenate([evaluations[key] for key in sorted(evaluations)], axis=1).astype(np.float64)
        e = cases[0].results["tasks"][task]
        value = statistics.accuracy(correct)
        found[task] = TaskFound(value, value, Paired(0.0, 0.0, 0.0, 1.0, "", ""), len(correct), correct.shape[1],
                                e["protocol"], e["asked"], judged=_judged(cases, task, ("base",)))
    mean = statistics.macro([one.accuracy for one in found.values()]) if len(found) > 1 else None
    return Base(str(cases[0].results["model"]), found, mean, cases[0].asked, knobs)
