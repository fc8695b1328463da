"""The front door as a person meets it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "upft" / "toy" / "weights"


def run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run([sys.executable, str(ROOT / "run.py"), *arguments], capture_output=True, text=True, cwd=cwd,
                          env=clean | env, timeout=300)


def test_help_explains_the_groups_and_loads_no_torch():
    out = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert out.returncode == 0
    for word in ("prefix.len", "plan=true", "model       ", "sweep       ", "tiny_prefix_length"):
        assert word in out.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in out.stderr.splitlines() if line.startswith("import time")}
    assert "hydra" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "vllm", "numpy", "pytorch_lightning", "wandb"})


def test_hydras_own_flags_work():
    cfg = run("--cfg", "job", "prefix.len=24")
    assert cfg.returncode == 0
    assert "  len: 24" in cfg.stdout
    info = run("--info", "defaults")
    assert info.returncode == 0
    assert "model/tiny" in info.stdout


def test_the_flag_of_a_sweep_may_stand_anywhere(tmp_path: Path) -> None:
    out = run("prefix.len=4", "-m", "seed=0,1", "plan=true", f"run.store={tmp_path}")
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("2 cells")


def bad(tmp_path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> (arguments, what the message must hold)."""
    model = tmp_path / "model"
    bare = tmp_path / "bare"
    templateless = tmp_path / "templateless"
    garbled = tmp_path / "garbled"
    for folder in (model, templateless, garbled):
        shutil.copytree(WEIGHTS, folder)
    bare.mkdir()
    (templateless / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer_config = json.loads((templateless / "tokenizer_config.json").read_text())
    tokenizer_config.pop("chat_template", None)
    (templateless / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (garbled / "model.safetensors").write_bytes(b"\x10" * 100)

    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    good = json.dumps({"question": "Ana has 3 pens. She buys 4 more. How many pens does Ana have now?"})
    jsonl = ["data=jsonl"]
    return {
        "key of another option": ([*jsonl, "data.arithmetic.questions=60"],
                                  ["data.arithmetic.questions=60", "data=arithmetic"]),
        "a group as a value": (["prefix=16"], ["prefix=16", "prefix.len"]),
        "several values without -m": (["prefix.len=8,16"], ["prefix.len=8,16", "-m"]),
        "unread": (["prefix.len=range(8"], ["prefix.len=range(8", "( and )"]),
        "unknown key": (["prefix.lenn=8"], ["prefix.lenn", "'len'"]),
        "forced unknown key": (["+prefix.foo=1"], ["prefix.foo=1", "no such key"]),
        "unknown group": (["modle=tiny"], ["modle", "'model'"]),
        "unknown option": (["model=qwen"], ["model=qwen", "qwen_math"]),
        "wrong type": (["prefix.len=short"], ["prefix.len", "short", "or auto"]),
        "wrong choice": (["sample.engine=vlm"], ["sample.engine", "vlm", "transformers"]),
        "zero": (["prefix.len=0"], ["prefix.len=0", "1 or more"]),
        "above one": (["prefix.ratio=1.5"], ["prefix.ratio=1.5", "0 to 1"]),
        "missing file": ([*jsonl, "data.path=nowhere.jsonl"], ["data.path=nowhere.jsonl", "no such file"]),
        "no file": (jsonl, ["data.path=null", "data.path=FILE"]),
        "malformed line": ([*jsonl, "data.path=" + file("torn.jsonl", good + "\n{\n")], ["torn.jsonl line 2", "not JSON"]),
        "row without question": ([*jsonl, "data.path=" + file("bare.jsonl", good + '\n{"q": 1}\n')],
                                 ["bare.jsonl line 2", "no 'question'", "question_field"]),
        "empty question": ([*jsonl, "data.path=" + file("blank.jsonl", '{"question": " "}\n')],
                           ["blank.jsonl line 1", "'question' is empty"]),
        "empty set": ([*jsonl, "data.path=" + file("none.jsonl", "")], ["none.jsonl", "holds no questions"]),
        "all too long": ([*jsonl, "data.path=" + file("long.jsonl", json.dumps({"question": "pens and " * 600}) + "\n")],
                         ["all 1 questions are longer", "512"]),
        "no folder": (["model.path=nowhere"], ["model.path=nowhere", "no such folder"]),
        "no model": ([f"model.path={bare}"], [f"model.path={bare}", "no config.json"]),
        "no chat template": ([f"model.path={templateless}"], [str(templateless), "chat template"]),
        "garbled weights": ([f"model.path={garbled}"], [str(garbled)]),
        "store not writable": (["run.store=/proc/nowhere"],
                               ["run.store=/proc/nowhere", "cannot be written", "run.store=DIR"]),
        "task without gold": (["eval=gsm8k", "eval.tasks.gsm8k.path="
                               + file("gold.jsonl", '{"question": "a", "answer": "3"}\n')],
                              ["gold.jsonl line 1", "####"]),
        "hub out of reach": (["model=qwen_math"], ["Qwen/Qwen2.5-Math-7B-Instruct", "model.path=DIR"]),
    }


@pytest.mark.slow
def test_bad_input_gets_one_message_and_no_traceback(tmp_path):
    store = tmp_path / "store"
    for name, (arguments, words) in bad(tmp_path).items():
        engine = ["sample.engine=transformers", "eval.engine=transformers"]
        mine = [] if any(a.startswith("run.store") for a in arguments) else [f"run.store={store}"]
        out = run(*arguments, *mine, *(engine if name != "wrong choice" else []))
        broke = name == "store not writable"  # another try may help
        assert out.returncode == (1 if broke else 2), (name, out.stdout, out.stderr)
        assert "Traceback" not in out.stderr, (name, out.stderr)
        assert out.stderr.count("error:") == 1, (name, out.stderr)
        assert "Error executing job" not in out.stderr, (name, out.stderr)
        assert "remedy:" in out.stderr, (name, out.stderr)
        for word in words:
            assert word in out.stderr, (name, word, out.stderr)
    assert [p for p in store.glob("*/*") if p.parent.name != ".locks" and not p.name.endswith(".partial")] == []


def test_json_to_the_last_word(tmp_path):
    """From a value that the configuration refuses, from a file that the plan does not find, of a cell and of a multirun."""
    for arguments, what in ((["prefix.len=0"], "prefix.len=0"), (["data=jsonl", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
                            (["-m", "prefix.len=8,0"], "prefix.len=0")):
        out = run(*arguments, "run.console=json", f"run.store={tmp_path}")
        assert out.returncode == 2
        said = [json.loads(line) for line in out.stderr.splitlines()]
        assert [one["level"] for one in said] == ["error"], out.stderr
        assert what in said[0]["text"]
        assert said[0]["remedy"]
        assert [json.loads(line)["level"] for line in out.stdout.splitlines()] in ([], ["info"])


def test_traceback_on_request():
    out = run("prefix.len=0", HYDRA_FULL_ERROR="1")
    assert out.returncode == 1
    assert "Traceback" in out.stderr
    assert "prefix.len=0" in out.stderr


def test_bad_cell_of_a_multirun_names_itself(tmp_path):
    out = run("-m", "prefix.len=8,0", "plan=true", f"run.store={tmp_path}")
    assert out.returncode == 2
    assert "prefix.len=0" in out.stderr
