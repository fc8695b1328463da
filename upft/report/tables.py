"""Settings -> the tables of a report on many cells: the paper's two, cost, shares of cost, where each cell is from.

Chooses columns and rows; what a table looks like is another room's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from upft.report import paper
from upft.report import wording as w
from upft.report.costs import AGAINST, ambiguous, estimated, rivals, shares
from upft.report.settings import Base, Case, Setting, TaskFound, bases
from upft.report.table import Cell, Column, Row, Table, estimate, number, word

UNSUPERVISED, SUPERVISED = ("SFT", "UPFT"), ("RFT", "V-STaR", "UPFT", "UPFT + label filter")
EMPTY = Cell("")
READ = ("Accuracy in percent with its 95% interval; below it the paired difference from the base model in points, ▲ or ▼ only "
        "where interval and test agree, else it is inside noise. ")


def tables(settings: Sequence[Setting], cases: Sequence[Case]) -> list[Table]:
    """Every table that there is something to say in, in the order of the page."""
    free = [s for s in settings if s.method == "UPFT"]
    labelled = [s for s in settings if s.method == "UPFT" or s.method not in UNSUPERVISED]
    found = [_accuracies("unsupervised", "Without labels", [s for s in settings if s.method in UNSUPERVISED]),
             _accuracies("supervised", "With labels", labelled) if len(labelled) > len(free) else None,
             _cost(settings), *(_shares(settings, method) for method in AGAINST), _cells(settings, cases)]
    return [table for table in found if table is not None]


def tasks_of(settings: Sequence[Setting]) -> list[str]:
    """Every task any of them was asked, in order."""
    return list(dict.fromkeys(task for s in settings for task in s.tasks))


def _accuracies(name: str, title: str, settings: Sequence[Setting]) -> Table | None:
    """Names, the mean and the tasks first: what a small screen shows."""
    if not settings:
        return None
    tasks, free = tasks_of(settings), name == "unsupervised"
    counts = [Column("length", "length")] if free else [Column("sampled", "sampled"), Column("trained", "trained")]
    mean = len(tasks) > 1
    several = [len({getattr(s, field) for s in settings}) > 1 for field in ("model", "data")]
    shape = _Shape(tasks, counts, mean, *several)
    columns = (Column("model", "model", False), Column("data", "data", False), Column("method", "method", False),
               *([Column("mean", "mean")] if mean else []), *(Column(task, task) for task in tasks),
               Column("prefix_len", "t"), Column("ratio", "p"), Column("questions", "training questions"),
               Column("seeds", "seeds"), *counts)
    beside = {id(s): found for s in settings if (found := published(name, s)) is not None}
    everywhere = _everywhere([unlike(s, found) for s in settings if (found := beside.get(id(s))) is not None])
    rows: list[Row] = []
    for base in bases(settings):
        ours = [s for s in settings if s.asked == base.asked]
        rows.append(_base_row(base, shape))
        its = paper.line("unsupervised", base.model, None, "base")
        if its is not None and set(base.tasks) & set(its.accuracy):
            rows.append(_paper_row(its, shape, base.tasks))
        for data, method in dict.fromkeys((s.data, s.method) for s in ours):
            group = [s for s in ours if (s.data, s.method) == (data, method)]
            for s in group:
                otherwise = unlike(s, beside[id(s)]) if id(s) in beside else {}
                rows.append(_row(s, shape, [key for key in otherwise if key not in everywhere]))
            if (found := beside.get(id(group[0]))) is not None:
                rows.append(_paper_row(found, shape, group[0].tasks))
    return Table(name, title, columns, tuple(rows), READ + _note(settings, beside, everywhere, rows, free), folded=True)


@dataclass(frozen=True)
class _Shape:
    """What the rows of one table have in common. models, data: whether there are several."""

    tasks: Sequence[str]
    counts: Sequence[Column]
    mean: bool
    models: bool
    data: bool

    def aside(self, model: str, data: str | None, *more: str) -> str:
        """Of what columns a small screen does not show, that by which rows are told apart."""
        return ", ".join([*([model] if self.models else []), *([data] if self.data and data else []), *more])


def published(table: str, s: Setting) -> paper.Published | None:
    """The paper's line for that setting where they have a task in common."""
    found = paper.line(table, s.model, s.data, s.method)
    return found if found is not None and set(s.tasks) & set(found.accuracy) else None


def unlike(s: Setting, line: paper.Published) -> dict[str, Any]:
    """What a setting does otherwise than the paper (`paper.unlike`)."""
    training = s.first["training"]
    return paper.unlike(line, {
        "prefix_len": s.prefix_len, "ratio": None if s.prefix_len is None else s.ratio, "training_questions": s.questions,
        "epochs": training["epochs"], "lr": training["lr"], "adapters": s.adapters}, {
        task: {"questions": one.questions, "samples": one.samples, "temperature": one.asked.get("temperature"),
               "protocol": one.protocol} for task, one in s.tasks.items()})


def _everywhere(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all settings do otherwise, and alike: it is told once."""
    first = every[0] if every else {}
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in every)}


def _note(settings: Sequence[Setting], beside: Mapping[int, paper.Published], everywhere: Mapping[str, Any],
          rows: Sequence[Row], free: bool) -> str:
    counted = ("Length: mean trained response tokens a row. " if free
               else "Sampled and trained: response tokens, each trained row once, as the paper counts. ")
    several = ("With several seeds the interval covers other questions and other seeds. "
               if any(len(s.seeds) > 1 for s in settings) else "")
    if any(len(s.seeds) > len({seed for seed, _ in s.seeds}) for s in settings):
        several += "Where only the training's seed differs, samples and the base model's answers are the same. "
    source = _of_paper(settings, beside, everywhere) if any(row.kind == "paper" for row in rows) else ""
    return f"{counted}{several}{source}Asked: {'; '.join(_ways(settings))}."


def _ways(settings: Sequence[Setting]) -> list[str]:
    """How each task was asked, each way once, with what a judge accepted of all its answers."""
    ways: dict[tuple[str, str, bool], tuple[TaskFound, dict[str, int]]] = {}
    for s in settings:
        for task, found in s.tasks.items():
            way = ways.setdefault((task, how(replace(found, judged=None)), found.judged is None), (found, {}))
            way[1].update(found.judged or {})
    return [f"{task}: {how(replace(found, judged=None if unjudged else judged))}"
            for (task, _, unjudged), (found, judged) in ways.items()]


def _of_paper(settings: Sequence[Setting], beside: Mapping[int, paper.Published], everywhere: Mapping[str, Any]) -> str:
    """What the published rows are, and what ours do otherwise."""
    said = [f"Rows marked “as published” are the paper's own ({paper.told()['source']}; its protocol, one greedy answer, of "
            "all questions of a task)."]
    if everywhere:
        said.append(f"Ours beside them differ: {'; '.join(_otherwise(name, value) for name, value in everywhere.items())}.")
    if any(set(unlike(s, beside[id(s)])) - set(everywhere) for s in settings if id(s) in beside):
        said.append("What else a row does otherwise stands under its name.")
    if any(one["base"]["judge_accepted"] is None for s in settings if id(s) in beside for one in s.first["tasks"].values()):
        said.append("In the paper an answer also counts where a judge accepts it; ours were read by the rule alone.")
    return " ".join(said) + " "


def _otherwise(name: str, value: Mapping[str, Any]) -> str:
    """One difference from the paper in words."""
    if name == "questions":
        return ", ".join(f"{w.count(one['ours'])} of {w.count(one['paper'])} questions of {task}"
                         for task, one in value.items())
    if name == "protocol":
        return f"{', '.join(value)} asked otherwise (see below)"
    if name == "adapters":
        return "adapters, the paper trains all weights"
    text = "{:g}".format if name in ("ratio", "lr") else w.count
    return f"{paper.LABELS[name]} {text(value['ours'])}, the paper's {text(value['paper'])}"


def how(found: TaskFound) -> str:
    """The protocol, the questions, and how they were answered."""
    return f"{w.count(found.questions)} questions, " + w.way(
        found.protocol, found.asked, found.samples, found.judge_accepted)


def _accuracy(found: TaskFound | None) -> Cell:
    return Cell(w.NONE) if found is None else estimate(found.accuracy, found.paired)


def _row(s: Setting, shape: _Shape, otherwise: Sequence[str]) -> Row:
    """otherwise: what it does unlike the paper and not all do."""
    counted = {"length": number(s.length, w.mean(s.length)),
               "sampled": number(s.cost["sampled"], w.short(s.cost["sampled"])),
               "trained": number(s.cost["trained"], w.short(s.cost["trained"]))}
    whole = s.prefix_len is None
    length = [] if whole else [_cut(s.prefix_len, s.ratio)]
    apart = f"unlike the paper: {', '.join(paper.LABELS[name] for name in otherwise)}" if otherwise else ""
    name = Cell(s.method, s.method, below="; ".join(part for part in (", ".join(s.knobs), apart) if part),
                aside=shape.aside(s.model, s.data, *length),
                data={"": s.method, "knobs": "; ".join(s.knobs), "unlike_paper": "; ".join(otherwise)})
    return Row((word(s.model), word(s.data), name,
                *([_accuracy(s.mean if set(s.tasks) == set(shape.tasks) else None)] if shape.mean else []),
                *(_accuracy(s.tasks.get(task)) for task in shape.tasks),
                number(s.prefix_len, str(s.prefix_len)), number(None if whole else s.ratio, f"{s.ratio:g}"),
                number(s.questions, w.count(s.questions or 0)), number(len(s.seeds), str(len(s.seeds))),
                *(counted[column.key] for column in shape.counts)))


def _cut(length: int | None, ratio: float | None) -> str:
    """t and p, each on one line."""
    return f"t\u00a0=\u00a0{length}, p\u00a0=\u00a0{ratio:g}"


def _base_row(base: Base, shape: _Shape) -> Row:
    found = {task: estimate(one.accuracy) for task, one in base.tasks.items()}
    overall = estimate(base.mean) if base.mean is not None and set(base.tasks) == set(shape.tasks) else Cell(w.NONE)
    name = Cell("base", "base", below=", ".join(base.knobs), aside=shape.aside(base.model, None),
                data={"": "base", "knobs": "; ".join(base.knobs)})
    return Row((word(base.model), EMPTY, name, *([overall] if shape.mean else []),
                *(found.get(task, Cell(w.NONE)) for task in shape.tasks),
                EMPTY, EMPTY, EMPTY, EMPTY, *(EMPTY for _ in shape.counts)), "base")


def _paper_row(one: paper.Published, shape: _Shape, asked: Mapping[str, TaskFound]) -> Row:
    """asked: ours beside it, by task."""
    counted = {"length": (one.length, w.mean(one.length)), "sampled": (one.sampled, w.short(one.sampled)),
               "trained": (one.trained, w.short(one.trained))}

    def accuracy(task: str) -> Cell:
        if task not in one.accuracy:
            return Cell(w.NONE)
        there = paper.told()["questions"][task]
        other = task in asked and asked[task].questions != there
        return replace(number(one.accuracy[task], w.points(one.accuracy[task])),
                       below=f"{w.count(there)} questions" if other else "")

    def known(value: float | None, shown: str) -> Cell:
        return EMPTY if value is None else number(value, shown)

    every = set(shape.tasks) == set(one.accuracy)
    length = [] if one.prefix_len is None else [_cut(one.prefix_len, one.ratio)]
    return Row((word(one.model), word(one.data) if one.data else EMPTY,
                Cell(f"{one.method}, as published", one.method, aside=shape.aside(one.model, one.data, *length),
                     data={"": one.method}),
                *([number(one.mean, w.points(one.mean)) if every else Cell(w.NONE)] if shape.mean else []),
                *(accuracy(task) for task in shape.tasks), known(one.prefix_len, str(one.prefix_len)),
                known(one.ratio, f"{one.ratio or 0:g}"), known(one.questions, w.count(one.questions or 0)), EMPTY,
                *(known(*counted[column.key]) for column in shape.counts)), "paper")


LABELS = {
    "sampled": "sampled", "sampled_with_prompts": "sampled, with prompts", "trained": "trained",
    "trained_with_prompts": "trained, with prompts", "flops": "FLOPs", "sampling_seconds": "time to sample",
    "training_seconds": "time to train", "gpu_hours": "GPU-hours", "peak_memory_bytes": "peak memory",
    "peak_device_bytes": "peak GPU memory",
}


def _shown(name: str, value: float) -> str:
    if name == "flops":
        return w.flops(value)
    if name in ("sampling_seconds", "training_seconds"):
        return w.seconds(value)
    if name == "gpu_hours":
        return w.digits(value)
    return w.memory(value) if name.startswith("peak") else w.short(value)


def _spent(value: float | None, shown: Callable[[float], str], estimate: bool) -> Cell:
    """A cost; the CSV says of those that may be estimated whether it is."""
    return Cell(w.NONE) if value is None else Cell(w.about(shown(value), estimate), value, data={
        "": value, **({"estimated": "yes"} if estimate else {})})


def _cost(settings: Sequence[Setting]) -> Table:
    there = [name for name in LABELS if any(s.cost[name] is not None for s in settings)]
    rows = tuple(Row((word(s.model), word(s.data), Cell(s.name, s.name, data={"": s.name}), *(
        _spent(s.cost[name], partial(_shown, name), name in estimated(s)) for name in there))) for s in settings)
    guessed = any(estimated(s) for s in settings)
    unknown = any(s.cost["sampling_seconds"] is None for s in settings)
    return Table("cost", "What each took", (*(Column(name, name, False) for name in ("model", "data", "setting")), *(
        Column(name, LABELS[name]) for name in there)), rows, (
        "Sampled and trained: response tokens, as the paper counts; with prompts: what the machine read, in all epochs. "
        "Sampled is what the method would have sampled alone. FLOPs by formula, of sampling and training. Time to train: "
        "grading, building and training. "
        + ("GPU-hours: of sampling and of all that the time to train covers. " if "gpu_hours" in there else "")
        + ("≈: the sampling drew more tokens than the method needs (several methods share it), or fewer; its seconds and "
           "GPU-hours are counted in proportion to the tokens needed. " if guessed else "")
        + ("A dash: the samples were taken over from other samplings, so what they took is not known. " if unknown else "")
        + "Seconds are those of the machine under whatever load it had. Peak memory: of the stages as they ran, a shared "
        "sampling in full. Means over seeds."
        + "".join(_several(settings, method) for method in AGAINST if _shares(settings, method) is None)))


def _shares(settings: Sequence[Setting], method: str) -> Table | None:
    """Costs as a share of a method's; without settings that are that method's or cost the same throughout."""
    rows, there = [], []
    for s in settings:
        mine, guessed = shares(s, settings).get(method, {}), estimated(s)
        if all(w.share(value) == w.share(1) for value in mine.values()):
            continue
        other = rivals(s, settings)[method]
        rows.append((s, mine, guessed | estimated(other)))
        there += list(mine)
    names = [name for name in LABELS if name in there]
    if not rows:
        return None
    return Table(f"ratios-{method.lower()}", f"As a share of {method}'s", (
        *(Column(name, name, False) for name in ("model", "data", "setting")),
        *(Column(f"{name}_of_{method.lower()}", LABELS[name]) for name in names)),
        tuple(Row((word(s.model), word(s.data), Cell(s.name, s.name, data={"": s.name}), *(
            _spent(mine.get(name), w.share, name in guessed) for name in names))) for s, mine, guessed in rows),
        ("≈: from an estimate. " if any(guessed & set(mine) for _, mine, guessed in rows) else "")
        + f"Same model and data, over the seeds that both have. A setting that costs what {method} does has no row."
        + _several(settings, method))


def _several(settings: Sequence[Setting], method: str) -> str:
    """Where a method's costs are nothing to compare with, since it is there in several ways."""
    where = dict.fromkeys((s.model, s.data) for s in settings if s.method != method)
    found = [f"{model} on {data}" for model, data in where if ambiguous(model, data, method, settings)]
    if not found:
        return ""
    return f" {method} was trained with several settings ({'; '.join(found)}), so no share of its cost is given."


def _cells(settings: Sequence[Setting], cases: Sequence[Case]) -> Table:
    names = {case.key: setting.name for setting in settings for case in setting.cases}
    rows = []
    for case in cases:
        r, p = case.results, case.provenance
        rows.append(Row((word(r["model"]), word(r["data"]), word(names[case.key]), number(r["seed"], w.seeds(*case.seeds)),
                         word(case.key), word(w.commit(p.get("git"))), word(w.time(p.get("finished"))),
                         word(str(p.get("host", w.NONE))))))
    return Table("cells", "The cells", (Column("model", "model", False), Column("data", "data", False),
                 Column("cell", "cell", False), Column("seed", "seed"), Column("report", "report", False),
                 Column("commit", "commit", False), Column("finished", "finished, UTC", False), Column("host", "host", False)),
                 tuple(rows))
