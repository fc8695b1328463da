"""run.export: what is handed on is whole, loads, and carries the scores; what is there already is never touched.

The store is filled by the store itself, the trained model is a real one and the report is made by its stage; only
the answers are written by hand, so that no engine has to run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from upft.config import Config
from upft.console import Console
from upft.errors import StoreError
from upft.hashing import Hasher
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import Plan, Stage, plan
from upft.sampler import EnginePool
from upft.specs import EvaluateSpec, TrainSpec
from upft.stages import Host
from upft.store import Store

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "upft" / "toy" / "weights"
RIGHT = {"base": 20, "trained": 30}
"""Right answers of 40."""
HOST = Host(ComputeConfig(), TrackerConfig(), Console(quiet=True), EnginePool(ComputeConfig()))
"""A report looks at no machine."""


def settings(store: Path, *more: str) -> list[str]:
    return ["sample.engine=transformers", "eval.engine=transformers", f"run.store={store}", "compute.threads=1", *more]


def fill(store: Store, cell: Plan) -> None:
    """Every artifact of the cell, as if it had been run."""
    store.prepare()
    for stage in cell.stages:
        inputs = {role: store.path(one.name, one.key) for role, one in stage.inputs.items()}
        store.build(stage.name, stage.key, stage.identity, lambda out, s=stage, i=inputs: make(s, i, out))


def make(stage: Stage, inputs: dict[str, Path], out: Path) -> None:
    spec = stage.spec
    if stage.name == "report":
        from upft.stages import report

        report.run(spec, inputs, out, HOST)
        return
    Ledger(sampled_tokens=111 if stage.name == "sample" else 0, seconds=2.0, peak_memory_bytes=2**28).write(out)
    if stage.name == "sample":
        (out / "samples.json").write_text(json.dumps({"questions": 96}))
    elif stage.name == "build":
        (out / "rows.json").write_text(json.dumps({"prefix_len": 8, "prefix_len_from": "config", "prefix_rows": 86,
                                                   "trace_rows": 10, "mean_supervised": 15.2}))
    elif isinstance(spec, TrainSpec):
        train(spec, out)
    elif isinstance(spec, EvaluateSpec):
        right = RIGHT["trained" if stage.inputs else "base"]
        with (out / "answers.jsonl").open("w") as stream:
            for n in range(40):
                stream.write(json.dumps({"id": f"{n:02d}", "index": 0, "question": "?", "gold": "1", "completion": "1",
                                         "extracted": "1", "right": n < right, "finish_reason": "stop", "tokens": 5}) + "\n")


def train(spec: TrainSpec, out: Path) -> None:
    import torch

    from upft import adapters, models

    model = models.load_model(WEIGHTS, torch.float32)
    if spec.lora is not None:
        adapters.attach(model, spec.lora, spec.seed)
        adapters.save(model, out / "adapter", WEIGHTS)
        if spec.lora.merge:
            adapters.merge(model)
    if spec.lora is None or spec.lora.merge:
        models.save_model(model, None, out / "model", WEIGHTS)
    (out / "train.json").write_text(json.dumps({"steps": 3, "first_loss": 1.5, "last_loss": 0.5}))


@pytest.fixture
def cell(parse: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """cell(*overrides) -> the config of a cell whose every stage is a hit."""

    def make_cell(*more: str) -> Config:
        config = parse(*settings(tmp_path / "store", *more))
        fill(Store(config.run.store), plan(config, Hasher()))
        return config

    return make_cell


def run(config: Config) -> None:
    from upft import pipeline

    pipeline.main(config, Console(quiet=True))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


@pytest.mark.parametrize("form", ["full", "merged", "adapter"])
def test_what_is_exported_loads_generates_and_tells_its_scores(form: str, cell: Callable[..., Config], tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "deep" / "handed-on"
    choice = {"full": [], "merged": ["train=lora", "train.lora.merge=true"], "adapter": ["train=lora"]}[form]
    config = cell(f"run.export={out}", *choice)
    run(config)
    assert [p.name for p in out.parent.iterdir()] == ["handed-on"]
    if form == "adapter":
        assert not (out / "config.json").exists()
        model = AutoPeftModelForCausalLM.from_pretrained(out)
    else:
        model = AutoModelForCausalLM.from_pretrained(out)
        assert (out / "adapter").is_dir() == (form == "merged")
    if form == "merged":
        assert "library_name: \"peft\"" in (out / "adapter" / "README.md").read_text()
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(WEIGHTS), out / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": "Tom has 3 pens. He buys 4. How many pens?"}],
                                           add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**inputs, max_new_tokens=8).shape[1] > inputs["input_ids"].shape[1]

    card = (out / "README.md").read_text()
    for told in ("# tiny, UPFT", "| arithmetic | 40 | 50.0% [", "| 75.0% [", "+25.0 [", "gain, p ",
                 "4 answers a question, temperature 1, top_p", "tokens, transformers in float32, seed 0",
                 "| sample arithmetic | — | 111 |", "| evaluate base: arithmetic |", "| all | ", "generated word problems"):
        assert told in card, told
    assert str(tmp_path) not in card
    assert str(ROOT) not in card
    blocks = json.loads(re.findall(r"```json\n(.*?)```", card, flags=re.DOTALL)[0])
    assert [title.split()[0] for title in blocks] == ["sample", "diagnose", "evaluate", "build", "train", "evaluate"]

    before = contents(out)
    run(config)
    assert contents(out) == before, "a second run leaves an export alone"


def test_a_folder_that_holds_anything_else_is_refused_before_anything_is_spent(
        parse: Callable[..., Config], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    config = parse(*settings(tmp_path / "store", f"run.export={out}"))
    with pytest.raises(StoreError, match=r"run\.export=.*out is not empty"):
        run(config)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    config.run.export = str(out / "thesis.tex")
    with pytest.raises(StoreError, match=r"thesis\.tex is a file"):
        run(config)
    config.run.export = str(out / "thesis.tex" / "inside")
    with pytest.raises(StoreError, match="cannot be written"):
        run(config)
    assert not (tmp_path / "store").exists()


def test_another_cells_export_and_a_damaged_one_are_refused(cell: Callable[..., Config], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty: fine
    config = cell(f"run.export={out}")
    run(config)
    with pytest.raises(StoreError, match="holds the export of another cell"):
        run(cell(f"run.export={out}", "train.lr=0.25"))
    (out / "README.md").write_text("my own words")  # a card may be edited
    run(config)
    assert (out / "README.md").read_text() == "my own words"
    (out / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"its model\.safetensors is missing or was changed"):
        run(config)
    assert not (out / "model.safetensors").exists()


def test_what_a_killed_export_left_is_cleared_and_a_failed_one_leaves_nothing(
        cell: Callable[..., Config], tmp_path: Path) -> None:
    import resource

    out, left = tmp_path / "exports" / "out", tmp_path / "exports" / ".out.partial"
    config = cell(f"run.export={out}")
    left.mkdir(parents=True)
    (left / "half.safetensors").write_text("torn")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))  # less than the weights need
    try:
        with pytest.raises(StoreError, match="cannot be written: File too large") as caught:
            run(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "in the store" in caught.value.remedy
    assert list(out.parent.iterdir()) == []
    run(config)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert "half.safetensors" not in contents(out)


def test_a_repeated_run_takes_a_second_and_no_torch(cell: Callable[..., Config], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cell("train=lora")
    code = ("import sys, runpy; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally: print('heavy:', sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))")
    command = [sys.executable, "-c", code, str(ROOT / "run.py"),
               *settings(tmp_path / "store", "train=lora", f"run.export={out}")]
    said = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append(" ".join(done.stdout.split()))
        assert "7 stages, 0 to run" in said[-1]
        assert "heavy: []" in said[-1]
    assert f"model: {out}" in said[0]
    assert "exported before" not in said[0]
    assert f"model: {out} (exported before)" in said[1]
