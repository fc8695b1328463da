"""The stages of each method, what they share and what they depend on, and what is refused before anything is planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from upft.choices import MethodName
from upft.errors import ConfigError
from upft.hashing import Hasher
from upft.plan import Plan, Stage, plan
from upft.sharing import covered, distinct, holds, relatives
from upft.specs import SampleSpec

ENGINES = ["sample.engine=transformers", "eval.engine=transformers"]
METHODS = ["method=upft", "method=sft", "method=rft", "method=vstar", "method=upft_label_filter"]


@pytest.fixture(scope="module")
def cell(parse: Callable) -> Callable[..., Plan]:
    """cell(*overrides) -> the plan of a cell on the embedded model."""
    hasher = Hasher()
    return lambda *overrides: plan(parse(*ENGINES, *overrides), hasher)


def shape(cell: Plan) -> list[str]:
    return [stage.name for stage in cell.stages]


def sampling(cell: Plan, number: int = 0) -> tuple[Stage, SampleSpec]:
    stage = cell.named("sample")[number]
    assert isinstance(stage.spec, SampleSpec)
    return stage, stage.spec


def test_stages_of_each_method(cell: Callable) -> None:
    begin, end = ["sample", "diagnose", "evaluate"], ["build", "train", "evaluate", "report"]
    assert shape(cell("method=upft")) == shape(cell("method=sft")) == [*begin, *end]
    assert shape(cell("method=rft")) == shape(cell("method=upft", "method.label_filter=true")) == [*begin, "grade", *end]
    vstar = cell("method=vstar")
    assert shape(vstar) == [*begin, "grade", "build", "train", "evaluate", "pair", "reference", "train", "evaluate", "verify",
                            "report"]
    sample, grades = vstar.named("sample")[0], vstar.named("grade")[0]
    [pairs], [reference], [verify] = (vstar.named(name) for name in ("pair", "reference", "verify"))
    generator, verifier = vstar.named("train")
    assert pairs.inputs == {"samples": sample, "grades": grades}
    assert reference.inputs == {"rows": pairs}
    assert verifier.inputs == {"rows": pairs, "reference": reference}
    assert (verifier.spec.beta, generator.spec.beta) == (0.1, None)
    candidates = vstar.named("evaluate")[2]
    assert (candidates.spec.n, candidates.spec.sampling.temperature, candidates.inputs) == (16, 0.6, {"model": generator})
    assert verify.inputs == {"answers": candidates, "verifier": verifier}


def test_each_method_samples_what_it_needs_alone(cell: Callable) -> None:
    many = (16, 192, 1.0)
    wanted = {"method=upft": (1, 8, 0.1), "method=sft": (1, 192, 1.0), "method=rft": many, "method=vstar": many,
              "method=upft_label_filter": many}
    for method, expected in wanted.items():
        _, spec = sampling(cell(method))
        assert (spec.n, spec.max_tokens, spec.trace_ratio) == expected, method
    assert cell("method=rft", "method.n=4").named("sample")[0].spec.n == 4


def test_traces_that_nobody_chooses_from_change_no_rows(cell: Callable) -> None:
    """method.n=4 for UPFT and SFT, as in sweeps/tiny_analyses.yaml for RFT's sake: the rows are those of the first trace."""
    shared = ["sample.n=4", "sample.trace_ratio=1"]
    for method in ("method=upft", "method=sft"):
        assert cell(method, *shared, "method.n=4").named("build")[0].key == cell(method, *shared).named("build")[0].key
    capped = cell("method=upft", *shared, "method.n=4", "method.cap=2").named("build")[0].spec
    assert (capped.traces, capped.cap) == (2, 2)
    assert cell("method=upft", *shared, "method.n=4", "method.cap=null").named("build")[0].spec.traces == 4
    assert cell("method=rft", *shared, "method.n=4").named("build")[0].spec.traces == 4


def test_the_supervised_methods_share_sampling_grades_and_generator(cell: Callable) -> None:
    rft, vstar, filtered = cell("method=rft"), cell("method=vstar"), cell("method=upft", "method.label_filter=true")
    for name in ("sample", "diagnose", "grade"):
        assert len({c.named(name)[0].key for c in (rft, vstar, filtered)}) == 1, name
    assert rft.named("train")[0].key == vstar.named("train")[0].key, "V-STaR's generator is RFT's model"
    assert rft.named("evaluate")[1].key == vstar.named("evaluate")[1].key
    assert filtered.named("train")[0].key != rft.named("train")[0].key
    shared = cell("method=vstar", "method.verifier.n=4", "method.verifier.temperature=1.0")
    assert shape(shared).count("evaluate") == 2, "answers that are there anyway are not sampled again"


def test_the_label_filter_is_one_thing_by_two_names(cell: Callable) -> None:
    one, two = cell("method=upft", "method.label_filter=true"), cell("method=upft_label_filter")
    assert [s.key for s in one.stages] == [s.key for s in two.stages]


def test_together_there_is_one_sampling(cell: Callable) -> None:
    cells = [cell(method) for method in METHODS]
    stages = distinct(cells)
    samplings = [s for s in stages if s.name == "sample"]
    held = covered(stages)
    large = cell("method=rft").named("sample")[0]
    assert [s.key for s in samplings if s.key not in held] == [large.key]
    assert {s.key for s in samplings} - {large.key} == set(held)
    assert {one.key for one in held.values()} == {large.key}
    order = [s.key for s in stages]
    assert all(order.index(large.key) < order.index(key) for key in held), "it comes before those that it serves"
    for stage in stages:
        assert all(order.index(up.key) < order.index(stage.key) for up in stage.inputs.values())
    assert covered(cell("method=upft").stages) == {}, "alone it samples prefixes"


def test_a_sweep_shares_one_sampling_key_and_all(cell: Callable) -> None:
    shared = ["sample.n=16", "sample.trace_ratio=1.0"]
    cells = [cell(method, *shared) for method in METHODS]
    assert {c.named("sample")[0].key for c in cells} == {cell("method=rft").named("sample")[0].key}
    assert len({c.report.key for c in cells}) == 5
    assert sum(s.name == "sample" for s in distinct(cells)) == 1


@pytest.mark.parametrize(("more", "less", "whether"), [
    ({}, {}, True), ({"n": 16}, {"n": 4}, True), ({"n": 4}, {"n": 16}, False), ({"limit": 10}, {}, False),
    ({}, {"limit": 10}, True), ({"limit": 10}, {"limit": 20}, False), ({"ratio": 0.5}, {"ratio": 0.2}, True),
    ({"ratio": 0.2}, {"ratio": 0.5}, False), ({"max": 64}, {"max": 8}, True), ({"max": 8}, {"max": 64}, False),
    ({"max": 8, "ratio": 1.0}, {"max": 64}, True), ({"logprobs": True}, {}, True), ({}, {"logprobs": True}, False),
    ({"temperature": 0.7}, {}, False), ({"seed": 1}, {}, False), ({"data": 1}, {}, False), ({"long": 100}, {}, False),
])
def test_what_one_sampling_holds_of_another(more: dict, less: dict, whether: bool, cell: Callable) -> None:
    names = {"n": "sample.n", "limit": "data.limit", "ratio": "sample.trace_ratio", "max": "sample.max_tokens", "seed": "seed",
             "logprobs": "sample.logprobs", "temperature": "sample.temperature", "data": "data.arithmetic.seed",
             "long": "sample.trace_max_tokens"}
    large, small = (sampling(cell("prefix.len=4", *(f"{names[k]}={v}" for k, v in changes.items())))[1]
                    for changes in (more, less))
    assert holds(large, small) == whether


def test_what_a_setting_of_the_method_changes(cell: Callable) -> None:
    def changed(base: list[str], *overrides: str) -> set[str]:
        before, after = ({s.label: s.key for s in cell(*args).stages} for args in (base, [*base, *overrides]))
        return {label for label in before.keys() | after.keys() if before.get(label) != after.get(label)}

    rft, vstar = ["method=rft"], ["method=vstar", "method.verifier.n=4", "method.verifier.temperature=1.0"]
    trained = {"build whole rows", "train rft", "evaluate rft: arithmetic", "report"}
    assert changed(rft, "method.cap=4") == trained
    assert changed(rft, "prefix.len=5", "prefix.suffix=x", "prefix.eos=false", "prefix.ratio=0.3") == set()
    assert changed(rft, "method.n=8", "sample.n=16") == trained
    assert changed(rft, "method.verifier.beta=0.5") == set()
    chosen = {"train verifier", "choose answers: arithmetic", "report"}
    assert changed(vstar, "method.verifier.beta=0.5") == chosen
    assert changed(vstar, "method.verifier.lr=0.001") == chosen
    assert changed(vstar, "method.verifier.pairs=2") == {*chosen, "pair traces", "reference"}
    assert changed(vstar, "method.verifier.score=reward") == {"choose answers: arithmetic", "report"}
    adapters = changed(vstar, "train=lora")
    assert adapters == {"train rft", "evaluate rft: arithmetic x4", *chosen}, "in fp32 the reference is the same under adapters"
    mixed = [*vstar, "train.precision=bf16_mixed"]
    assert "reference" in changed(mixed, "train=lora"), "frozen weights are then in bf16"


def test_rounds_chain(cell: Callable) -> None:
    two = cell("method.rounds=2")
    assert shape(two) == ["sample", "diagnose", "evaluate", "build", "train",
                          "sample", "diagnose", "build", "train", "evaluate", "report"]
    one = cell("method=upft")
    (first, spec), (second, again) = sampling(two), sampling(two, 1)
    assert first.key == one.named("sample")[0].key
    assert (spec.trained, second.inputs) == (None, {"model": two.named("train")[0]})
    assert again.trained == two.named("train")[0].key
    assert relatives(spec) != relatives(again), "what the base model sampled is no sample of the trained one"
    assert two.named("train")[1].inputs == {"rows": two.named("build")[1]}, "by default the base model is trained anew"
    on = cell("method.rounds=2", "method.restart=false")
    assert on.named("train")[1].inputs == {"rows": on.named("build")[1], "model": on.named("train")[0]}
    assert on.named("train")[0].key == two.named("train")[0].key != on.named("train")[1].key
    assert two.named("evaluate")[1].inputs == {"model": two.named("train")[1]}
    assert [s.key for s in cell("method.rounds=3").stages if s.name == "sample"][:2] == [first.key, second.key]
    assert list(two.report.inputs)[:4] == ["samples:1", "diagnosis:1", "rows:1", "train:1"]
    vstar = cell("method=vstar", "method.rounds=2")
    assert shape(vstar).count("grade") == 2
    assert vstar.named("pair")[0].inputs["samples"] == vstar.named("sample")[1]


def test_auto_needs_no_pilot_where_whole_traces_of_every_question_are_sampled(cell: Callable) -> None:
    filtered = cell("method=upft_label_filter", "prefix.len=auto")
    assert shape(filtered) == ["sample", "diagnose", "evaluate", "grade", "build", "train", "evaluate", "report"]
    assert filtered.named("build")[0].inputs["diagnosis"] == filtered.named("diagnose")[0]
    assert filtered.named("sample")[0].key == cell("method=rft").named("sample")[0].key
    assert shape(cell("method=rft", "prefix.len=auto")) == shape(cell("method=rft"))
    assert shape(cell("prefix.len=auto", "method.rounds=2")).count("sample") == 3
    assert cell("method=sft", "prefix.len=auto").report.key == cell("method=sft").report.key


def test_auto_needs_no_pilot_where_no_prefix_is_cut(cell: Callable) -> None:
    """One whole trace of every question: no length is asked for, but where positions are parted by it."""
    whole = cell("prefix.len=auto", "prefix.ratio=1")
    assert shape(whole) == shape(cell("prefix.len=8", "prefix.ratio=1"))
    assert "diagnosis" not in whole.named("build")[0].inputs
    assert whole.named("sample")[0].key == cell("prefix.len=8", "prefix.ratio=1").named("sample")[0].key
    assert whole.report.inputs["diagnosis"].inputs == {"samples": whole.named("sample")[0]}
    parted = cell("prefix.len=auto", "prefix.ratio=1", "analysis=kl")
    assert parted.named("kl")[0].inputs["diagnosis"].inputs == {"samples": parted.report.inputs["pilot"]}
    rounds = cell("prefix.len=auto", "prefix.ratio=1", "method.rounds=2")
    assert shape(rounds).count("sample") == 2


UNLABELLED = ["data=jsonl", "data.path=questions.jsonl"]


@pytest.mark.parametrize(("overrides", "names"), [
    ([*UNLABELLED, "method=rft"], ["data.answer_field=null", "method=rft", "data.answer_field=COLUMN", "method=upft"]),
    ([*UNLABELLED, "method=vstar"], ["data.answer_field=null", "method=vstar"]),
    ([*UNLABELLED, "method.label_filter=true"], ["data.answer_field=null", "method.label_filter=true"]),
    (["method=rft", "method.label_filter=true"], ["method.label_filter=true", "method.name=rft", "method=upft"]),
    (["method=rft", "sample.n=4"], ["sample.n=4", "method.n=16", "lower method.n"]),
    (["method=rft", "sample.temperature=0"], ["method.n=16", "sample.temperature=0", "greedy"]),
    (["method=sft", "sample.trace_ratio=0.5"], ["sample.trace_ratio=0.5", "method=sft", "null"]),
    (["method.n=0"], ["method.n=0", "1 or more"]),
    (["method.cap=0"], ["method.cap=0", "null"]),
    (["method.rounds=0"], ["method.rounds=0"]),
    (["method=vstar", "method.verifier.beta=0"], ["method.verifier.beta=0"]),
    (["method=vstar", "method.verifier.n=1"], ["method.verifier.n=1", "2 or more"]),
    (["method=vstar", "method.verifier.temperature=0"], ["method.verifier.temperature=0", "greedy"]),
    (["method=vstar", "method.verifier.pairs=0"], ["method.verifier.pairs=0"]),
])
def test_refused_with_key_value_and_remedy(overrides: list[str], names: list[str], parse: Callable) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(*overrides)
    for name in names:
        assert name in str(refusal.value)


def test_questions_without_answers_serve_the_unsupervised_methods(parse: Callable, tmp_path: Path) -> None:
    for method in (MethodName.upft, MethodName.sft):
        assert parse(*UNLABELLED, f"method={method.name}").method.name is method
