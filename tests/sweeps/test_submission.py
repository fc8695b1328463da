"""Cells -> distinct stages -> groups of jobs: counted on real plans, dependencies against the plans themselves."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from upft.hashing import Hasher
from upft.plan import Plan, plan
from upft.sharing import covered, holds
from upft.submission import ARRAY_LIMIT, Cell, Work, arrange, closure, failed_cells

SMALL = ["sample.engine=transformers", "eval.engine=transformers", "sample.max_tokens=32"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two model folders with different weights."""
    folders = []
    for name in ("a", "b"):
        folder = tmp_path_factory.mktemp(name)
        for file, text in {"config.json": "{}", "model.safetensors": f"weights {name}", "tokenizer.json": "{}"}.items():
            (folder / file).write_text(text)
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def sweep(parse, models) -> Callable[..., list[Cell]]:
    """sweep(lengths, seeds, models) -> cells."""
    hasher = Hasher()

    def make(lengths=(4, 8, 16, 32), seeds=(0, 1, 2), count=2, *more: str) -> list[Cell]:
        return [Cell(f"{m.name} {t} {s}", plan(parse(*SMALL, f"model.path={m}", f"prefix.len={t}", f"seed={s}", *more), hasher))
                for m, t, s in itertools.product(models[:count], lengths, seeds)]

    return make


def names(work: Work) -> Counter[str]:
    return Counter((stage.name if stage.name != "evaluate" else "evaluate " + ("trained" if stage.inputs else "base"))
                   for group in work.groups for stage in group.jobs)


def test_24_cells_share_what_their_seed_and_length_do_not_reach(sweep):
    """The seed draws the samples and the answers, so what is sampled or asked is shared among lengths, not among seeds."""
    work = arrange(sweep(), there=set())
    assert names(work) == {"sample": 6, "diagnose": 6, "evaluate base": 6, "build": 24, "train": 24, "evaluate trained": 24,
                           "report": 24}
    one_seed = arrange(sweep(seeds=(0,)), there=set())
    assert names(one_seed) == {"sample": 2, "diagnose": 2, "evaluate base": 2, "build": 8, "train": 8, "evaluate trained": 8,
                               "report": 8}
    shared = next(stage for stage in one_seed.stages if stage.name == "sample")
    assert one_seed.served[shared.key] == 4


def test_24_cells_that_differ_in_the_training_s_seed_are_two_samplings_and_two_base_evaluations(parse, models):
    """And where each length samples for itself, six more that draw nothing: the longest holds their samples."""
    def arranged(*more: str) -> tuple[list[Cell], Work]:
        hasher = Hasher()
        cells = [Cell(f"{m.name} {t} {s}", plan(
            parse(*SMALL[:2], f"model.path={m}", f"prefix.len={t}", f"train.seed={s}", *more), hasher))
                 for m, t, s in itertools.product(models, (4, 8, 16, 32), (0, 1, 2))]
        return cells, arrange(cells, there=set())

    _, work = arranged("sample.max_tokens=32")
    assert names(work) == {"sample": 2, "diagnose": 2, "evaluate base": 2, "build": 8, "train": 24, "evaluate trained": 24,
                           "report": 24}
    cells, apart = arranged()
    assert names(apart) == {"sample": 8, "diagnose": 8, "evaluate base": 2, "build": 8, "train": 24, "evaluate trained": 24,
                            "report": 24}
    held = covered(apart.stages)
    assert len(held) == 6
    assert {one.spec.max_tokens for one in held.values()} == {32}
    assert len({one.key for one in held.values()}) == 2
    assert all((apart.after[key], apart.behind[key]) == ((), (one.key,)) for key, one in held.items())
    seeds = {cell.name: [s.spec.seed for s in cell.plan.named("train")] for cell in cells}
    assert all(found == [int(name.split()[-1])] for name, found in seeds.items())


def test_equal_shapes_of_one_depth_are_one_array(sweep):
    work = arrange(sweep(), there=set())
    assert [(g.name, len(g.jobs), g.depth) for g in work.groups] == [
        ("sample", 6, 0), ("evaluate", 6, 0), ("diagnose", 6, 1), ("build", 24, 1), ("train", 24, 2), ("evaluate", 24, 3),
        ("report", 24, 4)]
    apart = arrange(sweep(), there=set(), shape=lambda stage: stage.key)
    assert all(len(group.jobs) == 1 for group in apart.groups)
    assert names(apart) == names(work)


def reached(work: Work, key: str) -> set[str]:
    """All stages that a job waits for, directly or not."""
    found, front = set(), list(work.after[key])
    while front:
        one = front.pop()
        if one not in found:
            found.add(one)
            front += work.after[one]
    return found


def test_a_job_waits_for_all_its_missing_inputs_and_for_no_more(sweep):
    cells = sweep(seeds=(0,))
    everything = {stage.key: stage for cell in cells for stage in cell.plan.stages}
    hits = {stage.key for stage in everything.values() if stage.name in ("sample", "diagnose")}
    for there in (set(), hits):
        work = arrange(cells, there)
        place = {stage.key: i for i, group in enumerate(work.groups) for stage in group.jobs}
        assert set(place) == set(everything) - there == work.todo
        for key in place:
            needed = {stage.key for stage in closure(everything[key]).stages} - {key} - there
            assert reached(work, key) == needed
            assert all(place[one] < place[key] for one in work.after[key]), "submitted before what it waits for"
    report = cells[0].plan.report
    assert {everything[key].name for key in arrange(cells, set()).after[report.key]} == {"evaluate", "diagnose"}


def test_hits_and_jobs_under_way_are_not_submitted(sweep):
    cells = sweep(seeds=(0,))
    keys = [stage.key for stage in arrange(cells, set()).stages]
    assert arrange(cells, there=set(keys)).groups == ()
    assert arrange(cells, there=set(), under_way=set(keys)).groups == ()
    train = next(stage for stage in cells[0].plan.stages if stage.name == "train")
    only = arrange(cells, there=set(keys) - {train.key})
    assert only.todo == {train.key}
    assert only.after == {train.key: ()}
    later = arrange(cells, there={k for k in keys if k not in (train.key, cells[0].plan.report.key)}, under_way={train.key})
    assert later.todo == {cells[0].plan.report.key}
    assert later.after[cells[0].plan.report.key] == (train.key,)


def test_a_failed_stage_blocks_only_the_cells_that_need_it(sweep):
    cells = sweep(seeds=(0,), count=1)
    train = next(stage for stage in cells[0].plan.stages if stage.name == "train")
    work = arrange(cells, there=set(), refused={train.key})
    behind = {stage.key for stage in work.stages if train.key in {one.key for one in closure(stage).stages}}
    assert set(work.blocked) == behind
    assert set(work.blocked.values()) == {train.key}
    assert work.todo == {stage.key for stage in work.stages} - behind
    assert failed_cells(cells, there=work.todo) == [cells[0].name]


def test_arrays_have_a_limit(sweep):
    [cell] = sweep(lengths=(4,), seeds=(0,), count=1)
    from dataclasses import replace

    report = cell.plan.report
    many = [Cell(str(i), Plan((*cell.plan.stages[:-1], replace(report, spec=replace(report.spec, title=str(i))))))
            for i in range(ARRAY_LIMIT + 5)]
    sizes = [len(group.jobs) for group in arrange(many, there=set()).groups if group.name == "report"]
    assert sizes == [ARRAY_LIMIT, 5]


def test_closure_is_the_cell(sweep):
    for cell in sweep(lengths=(4,), seeds=(0,)):
        found = closure(cell.plan.report)
        assert {stage.key for stage in found.stages} == {stage.key for stage in cell.plan.stages}
        assert found.report is cell.plan.report
        for i, stage in enumerate(found.stages):
            assert {one.key for one in stage.inputs.values()} <= {one.key for one in found.stages[:i]}


def test_a_sampling_waits_for_the_one_that_holds_its_samples(parse):
    """SFT's one trace and UPFT's prefixes are among RFT's 16 traces: drawn once, whatever the order of the cells."""
    cells = [Cell(method, plan(parse("sample.engine=transformers", "eval.engine=transformers", f"method={method}")))
             for method in ("sft", "upft", "rft", "vstar")]
    work = arrange(cells, there=set())
    own = {cell.name: cell.plan.report.inputs["samples"].key for cell in cells}
    assert own["rft"] == own["vstar"]
    assert len(set(own.values())) == 3
    assert work.after[own["rft"]] == ()
    assert work.behind[own["sft"]] == work.behind[own["upft"]] == (own["rft"],)
    assert work.after[own["sft"]] == work.after[own["upft"]] == (), "without it they would draw their own"
    assert [(g.name, len(g.jobs)) for g in work.groups[:1]] == [("sample", 1)]
    later = arrange(cells, there={own["rft"]})
    assert later.behind[own["sft"]] == ()
    alone = arrange(cells, there=set(), refused={own["rft"]})
    assert own["sft"] in alone.todo
    assert alone.behind[own["sft"]] == ()


def drawn(overrides: list[list[str]], parse) -> list[Cell]:
    hasher = Hasher()
    return [Cell(" ".join(one), plan(parse("sample.engine=transformers", "eval.engine=transformers", "prefix.len=auto",
                                           "sample.logprobs=true", "sample.max_tokens=64", *one), hasher)) for one in overrides]


def in_order(work: Work) -> None:
    """Every job comes after all it waits for: nothing waits for itself."""
    order = [job.key for group in work.groups for job in group.jobs]
    assert set(order) == work.todo
    for key in order:
        assert all(order.index(one) < order.index(key) for one in (*work.after[key], *work.behind[key]))


def test_a_pilot_does_not_wait_for_the_sampling_that_waits_for_it(parse):
    """Which holds its samples, and many more of each question."""
    cells = drawn([["sample.n=16", "seed=0"], ["sample.n=16", "seed=1"]], parse)
    work = arrange(cells, there=set(), into=lambda stage: 2 if stage.name == "sample" else 1)
    in_order(work)
    for cell in cells:
        pilot, samples = cell.plan.report.inputs["pilot"], cell.plan.report.inputs["samples"]
        assert holds(samples.spec, pilot.spec)
        assert work.behind[pilot.key] == work.after[work.shards[pilot.key][0].key] == ()
        assert set(work.shards) >= {pilot.key, samples.key}, "both draw"


@pytest.mark.parametrize("order", [1, -1])
def test_pilots_of_several_cells_wait_for_no_sampling_that_waits_for_them_all(order, parse):
    """Two samplings that hold each other and both pilots: each pilot could wait for the other's."""
    cells = drawn([["sample.n=16", f"diagnose.questions={count}"] for count in (30, 60)], parse)[::order]
    work = arrange(cells, there=set())
    in_order(work)
    held = covered(work.stages)
    assert held == covered(work.stages[::-1])
    first, second = ({name: cell.plan.report.inputs[name].key for name in ("pilot", "samples")} for cell in cells)
    if first["samples"] in held:
        first, second = second, first
    assert {key: one.key for key, one in held.items()} == dict.fromkeys(second.values(), first["samples"])
