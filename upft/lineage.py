"""What a stage comes from: model, data, method and prefix, read off the stages upstream; names to know them by.

Floor 4, for trackers: what a stage's run is called there, its tags and configuration, and the model and question sets at the
start of the graph. Nothing here enters a key, and no stage needs it. Knows no W&B (`upft.wandb_run` does).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from upft.choices import MethodName
from upft.config import Config
from upft.hashing import canonical, digest
from upft.plan import Plan, Stage
from upft.specs import (
    BranchSpec,
    BuildSpec,
    ContentRef,
    EvaluateSpec,
    Generated,
    HubRef,
    JudgeSpec,
    KlSpec,
    ReferenceSpec,
    ReportSpec,
    SampleSpec,
    TrainSpec,
    VerifySpec,
)
from upft.store import Store
from upft.wandb_run import Bundle, Card

FOLDER = ".mirror"
"""Beside the artifacts in the store: what only trackers need."""
NAME = 128
"""Most characters of the name of a run or an artifact that W&B takes."""
Source = ContentRef | HubRef | Generated


@dataclass(frozen=True)
class Lineage:
    """What is upstream of a stage, itself included, as far as it is known there. Several cells may share the stage, so this is
    what all of them have in common. prefix_len: null where the rows are whole traces; training: the nearest one's settings."""

    model: str | None = None
    model_id: str | None = None
    data: str | None = None
    method: MethodName | None = None
    label_filter: bool = False
    prefix_len: int | str | None = None
    ratio: float = 1.0
    seed: int | None = None
    training: TrainSpec | None = None

    @property
    def tags(self) -> list[str]:
        """Names to find it by, as a cell has them."""
        method = None if self.method is None else self.method.name
        return [tag for tag in (self.model, self.model_id, self.data, method) if tag is not None]

    @property
    def title(self) -> str:
        """Model, data and what is usually swept."""
        what = " on ".join(name for name in (self.model, self.data) if name is not None)
        told = [what, "label filter" if self.label_filter else "",
                f"t={self.prefix_len} p={self.ratio:g}" if self.prefix_len is not None else "",
                "" if self.seed is None else f"seed={self.seed}"]
        if self.training is not None:
            told += [f"train.seed={self.training.seed}" if self.training.seed != self.seed else "", f"lr={self.training.lr:g}"]
        return " ".join(part for part in told if part)

    @property
    def settings(self) -> dict[str, Any]:
        """By the names that they have in a cell's configuration, so that the same filters find both."""
        found: dict[str, Any] = {}
        if self.data is not None:
            found["data"] = {"name": self.data}
        if self.method is not None:
            found["method"] = {"name": self.method.name, "label_filter": self.label_filter}
        if self.prefix_len is not None:
            found["prefix"] = {"len": self.prefix_len, "ratio": self.ratio}
        if self.training is not None:
            found["train"] = {name: value for name, value in canonical(self.training).items() if name not in ("type", "model")}
        return found


def remember(store: Store, config: Config, cell: Plan) -> None:
    """Keep what the cell calls its model and its questions, which no stage knows. What was called something first keeps that
    name in this store: a run that is continued must not change its own."""
    samples = cell.report.inputs["samples"].spec
    assert isinstance(samples, SampleSpec)
    names: list[tuple[Source, str]] = [(samples.model.source, config.model.name), (samples.questions.source, config.data.name)]
    names += [(one.spec.questions.source, one.spec.task) for one in cell.stages if isinstance(one.spec, EvaluateSpec)]
    folder = store.root / FOLDER / "names"
    folder.mkdir(parents=True, exist_ok=True)
    for source, name in names:
        with suppress(FileExistsError), (folder / _identity(source)).open("x", encoding="utf-8") as stream:
            stream.write(name)


def of(stage: Stage, store: Store) -> Lineage:
    """What is upstream of a stage. A prefix length that a diagnosis found is known when the rows are there."""
    train = _nearest(stage, "train")
    rows = _nearest(stage, "build") if train is None else train.inputs["rows"]
    samples = _nearest(train or rows or stage, "sample")
    source = next((one.spec.model.source for one in _upstream(samples or stage)
                   if not isinstance(one.spec, (JudgeSpec, ReportSpec)) and hasattr(one.spec, "model")), None)
    method: MethodName | None
    prefix_len: int | str | None
    method, label_filter, prefix_len, ratio = None, False, None, 1.0
    if rows is not None and isinstance(rows.spec, BuildSpec):
        method = rows.spec.method
        if method is MethodName.upft:
            label_filter, ratio = rows.spec.right, rows.spec.ratio
            prefix_len = rows.spec.prefix_len if rows.spec.prefix_len is not None else _found_length(rows, store)
    elif train is not None:  # its rows are pairs: a verifier
        method = MethodName.vstar
    data = samples.spec if samples is not None else None
    assert data is None or isinstance(data, SampleSpec)
    training = None if train is None else train.spec
    assert training is None or isinstance(training, TrainSpec)
    return Lineage(
        None if source is None else name(source, store), source.id if isinstance(source, HubRef) else None,
        None if data is None else name(data.questions.source, store), method, label_filter, prefix_len, ratio,
        None if data is None else data.sampling.seed, training)


def card(stage: Stage, store: Store, inputs: Mapping[str, str]) -> Card:
    """How a stage's run is shown, live and when it is told: name, job type, tags, configuration. inputs: see `mirror.story`."""
    found, spec = of(stage, store), canonical(stage.spec)
    about = found.title if found.training is not None else ""
    told = f"{stage.label}, {about}" if about else stage.label
    model = {"model": {**spec["model"], "name": found.model}} if "model" in spec and found.model is not None else {}
    task = [stage.spec.task] if isinstance(stage.spec, EvaluateSpec) else []
    return Card(stage.key, f"{told[:NAME - 9]} {stage.key[:8]}", stage.name,
                {**spec, **model, **found.settings, "inputs": dict(inputs)}, [*found.tags, *task])


def origins(stage: Stage, store: Store) -> list[Bundle]:
    """The published or local model whose weights a stage reads, and the question set, as artifacts: known by content, by a
    reference alone. A trained model comes with the training upstream, unless that is an adapter on the base model's weights (a
    training goes on from the adapter, also of a merged one)."""
    spec, found = stage.spec, []
    if isinstance(spec, (SampleSpec, EvaluateSpec, BranchSpec, TrainSpec, VerifySpec)):
        before = stage.inputs.get("verifier" if isinstance(spec, VerifySpec) else "model")
        adapter = None if before is None else getattr(before.spec, "lora", None)
        if before is None or (adapter is not None and (not adapter.merge or isinstance(spec, TrainSpec))):
            found.append(_bundle("model", spec.model.source, store))
    elif isinstance(spec, (KlSpec, ReferenceSpec, JudgeSpec)):
        found.append(_bundle("model", spec.model.source, store))
    if isinstance(spec, (SampleSpec, EvaluateSpec)):
        found.append(_bundle("data", spec.questions.source, store))
    return found


def name(source: Source, store: Store) -> str:
    """What a cell has called it, else its id on the hub or its file's name."""
    with suppress(OSError):
        return (store.root / FOLDER / "names" / _identity(source)).read_text(encoding="utf-8")
    if isinstance(source, HubRef):
        return source.id
    return "arithmetic" if isinstance(source, Generated) else re.split(r"[/\\]", source.path)[-1]


def _bundle(kind: str, source: Source, store: Store) -> Bundle:
    """An artifact of no file. kind: model or data. The name says which content, so that all stores of a project mean one."""
    about: dict[str, Any] = {**canonical(source), "label": name(source, store)}
    entry = "weights" if kind == "model" else "questions"
    if isinstance(source, HubRef):
        place = f"{source.id}@{source.revision}" + (f"/{source.file}" if source.file is not None else "")
        called = f"{source.id}-{source.file}" if source.file is not None else source.id
        called, uri = f"{called[:80]}-{source.revision[:20]}", f"hf://{place}" if kind == "model" else f"hf://datasets/{place}"
    elif isinstance(source, ContentRef):
        about["path"] = source.path
        called, uri = source.sha256[:20], f"sha256:{source.sha256}"
    else:
        settings = {key: value for key, value in canonical(source).items() if key != "type"}
        called, uri = f"arithmetic-{_identity(source)}", f"arithmetic:?{urlencode(settings)}"
    plain = re.sub(r"[^\w.-]+", ".", f"{kind}-{called}", flags=re.ASCII)
    return Bundle(plain, "model" if kind == "model" else "dataset", about, {}, {entry: uri})


def _identity(source: Source) -> str:
    return digest(canonical(source))[:20]


def _nearest(stage: Stage, named: str) -> Stage | None:
    return next((one for one in _upstream(stage) if one.name == named), None)


def _upstream(stage: Stage) -> Iterator[Stage]:
    """The stage itself, then those it needs, the nearest first."""
    waiting, seen = deque([stage]), set()
    while waiting:
        one = waiting.popleft()
        if one.key not in seen:
            seen.add(one.key)
            yield one
            waiting += [upstream for _, upstream in sorted(one.inputs.items(), key=lambda item: item[0] != "rows")]


def _found_length(rows: Stage, store: Store) -> int | str:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads((store.path(rows.name, rows.key) / "rows.json").read_text(encoding="utf-8"))["prefix_len"])
    return "auto"
