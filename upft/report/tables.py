"""Settings -> the tables of a report on many cells: the paper's two, cost, shares of cost, where each cell is from.

Chooses columns and rows; what a table looks like is another room's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from upft.report import paper
from upft.report import wording as w
from upft.report.costs import AGAINST, estimated, rivals, shares
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
             _cost(settings), *(_shares(settings, method) for method in AGAINST), _cells(cases)]
    return [table for table in found if table is not None]


def tasks_of(settings: Sequence[Setting]) -> list[str]:
    """Every task any of them was asked, in order."""
    return list(dict.fromkeys(task for s in settings for task in s.tasks))


def _accuracies(name: str, title: str, settings: Sequence[Setting]) -> Table | None:
    if not settings:
        return None
    tasks, free = tasks_of(settings), name == "unsupervised"
    counts = [Column("length", "length")] if free else [Column("sampled", "sampled"), Column("trained", "trained")]
    mean = len(tasks) > 1
    columns = (Column("model", "model", False), Column("data", "data", False), Column("method", "method", False),
               Column("prefix_len", "t"), Column("ratio", "p"), Column("seeds", "seeds"), *counts,
               *(Column(task, task) for task in tasks), *([Column("mean", "mean")] if mean else []))
    rows: list[Row] = []
    for model in dict.fromkeys(s.model for s in settings):
        ours = [s for s in settings if s.model == model]
        rows += [_base_row(base, tasks, counts, mean) for base in bases(ours)]
        if (published := paper.line("unsupervised", model, None, "base")) is not None and set(tasks) & set(published.accuracy):
            rows.append(_paper_row(published, tasks, counts, mean))
        for data, method in dict.fromkeys((s.data, s.method) for s in ours):
            rows += [_row(s, tasks, counts, mean) for s in ours if (s.data, s.method) == (data, method)]
            published = paper.line(name, model, data, method)
            if published is not None and set(tasks) & set(published.accuracy):
                rows.append(_paper_row(published, tasks, counts, mean))
    return Table(name, title, columns, tuple(rows), READ + _note(settings, rows, free))


def _note(settings: Sequence[Setting], rows: Sequence[Row], free: bool) -> str:
    counted = ("Length: mean trained response tokens a row. " if free
               else "Sampled and trained: response tokens, each trained row once, as the paper counts. ")
    asked = dict.fromkeys(f"{task}: {how(found)}" for s in settings for task, found in s.tasks.items())
    several = ("With several seeds the interval covers other questions and other seeds. "
               if any(len(s.seeds) > 1 for s in settings) else "")
    if any(len(s.seeds) > len({seed for seed, _ in s.seeds}) for s in settings):
        several += "Where only the training's seed differs, samples and the base model's answers are the same. "
    source = (f"Rows marked “as published” are the paper's own ({paper.told()['source']}; its protocol, one greedy answer). "
              if any(row.kind == "paper" for row in rows) else "")
    if source and any(found.protocol != paper.told()["protocol"] for s in settings for found in s.tasks.values()):
        source += "Ours were not all asked by the paper's protocol, so the two do not measure the same. "
    return f"{counted}{several}{source}Asked: {'; '.join(asked)}."


def how(found: TaskFound) -> str:
    """The protocol, the questions, and how they were answered."""
    return f"{w.count(found.questions)} questions, " + w.asked(
        {"asked": found.asked, "samples": found.samples, "protocol": found.protocol})


def _accuracy(found: TaskFound | None) -> Cell:
    return Cell(w.NONE) if found is None else estimate(found.accuracy, found.paired)


def _row(s: Setting, tasks: Sequence[str], counts: Sequence[Column], mean: bool) -> Row:
    counted = {"length": number(s.length, w.mean(s.length)),
               "sampled": number(s.cost["sampled"], w.short(s.cost["sampled"])),
               "trained": number(s.cost["trained"], w.short(s.cost["trained"]))}
    whole = s.prefix_len is None
    return Row((word(s.model), word(s.data), _method(s), number(s.prefix_len, str(s.prefix_len)),
                number(None if whole else s.ratio, f"{s.ratio:g}"), number(len(s.seeds), str(len(s.seeds))),
                *(counted[column.key] for column in counts), *(_accuracy(s.tasks.get(task)) for task in tasks),
                *([_accuracy(s.mean if set(s.tasks) == set(tasks) else None)] if mean else [])))


def _method(s: Setting) -> Cell:
    return Cell(s.method, s.method, below=", ".join(s.knobs), data={"": s.method, "knobs": "; ".join(s.knobs)})


def _base_row(base: Base, tasks: Sequence[str], counts: Sequence[Column], mean: bool) -> Row:
    found = {task: estimate(one.accuracy) for task, one in base.tasks.items()}
    overall = estimate(base.mean) if base.mean is not None and set(base.tasks) == set(tasks) else Cell(w.NONE)
    return Row((word(base.model), EMPTY, word("base"), EMPTY, EMPTY, EMPTY, *(EMPTY for _ in counts),
                *(found.get(task, Cell(w.NONE)) for task in tasks), *([overall] if mean else [])), "base")


def _paper_row(one: paper.Published, tasks: Sequence[str], counts: Sequence[Column], mean: bool) -> Row:
    counted = {"length": (one.length, w.mean(one.length)), "sampled": (one.sampled, w.short(one.sampled)),
               "trained": (one.trained, w.short(one.trained))}
    shares_ = [number(value, w.points(value)) if (value := one.accuracy.get(task)) is not None else Cell(w.NONE)
               for task in tasks]
    every = set(tasks) == set(one.accuracy)
    return Row((word(one.model), word(one.data) if one.data else EMPTY,
                Cell(f"{one.method}, as published", one.method, data={"": one.method}), EMPTY, EMPTY, EMPTY,
                *(number(*counted[column.key]) if counted[column.key][0] is not None else EMPTY for column in counts), *shares_,
                *([number(one.mean, w.points(one.mean)) if every else Cell(w.NONE)] if mean else [])), "paper")


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
        "sampling in full. Means over seeds."))


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
        + f"Same model and data, over the seeds that both have. A setting that costs what {method} does has no row.")


def _cells(cases: Sequence[Case]) -> Table:
    rows = []
    for case in cases:
        r, p = case.results, case.provenance
        name = r["method"] if r["prefix_len"] is None else f"{r['method']}, t = {r['prefix_len']}, p = {r['ratio']:g}"
        rows.append(Row((word(r["model"]), word(r["data"]), word(name), number(r["seed"], w.seeds(*case.seeds)), word(case.key),
                         word(w.commit(p.get("git"))), word(w.time(p.get("finished"))), word(str(p.get("host", w.NONE))))))
    return Table("cells", "The cells", (Column("model", "model", False), Column("data", "data", False),
                 Column("cell", "cell", False), Column("seed", "seed"), Column("report", "report", False),
                 Column("commit", "commit", False), Column("finished", "finished, UTC", False), Column("host", "host", False)),
                 tuple(rows))
