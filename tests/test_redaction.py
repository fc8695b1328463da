"""What is noted of a command holds no secret, and everything else of it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from test_plan import leaves

from upft import redaction
from upft.redaction import HIDDEN
from upft.store import Store

TOKEN = "hf_" + "aB3" * 11  # of the form that Hugging Face issues
WEIGHTS = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(("typed", "noted"), [
    ([f"hydra.job.env_set.WANDB_API_KEY={WEIGHTS}", "seed=1"], ["hydra.job.env_set.WANDB_API_KEY=REDACTED", "seed=1"]),
    ([f"+hydra.job.env_set={{WANDB_API_KEY:{WEIGHTS},A:1}}"], ["+hydra.job.env_set={WANDB_API_KEY:REDACTED,A:1}"]),
    (["+hydra.job.env_set={A: 1, 'HF_TOKEN': 'abc def'}"], ["+hydra.job.env_set={A: 1, 'HF_TOKEN': REDACTED}"]),
    ([f"WANDB_API_KEY={WEIGHTS}"], [f"WANDB_API_KEY={HIDDEN}"]),
    (["db_password=it's, or not=1"], [f"db_password={HIDDEN}"]),
    (["apiKey=abc", "clientSecret=abc", "HF-TOKEN=abc"], [f"{n}={HIDDEN}" for n in ("apiKey", "clientSecret", "HF-TOKEN")]),
    (["--token", "abc", "--hf-token=abc", "--token", "--seed", "1"],
     ["--token", HIDDEN, f"--hf-token={HIDDEN}", "--token", "--seed", "1"]),
    ([f"model.path={TOKEN}", f"runs/{TOKEN}/x"], [f"model.path={HIDDEN}", f"runs/{HIDDEN}/x"]),
    ([f"tracker.tags=[{TOKEN},b]"], [f"tracker.tags=[{HIDDEN},b]"]),
    (["data.path=https://me:pa55@host/x.jsonl", "data.path=s3://bucket/me@x"],
     [f"data.path=https://{HIDDEN}@host/x.jsonl", "data.path=s3://bucket/me@x"]),
    (["a=ghp_" + "a1" * 18, "a=sk-proj-" + "a1" * 18, "a=AKIA" + "A1" * 8], [f"a={HIDDEN}"] * 3),
])
def test_secrets_are_hidden(typed: list[str], noted: list[str]) -> None:
    assert redaction.command(typed) == noted


@pytest.mark.parametrize("word", [
    "-m", "prefix.len=8,16", "sample.max_tokens=512", "compute.micro_batch_tokens=8192", "model.revision=" + WEIGHTS,
    "data.question_field=keyword", "prefix.suffix=' Give the key: what is asked'", "run.store=/data/tokens/sk-1", "monkey=1",
    "data.path=C:/keys/a.jsonl", "prefix.unit=token", "+eval.tasks.mine={path: a.jsonl, answer_field: gold}", "secret=",
    "model.system_prompt='A hf_dataset: solve'",
])
def test_all_else_stays_as_it_was_typed(word: str) -> None:
    assert redaction.command([word]) == [word]


def test_no_setting_of_this_project_is_taken_for_a_secret() -> None:
    words = [f"{key}=12" for key, _ in leaves()]
    assert len(words) > 100
    assert redaction.command(words) == words


def test_an_artifact_notes_the_command_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/here/run.py", f"hydra.job.env_set.WANDB_API_KEY={WEIGHTS}", "prefix.len=8", TOKEN])
    store = Store(tmp_path)
    store.prepare()
    artifact, _ = store.build("sample", "k", {"spec": 1}, lambda out: (out / "samples").write_text("1"))
    assert shlex.split(json.loads((artifact.path / "provenance.json").read_text())["command"]) == [
        "python", "run.py", f"hydra.job.env_set.WANDB_API_KEY={HIDDEN}", "prefix.len=8", HIDDEN]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in (WEIGHTS, TOKEN)), path
