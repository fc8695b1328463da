"""The whole configuration tree: everything composes and parses, everything wrong is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from upft.composition import field_types
from upft.config import Config
from upft.errors import ConfigError

ROOT = Path(__file__).parent.parent
FILES = sorted(p for folder in ("conf", "sweeps") for p in (ROOT / folder).rglob("*.yaml"))
REVISION = "0" * 40


def selection(path: Path) -> list[str]:
    """The overrides that choose a configuration file, with what a user would have to add to it."""
    group, option = path.parent.relative_to(ROOT), path.stem
    if path.parent.name == "sweeps":
        return [f"sweep={option}"]
    name = "/".join(group.parts[1:])
    if not name or name.startswith("hydra"):
        return []
    chosen = [f"{name}={option}"]
    node = yaml.safe_load(path.read_text()) or {}
    if name == "data" and not node.get("path") and not node.get("arithmetic") and not (node.get("id") and node.get("file")):
        chosen.append("data.path=questions.jsonl")
    elif name in ("data", "model", "judge") and node.get("id") and not node.get("revision"):
        chosen.append(f"{name}.revision={REVISION}")
    elif name == "judge":
        chosen.append("judge.path=DIR")
    if name == "judge":
        chosen.append("eval=paper")
    return chosen


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_composes_and_parses(path, compose):
    from upft import composition

    overrides = selection(path)
    cfg = compose(*overrides)
    unpinned = [f"{key}={REVISION}" for key in unpinned_revisions(cfg)]
    parsed = composition.parse(compose(*overrides, *unpinned))
    assert isinstance(parsed, Config)
    assert parsed.prefix.len >= 1
    if path.parent.name in ("model", "data"):
        assert getattr(parsed, path.parent.name).name == path.stem


def unpinned_revisions(cfg) -> list[str]:
    """Keys of hub sources whose commit is left for the user to pin."""
    found = []
    if cfg.model.path is None and cfg.model.id and cfg.model.revision is None:
        found.append("model.revision")
    if cfg.data.path is None and cfg.data.arithmetic is None and cfg.data.id and cfg.data.revision is None:
        found.append("data.revision")
    for name, task in cfg.eval.tasks.items():
        if task.path is None and task.arithmetic is None and task.id and task.revision is None:
            found.append(f"eval.tasks.{name}.revision")
    return found


def test_every_field_has_a_docstring():
    import ast

    body = [n for name in ("config.py", "machine.py", "sources.py", "tasks.py", "method.py", "analysis.py", "training.py")
            for n in ast.parse((ROOT / "upft" / name).read_text()).body]
    classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name.endswith(("Config", "Source"))]
    assert len(classes) == 27
    bare = []
    for cls in classes:
        for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and after.value.value
                group = "Config" in ast.unparse(node.annotation) and cls.name == "Config"
                if not told and not group:
                    bare.append(f"{cls.name}.{ast.unparse(node.target)}")
    assert bare == []


def test_help_names_every_group():
    text = (ROOT / "conf" / "hydra" / "help" / "upft.yaml").read_text()
    groups = set(field_types(Config)) - {"seed", "plan"} | {"experiment", "sweep"}
    assert [g for g in groups if f"\n    {g} " not in text] == []


def test_papers_settings_reach_prefix_and_train(parse):
    qwen = parse("model=qwen_math", "data=limo", "model.path=x", "data.path=y.jsonl")
    assert (qwen.prefix.len, qwen.train.epochs, qwen.train.max_length, qwen.train.lr) == (32, 3, 4096, 2e-6)
    r1 = parse("model=r1_distill", "data=prm12k", "model.path=x", "data.path=y.jsonl")
    assert (r1.prefix.len, r1.train.epochs, r1.train.max_length) == (128, 2, 16384)
    llama = parse("model=llama31", "data=omi2", "model.path=x", "data.path=y.jsonl")
    assert (llama.prefix.len, llama.train.epochs, llama.train.max_length) == (8, 1, 3072)
    assert parse("model=qwen_math", "model.path=x", "prefix.len=16").prefix.len == 16
    for cell in (qwen, r1, llama):
        assert (cell.sample.temperature, cell.sample.n, cell.prefix.ratio, cell.train.batch_size) == (0.6, 1, 0.1, 64)
        assert (cell.train.beta1, cell.train.beta2, cell.train.weight_decay, cell.train.warmup_ratio) == (0.9, 0.95, 0, 0.03)


@pytest.mark.parametrize(("overrides", "names"), [
    (["prefix.len=0"], ["prefix.len=0", "1 or more"]),
    (["prefix.len=true"], ["prefix.len=True", "or auto"]),
    (["prefix.len=8.5"], ["prefix.len=8.5", "or auto"]),
    (["prefix.len=auto", "sample.max_tokens=32"], ["sample.max_tokens=32", "diagnose.longest=64"]),
    (["prefix.len=auto", "train.max_length=64"], ["diagnose.longest=64", "train.max_length=64"]),
    (["prefix.len=auto", "sample.temperature=0"], ["prefix.len=auto", "sample.temperature=0"]),
    (["diagnose.n=1"], ["diagnose.n=1", "2 or more"]),
    (["diagnose.agreement=1"], ["diagnose.agreement=1", "(0, 1)"]),
    (["compute.devices=4", "compute.tensor_parallel=3"], ["compute.tensor_parallel=3", "compute.devices=4"]),
    (["prefix.ratio=1.5"], ["prefix.ratio=1.5", "0 to 1"]),
    (["sample.temperature=-1"], ["sample.temperature=-1", "0 (greedy)"]),
    (["sample.top_p=0"], ["sample.top_p=0", "(0, 1]"]),
    (["sample.max_tokens=4"], ["sample.max_tokens=4", "prefix.len=8"]),
    (["sample.trace_ratio=0.05"], ["sample.trace_ratio=0.05", "prefix.ratio=0.1"]),
    (["sample.trace_ratio=1", "sample.trace_max_tokens=7"], ["trace_max_tokens=7", "prefix.len=8", "trace_ratio=1.0"]),
    (["sample.trace_ratio=0.2", "sample.trace_max_tokens=7"], ["trace_max_tokens=7", "prefix.len=8", "trace_ratio=0.2"]),
    (["method=upft_label_filter", "sample.trace_max_tokens=7"], ["trace_max_tokens=7", "prefix.len=8", "label_filter=true"]),
    (["prefix.len=auto", "sample.trace_ratio=1", "sample.trace_max_tokens=63"], ["trace_max_tokens=63", "diagnose.longest=64"]),
    (["train.lr=0"], ["train.lr=0", "2e-6"]),
    (["train.max_length=8"], ["train.max_length=8", "prefix.len=8"]),
    (["eval.n=4", "eval.temperature=0"], ["eval.n=4", "eval.temperature=0"]),
    (["eval.n=4", "eval.protocol=paper"], ["eval.n=4", "arithmetic.paper.temperature=0", "eval.temperature above 0"]),
    (["eval.n=0"], ["eval.n=0", "1 or more"]),
    (["run.store="], ["run.store=''", "give a folder"]),
    (["run.export=' '"], ["run.export=' '", "give a folder"]),
    (["eval.temperature=-1"], ["eval.temperature=-1", "0 (greedy)"]),
    (["eval.tasks.arithmetic.standard.n=0"], ["eval.tasks.arithmetic.standard.n=0", "1 or more"]),
    (["eval.tasks.arithmetic.standard.temperature=-1"], ["arithmetic.standard.temperature=-1", "0 (greedy)"]),
    (["eval.tasks.arithmetic.standard.prompt=hello"], ["standard.prompt=hello", "{question}"]),
    (["eval.tasks.arithmetic.standard.options=true"], ["standard.options=true", "wrong_fields=[]"]),
    (["eval=gpqa", "eval.protocol=standard", "eval.tasks.gpqa.standard.prompt='{question}'"],
     ["standard.options=true", "{options}"]),
    (["eval=gpqa", "eval.tasks.gpqa.paper.prompt='{question} {options}'"], ["paper.options=false", "{options}"]),
    (["eval=gsm8k", "eval.tasks.gsm8k.answer_field=null"], ["gsm8k.answer_field=null", "COLUMN"]),
    (["eval=gsm8k", "judge=model"], ["judge.path=null", "judge.path=DIR"]),
    (["eval=gsm8k", "judge=omni_judge"], ["judge.revision=null", "judge.revision=COMMIT"]),
    (["judge=model", "judge.path=x"], ["eval.protocol=standard", "eval.protocol=paper"]),
    (["eval=gsm8k", "judge=model", "judge.path=x", "judge.accept='('"], ["judge.accept=(", "regular expression"]),
    (["eval=gsm8k", "judge=model", "judge.path=x", "judge.prompt='{question} {gold}'"], ["judge.prompt", "{solution}"]),
    (["model.paper_context=1"], ["model.paper_context=1", "or null"]),
    (["model.temperature=-1"], ["model.temperature=-1", "or null"]),
    (["eval.limit=0"], ["eval.limit=0", "null for all"]),
    (["data.arithmetic.split=exam"], ["arithmetic.split=exam", "train or test"]),
    (["data.path=x.jsonl"], ["data.path=x.jsonl", "data=jsonl"]),
    (["data=jsonl"], ["data.path=null", "data.path=FILE.jsonl"]),
    (["model.path=null"], ["model.path=null", "model.path=DIR"]),
    (["model.path=null", "model.id=a/b"], ["model.revision=null", "model.revision=COMMIT"]),
    (["model.path=null", "model.id=a/b", "model.revision=main"], ["revision=main", "40 hex digits"]),
    (["model.user_template=hello"], ["model.user_template=hello", "{question}"]),
    (["+prefix.foo=1"], ["prefix.foo=1", "no such key"]),
    (["+prefix.lenght=1"], ["prefix.lenght=1", "'len'"]),
    (["+eval.tasks.arithmetic.foo=1"], ["eval.tasks.arithmetic.foo=1", "no such key"]),
    (["analysis=consistency", "analysis.consistency.n=1"], ["analysis.consistency.n=1", "2 or more"]),
    (["analysis=consistency", "analysis.consistency.edges=[0.5,0.2]"], ["consistency.edges=[0.5, 0.2]", "rising"]),
    (["analysis=errors", "analysis.errors.at=[4,2]"], ["analysis.errors.at=[4, 2]", "rising"]),
    (["analysis=errors", "analysis.errors.at=[]"], ["analysis.errors.at=[]", "rising"]),
    (["analysis=errors", "analysis.errors.margin=1"], ["analysis.errors.margin=1", "(0, 1)"]),
    (["analysis=errors", "analysis.errors.at=[192]"], ["analysis.errors.at=[192]", "trace_max_tokens=192"]),
    (["analysis=coverage", "analysis.coverage.traces=0"], ["analysis.coverage.traces=0", "1 or more"]),
    (["analysis=kl", "analysis.kl.longest=0"], ["analysis.kl.longest=0", "1 or more"]),
    (["analysis=kl", "analysis.temperature=0"], ["analysis.temperature=0", "above 0"]),
    (["analysis=kl", "sample.temperature=0"], ["sample.temperature=0", "analysis.temperature"]),
    (["analysis=kl", "analysis.task=gsm8k"], ["analysis.task=gsm8k", "arithmetic"]),
    (["analysis=coverage", "eval=gpqa", "analysis.task=gpqa"], ["analysis.task=gpqa", "numbers and closed forms"]),
    (["analysis=errors", "data=jsonl", "data.path=x.jsonl"], ["analysis.errors", "data.answer_field=COLUMN"]),
    (["seed=-1"], ["seed=-1", "0 or more"]),
    (["compute.devices=0"], ["compute.devices=0", "1 or more"]),
    (["compute.parallel=0"], ["compute.parallel=0", "1 or more"]),
    (["compute.retries=-1"], ["compute.retries=-1", "0 or more"]),
    (["compute=slurm", "compute.slurm.array=0"], ["compute.slurm.array=0", "1 or more"]),
    (["compute=slurm", "compute.slurm.gpu.cpus=0"], ["cpus=0", "1 or more, or null"]),
    (["compute=slurm", "+compute.slurm.gpu.foo=5"], ["compute.slurm.gpu.foo=5", "no such key"]),
    (["compute=slurm", "+compute.slurm.stages.train.minuts=50"], ["compute.slurm.stages.train.minuts: ", "ResourcesConfig"]),
    (["compute=slurm", "compute.slurm.stages.train.minutes=2"], ["compute.slurm.stages.train.minutes=2", "signal_s=120"]),
    (["train.seed=-1"], ["train.seed=-1", "0 or more"]),
])
def test_refused_by_parse(overrides, names, parse):
    with pytest.raises(ConfigError) as refusal:
        parse(*overrides)
    for name in names:
        assert name in str(refusal.value)
    assert refusal.value.remedy


@pytest.mark.parametrize("overrides", [
    ["sample.trace_max_tokens=7"],  # prefixes have a limit of their own
    ["sample.trace_ratio=1", "prefix.ratio=1", "sample.trace_max_tokens=7"],  # there are no prefixes
    ["sample.trace_ratio=1", "sample.trace_max_tokens=8"],
    ["method=sft", "sample.trace_max_tokens=7"],
])
def test_whole_traces_may_be_shorter_than_a_prefix_that_is_not_cut_from_them(overrides, parse):
    parse(*overrides)


@pytest.mark.parametrize(("override", "names"), [
    ("prefix.lenn=3", ["prefix.lenn", "'len'"]),
    ("prefix.len=three", ["prefix.len", "three"]),
    ("sample.engine=vlm", ["sample.engine", "vlm", "vllm"]),
    ("model=qwen_mth", ["model=qwen_mth", "'qwen_math'"]),
    ("modle=tiny", ["modle", "'model'"]),
    ("prefix.len=", ["prefix.len"]),
    ("data.pth=x.jsonl", ["data.pth=x.jsonl: ", "in data: ", "'path'"]),
    ("data.arithmetic.questons=5", ["data.arithmetic.questons=5: ", "in data.arithmetic: ", "'questions'"]),
    ("data.path.foo=3", ["data.path.foo=3: ", "data.path=VALUE"]),
    ("prefix.len.foo=3", ["prefix.len.foo=3: ", "prefix.len=VALUE"]),
    ("prefix=16", ["prefix=16: ", "a group of keys", "prefix.len,"]),
    ("data.arithmetic=7", ["data.arithmetic=7: ", "a group of keys", "data.arithmetic.questions,"]),
    ("data={pth: x}", ["data.pth=x: ", "'path'"]),
    ("eval.tasks=3", ["eval.tasks=3: ", "eval.tasks.KEY=VALUE"]),
    ("eval.tasks.arithmetics.limit=3", ["eval.tasks.arithmetics.limit=3: ", "'arithmetic'", "+eval.tasks.arithmetics="]),
    ("eval.tasks.arithmetic.limt=3", ["eval.tasks.arithmetic.limt=3: ", "'limit'"]),
    ("model=[tiny,qwen_mth]", ["model=qwen_mth: ", "'qwen_math'"]),
    ("judge=omnijudge", ["judge=omnijudge: ", "'omni_judge'"]),
    ("seed=x", ["seed=x: ", "a whole number"]),
    ("seed=null", ["seed=null: ", "a whole number"]),
    ("sample.n=1.5", ["sample.n=1.5: ", "a whole number"]),
    ("train.lr=fast", ["train.lr=fast: ", "a number"]),
    ("plan=maybe", ["plan=maybe: ", "true or false"]),
    ("train.precision=bf16_mix", ["train.precision=bf16_mix: ", "'bf16_mixed'"]),
    ("=3", ["=3: ", "no key"]),
    ("prefix.len", ["prefix.len: ", "prefix.len=VALUE"]),
    ("prefix.len=8,", ["prefix.len=8,: ", "comma", "-m prefix.len=8"]),
    ("prefix.len=range(8", ["prefix.len=range(8: ", "( and )"]),
    ("train.lr=[1", ["train.lr=[1: ", "[ and ]"]),
    ("prefix.suffix=it's", ["prefix.suffix=it's: ", "quote"]),
    ("prefix.len=choice()", ["prefix.len=choice(): ", "empty choice"]),
    ("prefix.len=8,16", ["prefix.len=8,16: ", "run.py -m"]),
    ("prefix.len=range(8,16)", ["prefix.len=range(8,16): ", "run.py -m"]),
    ("~prefix.len", ["~prefix.len: ", "another value"]),
    ("~nope", ["~nope: ", "no such key"]),
    ("hydra.foo=3", ["hydra.foo=3: ", "--cfg hydra"]),
    ("compute.slurm.stages.trian.minutes=50", ["compute.slurm.stages.trian.minutes=50: ", "'train'"]),
    ("+compute.slurm.stages.trian.minutes=50", ["+compute.slurm.stages.trian.minutes=50: ", "'train'"]),
    ("+compute.slurm.stages={trian:{minutes:50}}", ["compute.slurm.stages.trian: there is no such stage", "'train'"]),
    ("compute.slurm.stages.train.minuts=50", ["compute.slurm.stages.train.minuts=50: ", "'minutes'"]),
])
def test_refused_while_composing(override, names, compose):
    from upft.composition import parse
    from upft.refusals import explain

    slurm = ["compute=slurm"] if "slurm" in override else []
    with pytest.raises(Exception) as refusal:  # Hydra's and OmegaConf's own kinds
        parse(compose(*slurm, override))
    error = refusal.value
    message = str(error) if isinstance(error, ConfigError) else explain(error)
    assert message is not None
    assert message.count("remedy:") == 1
    assert "hydra.cc" not in message
    for name in names:
        assert name in message


def test_a_key_of_a_part_that_the_option_has_not_names_the_options_that_have_it(compose):
    """Hydra stops at an assertion of OmegaConf's there, which names neither."""
    from upft.refusals import explain

    with pytest.raises(AssertionError) as refusal:
        compose("data=jsonl", "data.arithmetic.questions=60")
    assert explain(refusal.value) == ("data.arithmetic.questions=60: data.arithmetic is null here, which has no keys\n"
                                      "  remedy: choose what has it (data=arithmetic)")


@pytest.mark.parametrize("defect", [AssertionError("a defect"), ValueError("hydra.errors"), KeyError("override")])
def test_a_defect_is_not_explained_away(defect):
    from upft.refusals import explain

    with pytest.raises(type(defect)) as caught:
        raise defect
    assert explain(caught.value) is None
