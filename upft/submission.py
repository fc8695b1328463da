"""Cells -> the jobs that make them: each distinct stage once, after those it needs, equal shapes side by side.

Floor 6, pure: knows plans and which artifacts there are, neither SLURM nor a store. The key alone decides what is equal,
so what the seed (or anything else) reaches is told apart and what it does not reach is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass

from upft.plan import Plan, Stage
from upft.sharing import covered, distinct

ARRAY_LIMIT = 1000
"""Most jobs of one array: clusters allow 1,001 as they come (MaxArraySize)."""
ON_GPU = frozenset({"sample", "train", "evaluate", "judge", "reference", "verify", "branch", "kl"})
"""Stages that use a GPU where there is one."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. name: what sets it apart from the others."""

    name: str
    plan: Plan


@dataclass(frozen=True)
class Group:
    """Stages of one shape and depth: a job each, an array together. depth: how many missing stages come before, at most."""

    stages: tuple[Stage, ...]
    depth: int

    @property
    def name(self) -> str:
        """The stages' name."""
        return self.stages[0].name


@dataclass(frozen=True)
class Work:
    """What a sweep comes to.

    stages: every distinct one, each after those it needs; served: cells that need it, by key; todo: keys of those to be
    submitted; after: the missing inputs of a stage, by its key, but for those that another of them waits for; blocked: keys of
    those that wait for one which is not submitted (it has failed before), with that one's; groups: the stages to submit, in
    the order to submit them.
    """

    stages: tuple[Stage, ...]
    served: Mapping[str, int]
    todo: frozenset[str]
    after: Mapping[str, tuple[str, ...]]
    blocked: Mapping[str, str]
    groups: tuple[Group, ...]


def arrange(cells: Sequence[Cell], there: Container[str], under_way: Container[str] = (), refused: Container[str] = (),
            shape: Callable[[Stage], Hashable] = lambda stage: stage.name) -> Work:
    """Find the stages to submit. there: keys in the store; under_way: keys that a job is going to make; refused: keys that are
    not to be tried again."""
    stages, served = distinct(cell.plan for cell in cells), Counter(
        key for cell in cells for key in {stage.key for stage in cell.plan.stages})
    held = covered(stages)
    after: dict[str, tuple[str, ...]] = {}
    before: dict[str, set[str]] = {}
    blocked: dict[str, str] = {}
    depth: dict[str, int] = {}
    lots: dict[tuple[int, Hashable], list[Stage]] = {}
    for stage in stages:
        if stage.key in there:
            continue
        sources = [held[stage.key]] if stage.key in held else []  # after it, this sampling draws nothing
        missing = tuple(dict.fromkeys(one.key for one in (*stage.inputs.values(), *sources) if one.key not in there))
        before[stage.key] = {*missing, *(key for one in missing for key in before[one])}
        after[stage.key] = tuple(key for key in missing if not any(key in before[one] for one in missing))
        depth[stage.key] = 1 + max((depth[key] for key in missing), default=-1)
        if stage.key in under_way:
            continue
        reason = stage.key if stage.key in refused else next((blocked[key] for key in missing if key in blocked), None)
        if reason is not None:
            blocked[stage.key] = reason
        else:
            lots.setdefault((depth[stage.key], shape(stage)), []).append(stage)
    groups = [Group(tuple(lot[first:first + ARRAY_LIMIT]), level) for (level, _), lot in
              sorted(lots.items(), key=lambda item: item[0][0]) for first in range(0, len(lot), ARRAY_LIMIT)]
    return Work(tuple(stages), served, frozenset(stage.key for group in groups for stage in group.stages), after, blocked,
                tuple(groups))


def failed_cells(cells: Sequence[Cell], there: Container[str]) -> list[str]:
    """Names of the cells that have no report."""
    return [cell.name for cell in cells if cell.plan.report.key not in there]


def closure(report: Stage) -> Plan:
    """A cell by its last stage."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for upstream in stage.inputs.values():
                visit(upstream)
            found[stage.key] = stage

    visit(report)
    return Plan(tuple(found.values()))
