"""Whole experiments on real parts: a real LLM on real questions, and vLLM as the engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def run(store: Path, *arguments: str) -> str:
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), f"run.store={store}", *arguments],
                         capture_output=True, text=True, cwd=ROOT, timeout=1500)
    assert out.returncode == 0, out.stderr
    return out.stdout


def only(store: Path, stage: str, file: str) -> list[Path]:
    return sorted(store.glob(f"{stage}/*/{file}"))


@pytest.mark.real
def test_smollm2_on_gsm8k_with_the_embedded_engine(real_model, real_data, tmp_path):
    run(tmp_path, "model=smollm2", f"model.path={real_model}", "data=gsm8k", f"data.path={real_data / 'gsm8k/train.jsonl'}",
        "data.limit=24", "eval=gsm8k", f"eval.tasks.gsm8k.path={real_data / 'gsm8k/test.jsonl'}", "eval.limit=4",
        "eval.max_tokens=64", "sample.trace_max_tokens=96", "prefix.keep_unfinished=true", "prefix.ratio=0.2",
        "sample.engine=transformers", "eval.engine=transformers")
    [drawn] = only(tmp_path, "sample", "samples.jsonl")
    samples = [json.loads(line) for line in drawn.open()]
    assert len(samples) == 24
    assert all(len(s["ids"]) <= 8 for s in samples if s["kind"] == "prefix")
    rows = json.loads(only(tmp_path, "build", "rows.json")[0].read_text())
    shown = {e["kind"]: e for e in rows["examples"]}
    assert shown["prefix"]["segments"][-1][1]
    assert shown["prefix"]["segments"][-1][0].endswith("<|im_end|>")
    assert "Please provide the initial step" in shown["prefix"]["segments"][0][0]
    for path in only(tmp_path, "evaluate", "scores.json"):
        scores = json.loads(path.read_text())
        assert (scores["questions"], scores["samples"]) == (4, 1)
        assert scores["low"] <= scores["accuracy"] <= scores["high"]


EASY = ((2, 3), (7, 5), (12, 9), (15, 4), (20, 30), (11, 11), (25, 17), (8, 6))


@pytest.mark.real
def test_a_real_llm_through_all_four_analyses(real_model, tmp_path):
    """On questions so easy that a small model has right and wrong traces of some."""
    asked = tmp_path / "easy.jsonl"
    asked.write_text("".join(json.dumps({
        "question": f"Tom has {a} apples. He buys {b} more apples. How many apples does Tom have now?",
        "answer": f"#### {a + b}"}) + "\n" for a, b in EASY))
    run(tmp_path, "model=smollm2", f"model.path={real_model}", "data=gsm8k", f"data.path={asked}", "eval=gsm8k",
        f"eval.tasks.gsm8k.path={asked}", "eval.limit=8", "eval.max_tokens=48", "sample.trace_max_tokens=64",
        "prefix.keep_unfinished=true", "prefix.ratio=0.2", "sample.engine=transformers", "eval.engine=transformers",
        "analysis=all", "analysis.task=gsm8k", "analysis.consistency.questions=3", "analysis.consistency.n=3",
        "analysis.consistency.longest=8", "analysis.errors.questions=8", "analysis.errors.n=8", "analysis.errors.traces=1",
        "analysis.errors.at=[2,16]", "analysis.errors.continuations=2", "analysis.coverage.questions=2",
        "analysis.coverage.traces=1", "analysis.coverage.at=[4]", "analysis.coverage.continuations=1",
        "analysis.kl.questions=2", "analysis.kl.n=1")
    [report] = only(tmp_path, "report", "results.json")
    told = json.loads(report.read_text())["analyses"]
    assert set(told) == {"consistency", "errors", "coverage", "kl"}
    drawn = [[json.loads(line) for line in path.open()] for path in only(tmp_path, "sample", "samples.jsonl")]
    counted = told["consistency"]["groups"][0]
    nine = next(rows for rows in drawn if len(rows) == 9)
    first = {row["id"]: {tuple(other["ids"][:8]) for other in nine if other["id"] == row["id"]} for row in nine}
    assert counted["distinct"]["mean"][7] == pytest.approx(sum(map(len, first.values())) / 3)
    errors = told["errors"]
    assert errors["questions"] >= 1, "none has both"
    [verdicts] = [rows for path in only(tmp_path, "grade", "verdicts.jsonl")
                  if len(rows := [json.loads(line) for line in path.open()]) == 64]
    sides = {row["id"]: {other["right"] for other in verdicts if other["id"] == row["id"]} for row in verdicts}
    assert errors["questions"] == sum(len(one) == 2 for one in sides.values())
    split = told["coverage"]
    parts = sum(split[part][0]["difference"] for part in ("coverage", "accuracy"))
    assert split["change"][0]["difference"] == pytest.approx(parts)
    [apart] = [[json.loads(line) for line in path.open()] for path in only(tmp_path, "kl", "divergences.jsonl")]
    lengths = [len(one["forward"]) for one in apart]
    traces = next(rows for rows in drawn if [len(row["ids"]) for row in rows] == lengths)
    assert {row["id"] for row in traces} == {one["question"] for one in apart}
    assert all(math.isfinite(nats) and nats > -1e-6 for one in apart for nats in one["forward"])
    assert max(max(one["forward"]) for one in apart) > 0
    page = report.with_name("report.html").read_text(encoding="utf-8")
    for title in ("Prefix self-consistency", "Where errors begin", "What training moved", "Where training acts"):
        assert f"<h2>{title}" in page


@pytest.mark.vllm
def test_vllm_as_the_engine_of_a_whole_experiment(tmp_path):
    out = run(tmp_path, "sample.engine=vllm", "eval.engine=vllm", "data.arithmetic.questions=64",
              "eval.tasks.arithmetic.arithmetic.questions=20", "eval.n=2", "train.batch_size=16",
              "compute.enforce_eager=true", "compute.cpu_kv_cache_gib=1")
    assert "report.html" in out.replace("\n", "")
    summary = json.loads(only(tmp_path, "sample", "samples.json")[0].read_text())
    assert (summary["engine"], summary["questions"]) == ("vllm", 64)
    accuracies = [json.loads(p.read_text())["accuracy"] for p in only(tmp_path, "evaluate", "scores.json")]
    assert len(accuracies) == 2, "base and trained: vLLM loads the folder that training saved"
    assert min(accuracies) > 0.1
    provenance = json.loads(only(tmp_path, "sample", "provenance.json")[0].read_text())
    assert any(name.startswith("vllm") for name in provenance["versions"])
