"""Keys: every science leaf of the schema changes one, no machine leaf does, and equal work has equal keys."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from upft import composition, multirun
from upft.composition import TaskMap, field_types
from upft.config import Config
from upft.errors import ConfigError, DataError, ModelError
from upft.hashing import Hasher
from upft.plan import plan
from upft.sharing import distinct

MACHINE = {"compute", "tracker", "run", "plan"}
REVISION, OTHER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def parse(compose: object) -> Callable[..., Config]:
    """parse(*overrides) -> typed Config, as a sweep's cells are read: groups composed once, then values set, and what cells
    have in common parsed once. tests/sweeps/test_multirun.py: this is what Hydra gives; here it is done 2,000 times."""
    loader = GlobalHydra.instance().config_loader()
    composer = multirun.Composer(SimpleNamespace(config_loader=loader),
                                 loader.load_configuration("config", [], RunMode.MULTIRUN))
    known: dict = {}
    return lambda *overrides: composition.parse(composer.compose(overrides), known)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for name, text in {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def bases(model_folder) -> dict[str, list[str]]:
    """Cells that between them bring every leaf to life. engine=transformers: `auto` depends on the machine."""
    engines = ["sample.engine=transformers", "eval.engine=transformers"]
    sampled = [f"model.path={model_folder}", "eval.protocol=paper", "eval.tasks.arithmetic.paper.temperature=0.8"]
    return {
        "generated": [f"model.path={model_folder}", *engines],
        "on slurm": [f"model.path={model_folder}", "compute=slurm", *engines],
        "lora": [f"model.path={model_folder}", "train=lora", *engines],
        "auto": [f"model.path={model_folder}", "prefix.len=auto", *engines],
        "own temperature": [f"model.path={model_folder}", "eval.tasks.arithmetic.standard.temperature=null",
                            "model.temperature=0.7", *engines],
        "paper": [*sampled, "model.paper_context=64", *engines],
        "options": [f"model.path={model_folder}", *[f"eval.tasks.arithmetic.{x}" for x in (
            "wrong_fields=[a,b]", "standard.options=true", "standard.prompt='{question} {options}'")], *engines],
        "judged": [*sampled, "judge=model", f"judge.path={model_folder}", "judge.engine=transformers", *engines],
        "judge of the hub": [*sampled, "judge=model", "judge.id=o/j", f"judge.revision={REVISION}",
                             "judge.engine=transformers", *engines],
        "analysed": [f"model.path={model_folder}", "analysis=all", *engines],
        "vstar": [f"model.path={model_folder}", "method=vstar", *engines],
        "rounds": [f"model.path={model_folder}", "method.rounds=2", *engines],
        "hub": [
            "model.path=null", "model.id=o/m", f"model.revision={REVISION}",
            "data.arithmetic=null", "data.id=o/d", f"data.revision={REVISION}", "data.file=a.jsonl",
            "eval.tasks.arithmetic.arithmetic=null", "eval.tasks.arithmetic.id=o/t",
            f"eval.tasks.arithmetic.revision={REVISION}", "eval.tasks.arithmetic.file=a.jsonl",
            "eval.tasks.arithmetic.answer_field=answer", *engines,
        ],
    }


@pytest.fixture(scope="module")
def cells(bases, parse) -> dict[str, Config]:
    return {name: parse(*base) for name, base in bases.items()}


def leaves(kind=Config, path="") -> list[tuple[str, object]]:
    """(dotted key, type) of every leaf of the schema."""
    found = []
    for name, inner in field_types(kind).items():
        where = f"{path}{name}"
        if inner == TaskMap:
            from upft.config import TaskConfig

            found += leaves(TaskConfig, f"{where}.arithmetic.")
        elif dataclasses.is_dataclass(inner):
            found += leaves(inner, f"{where}.")
        else:
            found.append((where, inner))
    return found


SCIENCE = [leaf for leaf in leaves() if leaf[0].split(".")[0] not in MACHINE]
MACHINES = [leaf for leaf in leaves() if leaf[0].split(".")[0] in MACHINE]

SPECIAL = {  # leaves whose values are bound by a rule
    "model.path": None, "data.path": None, "eval.tasks.arithmetic.path": None,  # by content: a test of their own
    "model.revision": OTHER, "data.revision": OTHER, "eval.tasks.arithmetic.revision": OTHER,
    "model.user_template": "'Q: {question}'",
    "data.arithmetic.split": "test", "eval.tasks.arithmetic.arithmetic.split": "train",
    "sample.engine": None, "eval.engine": None, "model.engine": None,  # resolved against what is installed: a test of their own
    "model.precision": "bf16_mixed", "train.precision": "bf16_mixed",  # the others have rules
    "sample.max_tokens": "64", "prefix.len": "5", "train.lora.targets": "[q_proj]",
    "model.max_length": "100000", "data.max_length": "100000",
    "eval.tasks.arithmetic.wrong_fields": "[x,y]", "eval.tasks.arithmetic.paper.options": None,  # with its fields: see above
    "eval.tasks.arithmetic.standard.options": None,
    "judge.path": None, "judge.engine": None, "judge.revision": OTHER, "judge.prompt": "'{question}{gold}{solution}'",
    "judge.accept": "'yes+'",
    "analysis.task": "arithmetic", "analysis.temperature": "0.9", "analysis.consistency.edges": "[0.5]",
    "analysis.errors.at": "[3]", "analysis.coverage.at": "[3]",
}


CONTAINERS = {  # machine leaves that hold others
    "compute.slurm.stages": "compute.slurm.stages.train.minutes=5", "compute.slurm.sbatch": "+compute.slurm.sbatch.qos=low",
    "compute.slurm.setup": "compute.slurm.setup=[module load cuda]", "tracker.tags": "tracker.tags=[first]",
}


def another(key: str, kind: object, now: object) -> list[str]:
    """Values to try that differ from the present one and keep every rule."""
    if key in SPECIAL:  # None: never by itself
        return [] if SPECIAL[key] is None else [str(SPECIAL[key])]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [m.name for m in kind if m is not now]
    if kind is bool:
        return ["false" if now else "true"]
    if kind is int:
        return [str((now or 3) + 1)]
    if kind is float:
        return [str(0.5 if now is None else now * 0.5 + 0.25)] if not key.endswith("lr") else [str(0.123)]
    return [f"'{now}y'" if key.endswith(".prompt") else f"{now or 'x'}y"]


def value_at(config: Config, key: str) -> object:
    node: object = config
    for part in filter(None, key.split(".")):
        node = node[part] if isinstance(node, dict) else getattr(node, part, None)
    return node


def keys(config: Config) -> list[str]:
    return [stage.key for stage in plan(config, Hasher()).stages]


@pytest.mark.parametrize(("key", "kind"), SCIENCE, ids=[k for k, _ in SCIENCE])
def test_science_leaf_changes_a_key(key, kind, bases, cells, parse):
    tried = changed = 0
    for name, base in bases.items():
        config = cells[name]
        if value_at(config, key.rpartition(".")[0]) is None:
            continue  # this cell has no such node, such as the generator's settings of a hub data set
        if key == "eval.protocol" and config.judge is not None:
            continue  # a judge belongs to one protocol
        for value in another(key, kind, value_at(config, key)):
            try:
                other = parse(*base, f"{key}={value}")
            except ConfigError:
                assert key in ("method.name", "method.label_filter", "sample.trace_ratio"), "what some methods refuse"
                continue
            tried += 1
            changed += keys(other) != keys(config)
    if key in SPECIAL and SPECIAL[key] is None:
        assert tried == 0
    else:
        assert tried > 0
        assert changed > 0


@pytest.mark.parametrize(("key", "kind"), MACHINES, ids=[k for k, _ in MACHINES])
def test_machine_leaf_changes_no_key(key, kind, bases, cells, parse):
    tried = 0
    for name, base in bases.items():
        config = cells[name]
        if value_at(config, key.rpartition(".")[0]) is None and "." in key:
            continue  # this cell has no such node: compute.slurm without SLURM
        values = another(key, kind, value_at(config, key))
        if key == "compute.gpu_memory_utilization":
            values = ["0.5"]
        if key in CONTAINERS:
            assert keys(parse(*base, CONTAINERS[key])) == keys(config)
            values = []
            tried += 1
        for value in values:
            tried += 1
            more = ["compute.devices=2"] if key == "compute.tensor_parallel" else []
            assert keys(parse(*base, f"{key}={value}", *more)) == keys(config)
    assert tried > 0


@pytest.mark.parametrize("group", ["sample", "eval"])
def test_engine_changes_a_key(group, bases, parse, monkeypatch):
    monkeypatch.setattr("upft.origins.importlib.util.find_spec", lambda name: object())
    base = bases["generated"]
    assert keys(parse(*base, f"{group}.engine=vllm")) != keys(parse(*base, f"{group}.engine=transformers"))
    assert keys(parse(*base, f"{group}.engine=vllm")) == keys(parse(*base, f"{group}.engine=auto"))


def test_engine_auto_without_vllm_and_vllm_refused(bases, parse, monkeypatch):
    monkeypatch.setattr("upft.origins.importlib.util.find_spec", lambda name: None)
    base = bases["generated"]
    assert keys(parse(*base, "sample.engine=auto")) == keys(parse(*base))
    with pytest.raises(Exception, match=r"sample\.engine=vllm"):
        keys(parse(*base, "sample.engine=vllm"))


def test_content_not_place_decides(parse, bases, model_folder, tmp_path, write_jsonl):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    rest = bases["generated"][1:]
    here, there = parse(*bases["generated"]), parse(f"model.path={copy}", *rest)
    assert keys(here) == keys(there)
    (copy / "README.md").write_text("words")
    assert keys(here) == keys(there)
    (copy / "model.safetensors").write_text("other weights")
    assert set(keys(here)).isdisjoint(keys(there))

    rows = [{"question": "1+1?"}]
    a, b = write_jsonl(rows, "a.jsonl"), write_jsonl(rows, "b.jsonl")
    files = ["data=jsonl", *bases["generated"]]
    assert keys(parse(*files, f"data.path={a}")) == keys(parse(*files, f"data.path={b}"))
    b.write_text(b.read_text() + '{"question": "1+2?"}\n')
    assert keys(parse(*files, f"data.path={a}")) != keys(parse(*files, f"data.path={b}"))


def test_each_stage_depends_on_what_it_uses_only(parse, bases):
    def changed(*overrides: str) -> set[str]:
        before = {s.label.split(":")[0] if s.name == "evaluate" else s.name: s.key
                  for s in plan(parse(*bases["generated"])).stages}
        after = {s.label.split(":")[0] if s.name == "evaluate" else s.name: s.key
                 for s in plan(parse(*bases["generated"], *overrides)).stages}
        return {name for name in before if before[name] != after[name]}

    trained = {"train", "evaluate upft", "report"}
    assert changed("train.lr=0.5") == trained
    assert changed("prefix.eos=false") == {"build", *trained}
    assert changed("prefix.len=4", "sample.max_tokens=8") == {"build", *trained}  # one sampling serves shorter prefixes
    assert changed("prefix.len=4") == {"sample", "diagnose", "build", *trained}
    assert changed("diagnose.agreement=0.3") == {"diagnose", "report"}
    assert changed("sample.n=2") == {"sample", "diagnose", "build", *trained}
    assert changed("eval.n=2") == {"evaluate base", "evaluate upft", "report"}
    assert changed("model.name=other") == {"report"}
    assert changed("train.seed=1") == trained
    assert changed("train.seed=0") == set()
    assert changed("seed=1", "train.seed=0") == {"sample", "diagnose", "build", "evaluate base", *trained}
    assert changed("seed=1") == {"sample", "diagnose", "build", "evaluate base", *trained}


def test_auto_puts_a_pilot_and_its_diagnosis_first(parse, bases):
    cell = plan(parse(*bases["auto"], "diagnose.longest=40", "diagnose.questions=12", "diagnose.n=5"))
    assert [s.name for s in cell.stages] == ["sample", "diagnose", "sample", "evaluate", "build", "train", "evaluate", "report"]
    pilot, diagnosis, sample = cell.stages[:3]
    assert (pilot.spec.questions.limit, pilot.spec.n, pilot.spec.max_tokens, pilot.spec.logprobs) == (12, 5, 40, True)
    assert diagnosis.inputs == {"samples": pilot}
    assert (sample.spec.max_tokens, sample.spec.n, sample.inputs) == (None, 1, {"diagnosis": diagnosis})
    [build] = cell.named("build")
    assert build.spec.prefix_len is None
    assert build.inputs == {"samples": sample, "diagnosis": diagnosis}
    assert cell.report.inputs["pilot"] is pilot


def test_every_stage_can_ask_for_resources_of_its_own(compose):
    from upft.machine import STAGES
    from upft.plan import VERSIONS

    assert set(STAGES) == set(VERSIONS) == set(compose("compute=slurm").compute.slurm.stages)


def test_a_sweep_shares_its_stages(parse, bases):
    cells = [plan(parse(*bases["generated"], "sample.max_tokens=32", f"prefix.len={t}", f"prefix.ratio={p}",
                        "sample.trace_ratio=0.2")) for t in (8, 16, 32) for p in (0.1, 0.2)]
    counts: dict[str, int] = {}
    for stage in distinct(cells):
        counts[stage.name] = counts.get(stage.name, 0) + 1
    assert counts == {"sample": 1, "diagnose": 1, "build": 6, "train": 6, "evaluate": 7, "report": 6}


def test_key_is_stable_across_processes(parse, bases):
    import subprocess
    import sys

    code = ("import os; from hydra import compose, initialize_config_dir; from upft import composition;"
            "from upft.plan import plan; composition.register();\n"
            "with initialize_config_dir(os.path.abspath('conf'), version_base='1.3'):\n"
            f"    print([s.key for s in plan(composition.parse(compose('config', {bases['generated']!r}))).stages])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"}, cwd=Path(__file__).parent.parent)
    assert out.stdout.strip() == str(keys(parse(*bases["generated"])))


@pytest.mark.parametrize(("broken", "names"), [
    (None, ["no such folder"]),
    ("config.json", ["no model", "config.json"]),
    ("model.safetensors", ["no weights", "safetensors"]),
    ("tokenizer.json", ["no tokenizer", "tokenizer.json"]),
])
def test_folder_that_is_no_model(broken, names, parse, model_folder, tmp_path):
    folder = tmp_path / "model"
    if broken is not None:
        shutil.copytree(model_folder, folder)
        (folder / broken).unlink()
    with pytest.raises(ModelError) as refusal:
        plan(parse(f"model.path={folder}"))
    for name in [f"model.path={folder}", *names]:
        assert name in str(refusal.value)


def test_missing_data_file_is_named(parse, model_folder):
    with pytest.raises(DataError, match=r"data\.path=nowhere\.jsonl"):
        plan(parse("data=jsonl", "data.path=nowhere.jsonl", f"model.path={model_folder}"))
