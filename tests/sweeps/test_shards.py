"""What several jobs draw or compare, each a share of it, is what a single job makes, and nothing is made twice."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import upft.sampler
from upft import shards
from upft.console import Console
from upft.errors import ConfigError, StoreError
from upft.ledger import Ledger
from upft.pipeline import alone, walk
from upft.plan import Plan, Stage, plan
from upft.sample_log import SampleLog
from upft.shards import Shard, Share
from upft.store import RESUME, Store
from upft.submission import Cell, arrange

SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=30", "sample.n=2",
         "sample.logprobs=true", "prefix.ratio=0.2", "eval.tasks.arithmetic.arithmetic.questions=12", "eval.n=2",
         "eval.temperature=1.0", "train.batch_size=16", "compute.threads=1", "compute.accelerator=cpu"]
KL = ["analysis=kl", "analysis.kl.questions=7", "analysis.kl.n=2"]
QUIET = Console(quiet=True)


class Counted:
    """Opens engines and counts what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self._open = upft.sampler.open_engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine, asked = self._open(*args, **kwargs), self.asked

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(engine, name)

            def generate(self, requests: Iterable[Any], sampling: Any) -> Iterator[Any]:
                def seen() -> Iterator[Any]:
                    for request in requests:
                        asked.append((tuple(request.prompt_ids), request.seed))
                        yield request
                return engine.generate(seen(), sampling)
        return Watched()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted()
    monkeypatch.setattr("upft.sampler.open_engine", found)
    return found


@pytest.fixture(scope="module")
def config(parse: Callable[..., Any]) -> Any:
    return parse(*SMALL, *KL)


@pytest.fixture(scope="module")
def bare(parse: Callable[..., Any]) -> Plan:
    """A cell that asks nothing beside."""
    return plan(parse(*SMALL))


@pytest.fixture(scope="module")
def whole(config: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """A cell run in one piece."""
    cell, store = plan(config), Store(tmp_path_factory.mktemp("whole"))
    store.prepare()
    walk(cell, store, config.compute, config.tracker, QUIET)
    return cell, store


@pytest.fixture
def upstream(whole: tuple[Plan, Store], tmp_path: Path) -> Callable[[Stage], Store]:
    """upstream(stage) -> a store that holds what the stage needs, and nothing else."""
    def make(stage: Stage) -> Store:
        store = Store(tmp_path / "store")
        store.prepare()
        for one in stage.inputs.values():
            shutil.copytree(whole[1].path(one.name, one.key), store.path(one.name, one.key))
        return store
    return make


def files(store: Store, stage: Stage, *but: str) -> dict[str, str]:
    """All of an artifact but for the clocks, and for log-probabilities."""
    left_out = {"ledger.json", "provenance.json", "manifest.json", *but}
    found = {f.name: f.read_text() for f in store.path(stage.name, stage.key).iterdir() if f.name not in left_out}
    return {name: re.sub(r'"logprobs":\[[^]]*\]', "", text) for name, text in found.items()}


def logprobs(store: Store, stage: Stage) -> list[float]:
    rows = map(json.loads, (store.path(stage.name, stage.key) / "samples.jsonl").open())
    return [one for row in rows for one in row["logprobs"]]


def counts(ledger: Ledger) -> Ledger:
    return replace(ledger, seconds=0, device_seconds=0, peak_memory_bytes=0, peak_device_bytes=0)


def stages(cell: Plan) -> list[Stage]:
    """One of each kind that is drawn in parts: a sampling, an evaluation of the base, one of the trained model."""
    return [cell.named("sample")[0], *cell.named("evaluate")]


@pytest.mark.slow
@pytest.mark.parametrize("which", range(3), ids=["sampling", "base", "trained"])
def test_the_parts_make_the_whole(whole: Any, upstream: Any, config: Any, counted: Counted, which: int) -> None:
    cell, one_piece = whole
    stage = stages(cell)[which]
    store = upstream(stage)
    parts = shards.of(stage, 3)
    artifacts = [alone(part, store, config.compute, config.tracker, QUIET) for part in parts]
    drawn = list(counted.asked)
    assert len(set(drawn)) == len(drawn), "drawn twice"
    paid = [Ledger.read(artifact.path) for artifact in artifacts]
    assert all(one.sampled_tokens > 0 for one in paid)
    alone(stage, store, config.compute, config.tracker, QUIET)
    assert counted.asked == drawn, "the stage itself drew something"
    assert files(store, stage) == files(one_piece, stage)
    if stage.name == "sample":  # a batch is summed in another order than its parts
        assert logprobs(store, stage) == pytest.approx(logprobs(one_piece, stage), abs=2e-5)
    uncut, put_together = (Ledger.read(s.path(stage.name, stage.key)) for s in (one_piece, store))
    assert counts(put_together) == counts(uncut)
    assert sum(one.sampled_tokens for one in paid) == uncut.sampled_tokens
    assert put_together.seconds > sum(one.seconds for one in paid), "what the shards took is the stage's"
    assert not list((store.root / shards.ROOM).iterdir()), "taken up, and gone"


@pytest.mark.slow
def test_a_comparison_in_parts_is_the_whole_one(whole: Any, upstream: Any, config: Any,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven questions in three shares; the stage itself then opens no model."""
    cell, one_piece = whole
    [stage] = cell.named("kl")
    store = upstream(stage)
    parts = shards.of(stage, 3)
    artifacts = [alone(part, store, config.compute, config.tracker, QUIET) for part in parts]
    compared = [[json.loads(line.partition(" ")[2]) for line in (one.path / "finished.jsonl").read_text().splitlines()]
                for one in artifacts]
    assert [len({line["question"] for line in lot}) for lot in compared] == [3, 2, 2]
    paid = [Ledger.read(artifact.path) for artifact in artifacts]
    monkeypatch.setattr("upft.stages.kl._opened", None)
    alone(stage, store, config.compute, config.tracker, QUIET)
    ours, theirs = (s.path(stage.name, stage.key) for s in (store, one_piece))
    for name in ("divergences.jsonl", "kl.json"):
        told, wanted = ([json.loads(line) for line in (folder / name).read_text().splitlines()] if name.endswith("l")
                        else json.loads((folder / name).read_text()) for folder in (ours, theirs))
        same(told, wanted)
    uncut, put_together = Ledger.read(theirs), Ledger.read(ours)
    assert put_together.scored_tokens == uncut.scored_tokens == sum(one.scored_tokens for one in paid)
    assert put_together.flops == pytest.approx(uncut.flops)
    assert put_together.seconds > sum(one.seconds for one in paid)
    assert not list((store.root / shards.ROOM).iterdir())


def same(told: Any, wanted: Any) -> None:
    """Rows padded to another length differ in the last bits of fp32; of nearly equal distributions that is more."""
    if isinstance(wanted, dict):
        assert told.keys() == wanted.keys()
        for key in wanted:
            same(told[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(told) == len(wanted)
        for one, other in zip(told, wanted, strict=True):
            same(one, other)
    else:
        assert told == (wanted if wanted is None or isinstance(wanted, str) else pytest.approx(wanted, rel=1e-3, abs=1e-7))


@pytest.mark.slow
def test_what_a_shard_has_drawn_is_used_however_it_goes_on(whole: Any, upstream: Any, config: Any, counted: Counted) -> None:
    """Cut otherwise, in one piece after all, over a damaged shard or a dead one: no request is drawn again."""
    cell, one_piece = whole
    stage = stages(cell)[0]
    store = upstream(stage)
    alone(shards.of(stage, 2)[0], store, config.compute, config.tracker, QUIET)
    half = len(counted.asked)
    assert half == 30, "15 questions, 2 traces each"
    for part in shards.of(stage, 3)[:2]:
        alone(part, store, config.compute, config.tracker, QUIET)
    assert len(counted.asked) == half + 20, "of 20 questions in two thirds, the half had drawn 10"
    dead = store.unfinished(shards.ROOM, shards.of(stage, 3)[2].key)
    with SampleLog(dead / RESUME):
        pass
    damaged = store.path(shards.ROOM, shards.of(stage, 3)[1].key) / "finished.jsonl"
    lost = len(damaged.read_text().splitlines())
    damaged.write_text(damaged.read_text()[:-1])
    before = len(counted.asked)
    walk(Plan((stage,)), store, config.compute, config.tracker, QUIET)
    again = set(counted.asked[:before]) & set(counted.asked[before:])
    assert len(again) == lost - 10 == 10, "what a damaged shard alone held"
    assert files(store, stage, "samples.json") == files(one_piece, stage, "samples.json")
    assert not list((store.root / shards.ROOM).iterdir())


@pytest.mark.slow
def test_more_shards_than_questions(parse: Any, tmp_path: Path) -> None:
    config = parse(*SMALL, "data.arithmetic.questions=2")
    stage, store = plan(config).named("sample")[0], Store(tmp_path)
    store.prepare()
    for part in shards.of(stage, 3):
        alone(part, store, config.compute, config.tracker, QUIET)
    artifact = alone(stage, store, config.compute, config.tracker, QUIET)
    assert artifact.json("samples.json")["questions"] == 2
    assert len((artifact.path / "samples.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_shard_that_comes_late_draws_nothing(whole: Any, config: Any, counted: Counted) -> None:
    cell, store = whole
    stage = stages(cell)[0]
    found = alone(shards.of(stage, 4)[1], store, config.compute, config.tracker, QUIET)
    assert (found.stage, found.key) == ("sample", stage.key)
    assert not counted.asked
    assert not (store.root / shards.ROOM).exists()


def test_a_shard_needs_what_its_stage_needs(whole: Any, config: Any, tmp_path: Path) -> None:
    trained = stages(whole[0])[2]
    store = Store(tmp_path)
    store.prepare()
    with pytest.raises(StoreError, match=r"needs train"):
        alone(shards.of(trained, 2)[0], store, config.compute, config.tracker, QUIET)


# --- what is cut, and who waits for whom

def test_shares_are_disjoint_and_whole() -> None:
    for count in (1, 2, 7):
        lots = [list(Share(number, count).of(iter(range(23)))) for number in range(1, count + 1)]
        assert sorted(i for lot in lots for i in lot) == list(range(23))
        assert max(map(len, lots)) - min(map(len, lots)) <= 1


def test_a_shards_key_is_read_back() -> None:
    assert shards.split("0a1b2c-3of12") == ("0a1b2c", Share(3, 12))
    assert shards.split("0a1b2c") == ("0a1b2c", None)


def test_a_stage_waits_for_its_shards_and_they_for_its_inputs(bare: Plan) -> None:
    sampling, base, trained = stages(bare)
    of = {"sample": 4, "evaluate": 2}
    work = arrange([Cell("one", bare)], there=set(), into=lambda stage: of.get(stage.name, 1))
    assert {key: len(parts) for key, parts in work.shards.items()} == {sampling.key: 4, base.key: 2, trained.key: 2}
    for stage in (sampling, base, trained):
        parts = work.shards[stage.key]
        assert work.after[stage.key] == tuple(part.key for part in parts)
        assert all(work.after[part.key] == tuple(one.key for one in stage.inputs.values()) for part in parts)
    train = bare.named("train")[0]
    assert train.key in work.after[work.shards[trained.key][0].key]
    arrays = {(group.name, group.gathers): len(group.jobs) for group in work.groups}
    assert arrays[("sample-shards", False)] == 4
    assert arrays[("sample", True)] == 1
    assert ("sample", False) not in arrays
    place = {job.key: i for i, group in enumerate(work.groups) for job in group.jobs}
    assert all(place[one] < place[key] for key in place for one in work.after[key])


def test_shards_that_are_there_under_way_or_failed(bare: Plan) -> None:
    sampling = stages(bare)[0]
    into = lambda stage: 3 if stage.name == "sample" else 1  # noqa: E731
    parts = [part.key for part in shards.of(sampling, 3)]
    cells = [Cell("one", bare)]
    some = arrange(cells, there={parts[0]}, into=into)
    assert {key for key in some.todo if "-" in key} == set(parts[1:])
    assert some.after[sampling.key] == tuple(parts[1:])
    going = arrange(cells, there={parts[0]}, under_way={*parts[1:], sampling.key}, into=into)
    assert not {sampling.key, *parts} & going.todo
    broken = arrange(cells, there={parts[0]}, refused={parts[1]}, into=into)
    assert broken.blocked[sampling.key] == parts[1]
    assert parts[2] in broken.todo, "a share that can be drawn is drawn"
    done = arrange(cells, there=set(parts), into=into)
    assert done.after[sampling.key] == ()
    [group] = [group for group in done.groups if group.stage == "sample"]
    assert (group.gathers, len(group.jobs)) == (True, 1), "all is drawn: no GPU"


def test_a_sampling_that_another_one_holds_is_not_cut(parse: Any) -> None:
    cells = [Cell(method, plan(parse("sample.engine=transformers", "eval.engine=transformers", f"method={method}")))
             for method in ("sft", "rft")]
    small, large = (cell.plan.report.inputs["samples"] for cell in cells)
    work = arrange(cells, there=set(), into=lambda stage: 2 if stage.name == "sample" else 1)
    assert set(work.shards) == {large.key}
    assert work.behind[small.key] == (large.key,)


def test_no_stage_is_cut_into_nothing(parse: Any) -> None:
    with pytest.raises(ConfigError, match=r"compute\.shards\.evaluate=0"):
        parse("compute.shards.evaluate=0")


def test_shards_are_no_science(parse: Any) -> None:
    one, cut = plan(parse(*SMALL)), plan(parse(*SMALL, "compute.shards.sample=8", "compute.shards.evaluate=4"))
    assert [stage.key for stage in one.stages] == [stage.key for stage in cut.stages]
    assert isinstance(shards.of(one.named("sample")[0], 2)[0], Shard)
    assert shards.of(one.named("build")[0], 2) == [], "only what draws can be cut"
