"""A stage as JSON and back: the same key, and nothing else is taken for it."""

from __future__ import annotations

import json

import pytest

from upft import blueprint
from upft.choices import Style
from upft.errors import StoreError
from upft.hashing import canonical
from upft.plan import plan
from upft.records import Machine, read_machine

CELLS = {
    "plain": [],
    "lora": ["train=lora"],
    "auto": ["prefix.len=auto"],
    "paper": ["eval.protocol=paper", "model.paper_context=64"],
    "options": ["eval.tasks.arithmetic.wrong_fields=[a,b]", "eval.tasks.arithmetic.standard.options=true",
                "eval.tasks.arithmetic.standard.prompt='{question} {options}'"],
    "hub": ["model.path=null", "model.id=o/m", f"model.revision={'a' * 40}", "data.arithmetic=null", "data.id=o/d",
            f"data.revision={'b' * 40}", "data.file=a.jsonl"],
}


@pytest.mark.parametrize("name", CELLS)
def test_every_stage_comes_back_the_same(name, parse, tmp_path):
    cell = plan(parse("sample.engine=transformers", "eval.engine=transformers", *CELLS[name]))
    for stage in cell.stages:
        blueprint.write(tmp_path, stage)
    for stage in cell.stages:
        again = blueprint.read(tmp_path, stage.key)
        assert again == stage
        assert canonical(again.spec) == canonical(stage.spec)
        assert (again.key, list(again.inputs)) == (stage.key, list(stage.inputs))
    assert {path.name for path in tmp_path.iterdir()} == {f"{stage.key}.json" for stage in cell.stages}


def test_where_a_model_lies_travels_along(parse, tmp_path):
    stage = plan(parse("sample.engine=transformers", "eval.engine=transformers")).stages[0]
    blueprint.write(tmp_path, stage)
    assert blueprint.read(tmp_path, stage.key).spec.model.source.path == stage.spec.model.source.path


@pytest.mark.parametrize(("field", "value", "names"), [
    ("n", 2, ["the code has changed"]), ("n", "1", ["no int"]), ("max_tokens", 1.5, ["1.5"]), ("foo", 1, ["no foo"]),
    ("logprobs", 0, ["no bool"]), ("type", "TrainSpec", ["describe a stage"]),
])
def test_another_stage_under_its_name_is_refused(field, value, names, parse, tmp_path):
    stage = plan(parse("sample.engine=transformers", "eval.engine=transformers")).stages[0]
    path = blueprint.write(tmp_path, stage)
    told = json.loads(path.read_text())
    told["spec"][field] = value
    path.write_text(json.dumps(told))
    with pytest.raises(StoreError) as refusal:
        blueprint.read(tmp_path, stage.key)
    for name in names:
        assert name in str(refusal.value)


def test_a_missing_input_is_named(parse, tmp_path):
    cell = plan(parse("sample.engine=transformers", "eval.engine=transformers"))
    blueprint.write(tmp_path, cell.report)
    with pytest.raises(StoreError, match=cell.report.inputs["samples"].key):
        blueprint.read(tmp_path, cell.report.key)


@pytest.mark.parametrize("choice", ["local", "slurm"])
def test_machine_settings_come_back_the_same(choice, parse, tmp_path):
    more = ["compute.slurm.stages.train.minutes=5", "+compute.slurm.sbatch.qos=low"] if choice == "slurm" else []
    config = parse(f"compute={choice}", "compute.accelerator=cpu", *more)
    blueprint.save(tmp_path / "machine.json", blueprint.plain(Machine(config.compute, config.tracker, Style.json)))
    assert read_machine(tmp_path / "machine.json") == Machine(config.compute, config.tracker, Style.json)
