"""The sampling benchmark runs and counts right; its figures are for docs/log.md, not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def bench(tmp_path: Path, *arguments: str) -> dict:
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, str(ROOT / "bench" / "sample.py"), "--threads", "1", "--out", str(out), *arguments],
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_memory_counts_every_question(tmp_path: Path) -> None:
    few, more = bench(tmp_path, "--parts", "memory", "--memory-questions", "40,90")["memory"]
    assert (few["questions"], few["samples"], more["samples"]) == (40, 40, 90)
    assert 40 * 4 < few["sampled_tokens"] <= 40 * 8 < more["sampled_tokens"] <= 90 * 8
    assert more["prompt_tokens"] > few["prompt_tokens"] > 40 * 20
    assert few["peak_bytes"] > 100e6


@pytest.mark.vllm
def test_engines_and_cost_are_asked_the_same(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": f"Tom has {i} apples and eats {i // 2}. How many are left?"}) + "\n"
                            for i in range(30)))
    found = bench(tmp_path, "--data", str(data), "--parts", "engines,cost", "--questions", "24", "--repeats", "1",
                  "--cost-questions", "6", "--trace-tokens", "40", "--dtype", "float32")
    by_name = {line["contestant"]: line for line in found["engines"]}
    assert set(by_name) == {"vllm.LLM", "stage", "transformers"}
    assert len({line["prompt_tokens"] for line in by_name.values()}) == 1
    assert {line["samples"] for line in by_name.values()} == {24}
    assert by_name["stage"]["sampled_tokens"] == pytest.approx(by_name["transformers"]["sampled_tokens"], rel=0.2)
    prefix, trace, traces = found["cost"]
    assert (prefix["samples"], trace["samples"], traces["samples"]) == (6, 6, 96)
    assert prefix["sampled_tokens"] <= trace["sampled_tokens"] < traces["sampled_tokens"]
    assert traces["prompt_tokens"] == 16 * trace["prompt_tokens"]
    assert 0 < prefix["flops"] < traces["flops"]
