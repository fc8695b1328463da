"""Samples drawn with vLLM survive kill -9 of the sampling process and the death of the engine."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from random_llama import EOS, VOCAB

from upft.choices import Dtype, Engine
from upft.console import Console
from upft.errors import EngineError
from upft.machine import ComputeConfig
from upft.rollouts import Prompt, Rescue, Rollout, roll_out
from upft.sample_log import FILE
from upft.sampler import Sampling, open_engine
from upft.sampler.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

COMPUTE = ComputeConfig(threads=1, cpu_kv_cache_gib=1, gpu_memory_utilization=0.3, enforce_eager=True)
SAMPLING = Sampling(1.0, 1.0, 0, frozenset({EOS}), 0)
ROOT = Path(__file__).parents[2]


def prompts() -> list[Prompt]:
    draw = random.Random(5)
    return [Prompt(f"q{i}", (1, *(draw.randrange(3, VOCAB) for _ in range(draw.randrange(1, 25)))), draw.choice((8, 60)))
            for i in range(900)]


def sampled(model: Path, keep: Path | None, rescue: Rescue | None = None) -> list[Rollout]:
    engine = open_engine(Engine.vllm, model, Dtype.float32, COMPUTE)
    try:
        return roll_out(engine, SAMPLING, prompts(), 2, 7, Console(quiet=True), "sampling", keep, rescue)
    finally:
        engine.close()


def test_kill_9_and_a_dead_engine_lose_and_repeat_nothing(model_folder: Path, tmp_path: Path) -> None:
    whole = sampled(model_folder, None)
    log, kills, draw = tmp_path / FILE, 0, random.Random(1)
    script = ("import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_vllm_kills as t; "
              "t.sampled(Path(sys.argv[2]), Path(sys.argv[3]))")
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), str(model_folder), str(tmp_path)],
                                 env={**os.environ, "PYTHONPATH": str(ROOT)})
        until = (log.stat().st_size if log.exists() else 0) + draw.randrange(2_000, 40_000)
        while child.poll() is None and (not log.exists() or log.stat().st_size < until):
            time.sleep(0.001)
        assert child.poll() is None, "it ended before it was killed: ask for more samples"
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills += 1
    before = log.read_bytes()
    engine = open_engine(Engine.vllm, model_folder, Dtype.float32, COMPUTE)
    assert isinstance(engine, VllmEngine)
    killer = subprocess.Popen([sys.executable, "-c", (
        "import os, signal, sys, time\n"
        "while os.path.getsize(sys.argv[1]) < int(sys.argv[2]): time.sleep(0.001)\n"
        "os.kill(int(sys.argv[3]), signal.SIGKILL)"), str(log), str(len(before) + 20_000), str(engine.process_id)])
    with pytest.raises(EngineError, match="killed") as caught:
        roll_out(engine, SAMPLING, prompts(), 2, 7, Console(quiet=True), "sampling", tmp_path)
    killer.wait()
    assert "lower compute.cpu_kv_cache_gib" in caught.value.remedy or "gpu_memory" in caught.value.remedy
    assert log.read_bytes().startswith(before[:before.rindex(b"\n") + 1]), "what was there stays"
    kept = log.read_bytes().count(b"\n")
    assert before.count(b"\n") < kept < len(whole)
    rescue = Rescue()
    final = sampled(model_folder, tmp_path, rescue)
    assert rescue.reused == kept
    assert log.read_bytes().count(b"\n") == len(whole), "no sample was paid for twice"
    assert kills == 4
    assert [(r.question_id, r.index) for r in final] == [(r.question_id, r.index) for r in whole]
    # What is drawn beside a request changes the rounding of its logits, and may tip a draw next to an edge.
    assert sum(a == b for a, b in zip(final, whole, strict=True)) >= len(whole) - 5
