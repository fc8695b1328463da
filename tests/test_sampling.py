"""The sampling stage through plan and store: what earlier samplings hold is not drawn again; prefix.len=auto."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft.console import Console
from upft.pipeline import walk
from upft.plan import Plan, plan
from upft.store import Store

ROOT = Path(__file__).parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=80",
         "eval.tasks.arithmetic.arithmetic.questions=20", "train.batch_size=16", "compute.threads=1"]

pytestmark = pytest.mark.slow


@pytest.fixture
def sample(parse: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[list[dict], dict, dict]]:
    """sample(*overrides, store=NAME) -> (rows, summary, ledger) of the sampling stage, built in that store."""

    def make(*overrides: str, store: str = "store") -> tuple[list[dict], dict, dict]:
        config = parse(*SMALL, *overrides)
        stages = plan(config).stages
        last = max(i for i, stage in enumerate(stages) if stage.name == "sample")
        needed = tuple(stage for stage in stages[:last + 1] if stage.name != "evaluate")
        where = Store(tmp_path / store)
        where.prepare()
        folder = walk(Plan(needed), where, config.compute, config.tracker, Console(quiet=True))[needed[-1].key].path
        return ([json.loads(line) for line in (folder / "samples.jsonl").open()],
                json.loads((folder / "samples.json").read_text()), json.loads((folder / "ledger.json").read_text()))

    return make


def test_more_traces_draw_only_the_missing_ones(sample: Callable) -> None:
    one, _, first = sample()
    three, summary, cost = sample("sample.n=3")
    fresh, alone, whole = sample("sample.n=3", store="another")
    assert three == fresh, "where they come from changes nothing"
    assert [row for row in three if row["index"] == 0] == one
    assert (summary["taken_from_other_samplings"], alone["taken_from_other_samplings"]) == (80, 0)
    assert (cost["reused_tokens"], whole["reused_tokens"]) == (first["sampled_tokens"], 0)
    assert cost["sampled_tokens"] == whole["sampled_tokens"] == sum(len(row["ids"]) for row in three)


def test_longer_samples_and_fewer_questions_are_served_too(sample: Callable) -> None:
    sample("prefix.len=12", "prefix.ratio=0.2")
    shorter, summary, _ = sample("prefix.len=5", "data.arithmetic.questions=50")
    assert summary["taken_from_other_samplings"] == len(shorter) == 50
    assert shorter == sample("prefix.len=5", "data.arithmetic.questions=50", store="another")[0]
    assert {len(row["ids"]) for row in shorter if row["kind"] == "prefix"} == {5}
    longer, summary, _ = sample("prefix.len=20", "prefix.ratio=0.2")
    ended = summary["taken_from_other_samplings"]
    assert 0 < ended < 80, "whole traces, and what ended by itself within 12 tokens"
    assert longer == sample("prefix.len=20", "prefix.ratio=0.2", store="another")[0]


def test_another_temperature_or_seed_takes_nothing(sample: Callable) -> None:
    sample()
    assert sample("sample.temperature=0.8")[1]["taken_from_other_samplings"] == 0
    assert sample("seed=1")[1]["taken_from_other_samplings"] == 0


def test_a_damaged_sampling_gives_nothing(sample: Callable, tmp_path: Path) -> None:
    sample()
    [rows] = tmp_path.glob("store/sample/*/samples.jsonl")
    rows.write_text(rows.read_text().replace("[", "[ ", 1))
    assert sample("sample.n=2")[1]["taken_from_other_samplings"] == 0


def test_prefix_len_auto_takes_the_diagnosis_of_a_pilot(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, str(ROOT / "run.py"), *SMALL, f"run.store={store}", "prefix.len=auto", "diagnose.questions=24",
               "diagnose.n=8", "diagnose.longest=24", "sample.logprobs=true"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    [diagnosis] = [json.loads(p.read_text()) for p in store.glob("diagnose/*/diagnosis.json")]
    length = diagnosis["suggested"]
    assert 1 <= length <= 24
    summaries = {p.parent.name: json.loads(p.read_text()) for p in store.glob("sample/*/samples.json")}
    pilot, main = sorted(summaries.values(), key=lambda s: s["questions"])
    assert (pilot["questions"], pilot["traces_a_question"], pilot["prefix_tokens"]) == (24, 8, 24)
    assert (main["questions"], main["traces_a_question"], main["prefix_tokens"]) == (80, 1, length)
    assert main["taken_from_other_samplings"] == 24, "the pilot's first trace of each question"
    [rows] = [json.loads(p.read_text()) for p in store.glob("build/*/rows.json")]
    assert rows["prefix_len"] == length
    assert rows["prefix_len_from"] == "diagnosis"
    [results] = [json.loads(p.read_text()) for p in store.glob("report/*/results.json")]
    assert results["prefix_len"] == length
    drawn = [{(row["id"], row["index"]): len(row["ids"]) for row in map(json.loads, (store / "sample" / key / "samples.jsonl")
              .read_text().splitlines())} for key in sorted(summaries, key=lambda key: summaries[key]["questions"])]
    assert results["comparison"]["sampled"] == results["tokens"]["sampled"] == sum(
        max(one.get(trace, 0) for one in drawn) for trace in set().union(*drawn)), "each trace once, the longer one"
    again = subprocess.run([*command, "plan=true"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "auto" in again.stdout


def test_what_is_in_the_store_needs_no_engine(sample: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    more, _, _ = sample("sample.n=3")
    monkeypatch.setattr("upft.sampler.open_engine", lambda *args, **kwargs: pytest.fail("an engine was opened"))
    rows, told, cost = sample("sample.n=2")
    assert rows == [row for row in more if row["index"] < 2]
    assert (told["engine"], told["context"], told["taken_from_other_samplings"]) == ("transformers", 512, 160)
    assert cost["reused_tokens"] == sum(len(row["ids"]) for row in rows)
