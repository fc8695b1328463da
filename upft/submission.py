"""Cells -> the jobs that make them: each distinct stage once, after those it needs, equal shapes side by side.

Floor 6, pure: knows plans and which artifacts there are, neither SLURM nor a store. The key alone decides what is equal,
so what the seed (or anything else) reaches is told apart and what it does not reach is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from dataclasses import dataclass

from upft import shards
from upft.plan import Plan, Stage
from upft.shards import Job, Shard
from upft.sharing import covered, distinct

ARRAY_LIMIT = 1000
"""Most jobs of one array: clusters allow 1,001 as they come (MaxArraySize)."""
ON_GPU = frozenset({"sample", "train", "evaluate", "judge", "reference", "verify", "branch", "kl"})
"""Stages that use a GPU where there is one."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep. name: what sets it apart from the others; command: what makes it alone, as it is typed."""

    name: str
    plan: Plan
    command: str = ""


@dataclass(frozen=True)
class Group:
    """Jobs of one shape and depth: an array together. depth: how many missing ones come before, at most; gathers: whether what
    their shards have drawn is all that they need."""

    jobs: tuple[Job, ...]
    depth: int
    gathers: bool = False

    @property
    def stage(self) -> str:
        """The name of the stage that is made, or shares of it."""
        return shards.whole(self.jobs[0]).name

    @property
    def name(self) -> str:
        """The stage's name, and whether these are shards of it."""
        return self.stage + ("-shards" if isinstance(self.jobs[0], Shard) else "")


@dataclass(frozen=True)
class Work:
    """What a sweep comes to.

    stages: every distinct one, each after those it needs; missing: keys of those that are not there; served: cells that need
    it, by key; shards: of a missing stage that is cut, by its key; todo: keys of the jobs to be submitted; after: what a job
    needs and is not there, by its key, but for what another of these waits for; behind: what a job should wait for however it
    ends: a sampling that holds its samples; blocked: keys of jobs that wait for one which is not submitted (it has failed
    before), with that one's; groups: the jobs to submit, in the order to submit them.
    """

    stages: tuple[Stage, ...]
    missing: frozenset[str]
    served: Mapping[str, int]
    shards: Mapping[str, tuple[Shard, ...]]
    todo: frozenset[str]
    after: Mapping[str, tuple[str, ...]]
    behind: Mapping[str, tuple[str, ...]]
    blocked: Mapping[str, str]
    groups: tuple[Group, ...]

    @property
    def jobs(self) -> list[Job]:
        """All stages, each behind its shards."""
        found: list[Job] = []
        for stage in self.stages:
            found += [*self.shards.get(stage.key, ()), stage]
        return found


def cut(stages: Sequence[Stage], into: Callable[[Stage], int]) -> dict[str, tuple[Shard, ...]]:
    """The shards of the stages that more than one job draws, by key. into: how many. A sampling whose samples another one
    holds is not cut: it draws nothing."""
    held = covered(stages)
    found = {stage.key: tuple(shards.of(stage, into(stage))) for stage in stages if stage.key not in held}
    return {key: parts for key, parts in found.items() if parts}


def alike(job: Job) -> Hashable:
    """What jobs of one array have in common at least: the stage, and whether they draw shares of it."""
    return shards.whole(job).name, job.name


def arrange(cells: Sequence[Cell], there: Container[str], under_way: Container[str] = (), refused: Container[str] = (),
            shape: Callable[[Job], Hashable] = alike, into: Callable[[Stage], int] = lambda stage: 1) -> Work:
    """Find the jobs to submit. there: keys in the store; under_way: keys that a job is going to make; refused: keys that are
    not to be tried again; into: shards of a stage."""
    stages, served = distinct(cell.plan for cell in cells), Counter(
        key for cell in cells for key in {stage.key for stage in cell.plan.stages})
    held, parts = covered(stages), cut([stage for stage in stages if stage.key not in there], into)
    after: dict[str, tuple[str, ...]] = {}
    behind: dict[str, tuple[str, ...]] = {}
    before: dict[str, set[str]] = {}
    blocked: dict[str, str] = {}
    depth: dict[str, int] = {}
    lots: dict[tuple[int, bool, Hashable], list[Job]] = {}

    def place(job: Job, needs: Sequence[str], softly: Sequence[str] = (), gathers: bool = False) -> None:
        """One job, behind what it needs."""
        before[job.key] = {*needs, *(key for one in needs for key in before[one])}
        after[job.key] = tuple(key for key in needs if not any(key in before[one] for one in needs))
        behind[job.key] = tuple(key for key in softly if key not in before[job.key])
        depth[job.key] = 1 + max((depth[key] for key in (*needs, *softly)), default=-1)
        if job.key in under_way:
            return
        reason = job.key if job.key in refused else next((blocked[key] for key in needs if key in blocked), None)
        if reason is not None:
            blocked[job.key] = reason
        else:
            lots.setdefault((depth[job.key], gathers, shape(job)), []).append(job)

    for stage in stages:
        if stage.key in there:
            continue
        needs = list(dict.fromkeys(one.key for one in stage.inputs.values() if one.key not in there))
        source = held.get(stage.key)  # after it, this sampling draws nothing; without it, it draws its own
        softly = [source.key] if source is not None and source.key not in there and source.key not in blocked else []
        # Where the stage itself is under way, so are its shards.
        own = [part for part in parts.get(stage.key, ()) if part.key not in there and stage.key not in under_way]
        for part in own:
            place(part, needs)
        place(stage, [*needs, *(part.key for part in own)], softly, gathers=stage.key in parts)
    groups = [Group(tuple(lot[first:first + ARRAY_LIMIT]), level, gathers) for (level, gathers, _), lot in
              sorted(lots.items(), key=lambda item: item[0][0]) for first in range(0, len(lot), ARRAY_LIMIT)]
    return Work(tuple(stages), frozenset(after) & {stage.key for stage in stages}, served, parts,
                frozenset(job.key for group in groups for job in group.jobs), after, behind, blocked, tuple(groups))


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
