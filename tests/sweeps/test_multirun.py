"""All cells at once: the short way to compose them is Hydra's own, cell by cell, and a bad one stops everything."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from upft import composition, multirun
from upft.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent.parent
CELLS = [
    ["sweep=tiny_prefix_length", "prefix.len=4", "seed=1"], ["sweep=tiny_prefix_length", "prefix.len=8", "seed=1"],
    ["train=lora", "train.lora.rank=4"], ["train=lora", "train.lora.rank=8"], ["train=default", "train.lr=1e-5"],
    ["data=jsonl", "data.path=x.jsonl"], ["model.path=null", "model.id=a/b", f"model.revision={'a' * 40}"],
    ["eval=gsm8k", "eval.n=4", "eval.temperature=0.5"], ["compute=slurm", "+compute.slurm.sbatch.qos=x"],
    ["+eval.tasks.arithmetic={limit:5}"], ["prefix.len=auto"], ["~eval.tasks.arithmetic.standard.n"],
    ["eval=gsm8k", "eval.n=2", "eval.temperature=0.5"], ["judge=model", "judge.path=y", "eval=paper"],
]


@pytest.fixture
def context(compose):
    """What Hydra hands a launcher: (context, the multirun's own configuration)."""
    loader = GlobalHydra.instance().config_loader()
    return SimpleNamespace(config_loader=loader), loader.load_configuration("config", ["seed=0"], RunMode.MULTIRUN)


def test_composed_as_hydra_does(context, compose):
    composer = multirun.Composer(*context)
    for overrides in [*CELLS, *CELLS]:  # twice: the second time from what is known
        try:
            expected = OmegaConf.to_container(compose(*overrides), resolve=True)
        except Exception as error:
            with pytest.raises(type(error)):
                composer.compose(overrides)
            continue
        assert OmegaConf.to_container(composer.compose(overrides), resolve=True) == expected


def test_parsed_as_one_by_one(context, compose):
    good = [cell for cell in CELLS if not cell[0].startswith("~")]
    assert multirun.configs(*context, good) == [composition.parse(compose(*cell)) for cell in good]


def test_a_cells_command_is_its_own_overrides():
    cell = ["hydra/launcher=slurm", "+hydra.job.num=1", "sweep=tiny_prefix_length", "prefix.suffix='a b'", "compute.parallel=2",
            "++compute.wait=true", "compute.parallelism=3", "+x.token=abc", "seed=1"]
    assert shlex.split(multirun.command(cell)) == [
        "python", "run.py", "sweep=tiny_prefix_length", "prefix.suffix='a b'", "compute.parallelism=3", "+x.token=REDACTED",
        "seed=1"]


@pytest.mark.parametrize(("bad", "names"), [
    (["prefix.len=0"], ["cell 3 of 4", "prefix.len=0", "1 or more"]),
    (["train.lr=high"], ["cell 3 of 4", "train.lr", "high"]),
    (["model=qwen"], ["cell 3 of 4", "model=qwen", "qwen_math"]),
    (["+prefix.foo=1"], ["cell 3 of 4", "prefix.foo=1", "no such key"]),
    (["sample.max_tokens=4"], ["cell 3 of 4", "sample.max_tokens=4", "prefix.len=8"]),
])
def test_a_bad_cell_is_named(bad, names, context):
    with pytest.raises(ConfigError) as refusal:
        multirun.configs(*context, [[*one, "run.ids=true"] for one in (["seed=0"], ["seed=1"], bad, ["seed=2"])])
    assert "run.ids" not in str(refusal.value)
    for name in names:
        assert name in str(refusal.value)


def test_cells_are_named_by_what_sets_them_apart(context, tmp_path):
    overrides = [["data.limit=5", f"prefix.len={t}", f"seed={s}"] for t in (4, 8) for s in (0, 1)]
    configs = multirun.configs(*context, overrides)
    cells = multirun.cells(configs, overrides)
    assert [cell.name for cell in cells] == ["prefix.len=4 seed=0", "prefix.len=4 seed=1", "prefix.len=8 seed=0",
                                             "prefix.len=8 seed=1"]
    nowhere = [["data=jsonl", "data.path=nowhere.jsonl"]]
    configs = multirun.configs(*context, nowhere)
    with pytest.raises(DataError, match=r"data\.path=nowhere\.jsonl"):
        multirun.cells(configs, nowhere)
