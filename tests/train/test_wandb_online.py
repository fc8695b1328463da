"""Runs online: W&B's own client against a server on this machine (`wandb_server`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tracking import KEY, WANDB
from wandb_server import Server, serving

from upft import tracking, wandb_run
from upft.console import Console
from upft.tracking import Card
from upft.wandb_run import Bundle, Story

POINTS = [{"step": step, "loss": 1.0 / step} for step in range(1, 7)]
CARD = Card("cafe01", "train upft, tiny on arithmetic t=8", "train", {"prefix": {"len": 8}}, ["tiny", "upft"])
TRAINING = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_wandb_online import CARD, POINTS, WANDB
from upft import tracking

done, stop, out = int(sys.argv[1]), int(sys.argv[2]), Path({out!r})
before = tracking.cut(out, done)
with tracking.open_tracker(WANDB, out, CARD, None, out.parent) as tracker:
    tracker.catch_up(before)
    for point in POINTS[done:stop]:
        tracker.log(point)
    if stop < len(POINTS):
        print("there", flush=True)
        time.sleep(300)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """One that knows our key; W&B's service of this process starts and ends with it."""
    import wandb

    with serving() as found:
        monkeypatch.delenv("WANDB_MODE", raising=False)
        for name, value in (("WANDB_API_KEY", KEY), ("WANDB_BASE_URL", found.url), ("WANDB_DIR", str(tmp_path)),
                            ("WANDB_DATA_DIR", str(tmp_path / "data")), ("NETRC", str(tmp_path / "none"))):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(wandb_run, "_GIVEN_UP", set())
        wandb.teardown()
        yield found
        wandb.teardown()


@pytest.mark.slow
def test_a_killed_training_goes_on_as_the_same_run(server: Server, tmp_path: Path) -> None:
    """Killed after step 4, its last checkpoint is of step 2: steps 3 and 4 are done again, and shown once."""
    script = TRAINING.format(here=str(Path(__file__).parent), out=str(tmp_path / "out"))
    path = os.pathsep.join([str(Path(tracking.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    first = subprocess.Popen([sys.executable, "-c", script, "0", "4"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "there\n"
        until = time.monotonic() + 60
        while "cafe01" not in server.runs or len(server.runs["cafe01"].history) < 4:
            assert time.monotonic() < until, "the server was not told while the training went on"
            time.sleep(0.1)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    subprocess.run([sys.executable, "-c", script, "2", "6"], check=True, env=environment, timeout=120)
    [run] = server.runs.values()
    assert (run.id, run.starts) == ("cafe01", 2)
    assert run.steps == [1, 2, 3, 4, 5, 6]
    assert run.summary["step"] == 6
    assert run.exits[-1] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / tracking.FILE).read_text().splitlines()]
    assert lines == POINTS


def test_points_that_a_kill_has_kept_from_the_server_are_made_up_for(server: Server, tmp_path: Path) -> None:
    """The first start got as far as step 2 there, metrics.jsonl to step 4."""
    with tracking.open_tracker(WANDB, tmp_path / "a", CARD, Console(), tmp_path) as tracker:
        for point in POINTS[:2]:
            tracker.log(point)
    with tracking.open_tracker(WANDB, tmp_path / "b", CARD, Console(), tmp_path) as tracker:
        tracker.catch_up(POINTS[:4])
        for point in POINTS[4:]:
            tracker.log(point)
    assert server.runs["cafe01"].steps == [1, 2, 3, 4, 5, 6]


def test_what_is_told_at_the_end_joins_the_live_run(server: Server, tmp_path: Path) -> None:
    """Name, tags and points stay; summary, table and artifacts come; an artifact told of twice is one version."""
    with tracking.open_tracker(WANDB, tmp_path / "out", CARD, Console(), tmp_path) as tracker:
        for point in POINTS:
            tracker.log(point)
    live = dict(server.runs["cafe01"].told)
    (tmp_path / "file.json").write_text("{}")
    made = Bundle("train-cafe01", "model", {"label": "train upft"}, {"file.json": tmp_path / "file.json"}, {})
    base = Bundle("model-Qwen.Qwen2.5-Math-7B-b101308fe89651ea5ce0", "model", {"label": "qwen_math"}, {},
                  {"weights": "hf://Qwen/Qwen2.5-Math-7B@b101308fe89651ea5ce0"})
    whole = Story(CARD, POINTS, {"train/rows": 3}, ("id",), [["q1"]], made, [base])
    assert wandb_run.publish(WANDB, whole, tmp_path, Console())
    evaluation = Bundle("evaluate-beef02", "evaluation", {"label": "evaluate"}, {}, {})
    after = Story(Card("beef02", "evaluate", "evaluate"), (), {}, (), (), evaluation, [made, base])
    assert wandb_run.publish(WANDB, after, tmp_path, Console())

    run, later = server.runs["cafe01"], server.runs["beef02"]
    assert {name: run.told[name] for name in ("displayName", "tags", "jobType", "groupName")} == {
        name: live[name] for name in ("displayName", "tags", "jobType", "groupName")}
    assert (run.told["displayName"], run.told["tags"], run.config["prefix"]) == (CARD.name, ["tiny", "upft"], {"len": 8})
    assert run.steps == [1, 2, 3, 4, 5, 6]
    assert (run.summary["train/rows"], run.summary["step"]) == (3, 6)
    assert run.summary["samples"]["_type"] == "table-file"
    assert sorted(run.made) == ["run-cafe01-samples", "train-cafe01"]
    assert run.used == [base.name]
    assert (later.made, sorted(later.used)) == (["evaluate-beef02"], [base.name, "train-cafe01"])
    assert {name: one.kind for name, one in server.artifacts.items()} == {
        "run-cafe01-samples": "run_table", "train-cafe01": "model", base.name: "model", "evaluate-beef02": "evaluation"}
    assert all(list(one.versions.values()) == [True] for one in server.artifacts.values())
