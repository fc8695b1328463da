"""plan=true where the prefix length is not known yet: bounds by the longest it may be, then what the store knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft import datasets, prefix, preview
from upft.hashing import Hasher
from upft.plan import Plan, Stage, plan
from upft.specs import SampleSpec
from upft.store import Store


@pytest.fixture
def auto(parse: Callable, tmp_path: Path) -> tuple[Plan, Store]:
    """A cell with prefix.len=auto and an empty store."""
    config = parse("prefix.len=auto", "diagnose.longest=12", "diagnose.questions=20", "diagnose.n=3", "prefix.ratio=0.25",
                   "data.arithmetic.questions=60", "train.batch_size=60", "train.epochs=1", "sample.trace_max_tokens=100",
                   "sample.engine=transformers", "eval.engine=transformers")
    store = Store(tmp_path / "store")
    store.prepare()
    return plan(config, Hasher()), store


def put(store: Store, stage: Stage, files: dict[str, str]) -> None:
    """Make a stage's artifact by hand."""

    def write(out: Path) -> None:
        for name, text in files.items():
            (out / name).write_text(text)

    store.build(stage.name, stage.key, stage.identity, write)


def prefix_row(cell: Plan, store: Store) -> tuple[str, list[int]]:
    """(supervised text, supervised ids) of the prefix row that would be shown."""
    row: dict[str, Any] = next(row for row in preview.rows(cell, store) if row["kind"] == "prefix")
    return ("".join(text for text, supervised in row["segments"] if supervised),
            [label for label in row["labels"] if label != prefix.UNSUPERVISED])


def test_costs_are_bounded_by_the_longest_prefix_it_may_be(auto: tuple[Plan, Store]) -> None:
    cell, _ = auto
    pilot, main = cell.named("sample")
    assert isinstance(main.spec, SampleSpec)
    whole = [prefix.carries_trace(q.id, 0.25) for q in datasets.load(main.spec.questions).rows]
    assert 0 < sum(whole) < 60
    estimate = preview.estimate(main, cell)
    assert estimate.new_tokens == (60 - sum(whole)) * 12 + sum(whole) * 100
    assert f"{60 - sum(whole)} prefixes of t=auto, " in estimate.what
    assert preview.estimate(pilot, cell).new_tokens == 3 * (12 * (20 - sum(whole[:20])) + 100 * sum(whole[:20]))
    train = preview.estimate(cell.named("train")[0], cell)
    assert train.new_tokens == (60 - sum(whole)) * (12 + 1) + sum(whole) * 100, "the questions of the main sampling, with EOS"


def test_rows_show_what_is_known_of_the_length(auto: tuple[Plan, Store]) -> None:
    cell, store = auto
    main, build = preview.sampling(cell), cell.named("build")[0]
    assert build.inputs["diagnosis"] is not main
    text, ids = prefix_row(cell, store)
    assert text.startswith("‹t=auto (<= 12) sampled tokens›<")
    eos = ids[-1]
    assert ids == [preview.GAP] * 12 + [eos]
    put(store, cell.named("diagnose")[0], {"diagnosis.json": json.dumps({"suggested": 5, "reason": "by hand"})})
    text, ids = prefix_row(cell, store)
    assert text.startswith("‹5 sampled tokens›<")
    assert ids == [preview.GAP] * 5 + [eos]
    assert isinstance(main.spec, SampleSpec)
    questions = datasets.load(main.spec.questions).rows
    put(store, main, {
        "samples.json": json.dumps({"stop_ids": [eos]}),
        "questions.jsonl": "".join(json.dumps({"id": q.id, "text": q.text, "answer": q.answer, "prompt_ids": [1, 2]}) + "\n"
                                   for q in questions),
        "samples.jsonl": "".join(json.dumps({"id": q.id, "index": 0, "kind": "prefix", "ids": list(range(40, 52)),
                                             "finish_reason": "stop"}) + "\n" for q in questions)})
    assert prefix_row(cell, store)[1] == [40, 41, 42, 43, 44, eos]


def test_methods_are_bounded_and_shown_before_anything_is_sampled(parse: Callable, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    common = ("data.arithmetic.questions=20", "sample.trace_max_tokens=100", "train.batch_size=8", "method.n=4", "method.cap=2",
              "sample.engine=transformers", "eval.engine=transformers")
    cell = plan(parse("method=vstar", *common), Hasher())
    estimates = {stage.label: preview.estimate(stage, cell) for stage in cell.stages}
    assert estimates["sample arithmetic"].what == "20 whole traces, n=4"
    assert estimates["sample arithmetic"].new_tokens == 20 * 4 * 100
    assert estimates["train rft"].what == "at most 40 rows, 5 steps"
    assert estimates["train rft"].new_tokens == 40 * 100
    assert estimates["train verifier"].what == "as many pairs as the traces give"
    [row] = preview.rows(cell, store)
    assert row["kind"] == "trace"
    assert row["segments"][-1] == ["‹up to 100 sampled tokens of a right trace, with the stop token›", True]
