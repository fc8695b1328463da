"""How the GPU memory of vLLM's process gets into a stage's ledger. A stand-in stands where vLLM would; only a GPU can show
that what PyTorch says there is so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from upft.choices import Accelerator, Dtype, Engine
from upft.console import Console
from upft.ledger import Ledger, Meter
from upft.machine import ComputeConfig, TrackerConfig
from upft.sampler import EnginePool
from upft.sampler.side_by_side import SideBySide
from upft.sampler.vllm_engine import VllmEngine
from upft.stages import Host

ROOT = Path(__file__).parents[2]
CPU = ComputeConfig(accelerator=Accelerator.cpu)
STAND_IN = """
import sys
sys.path.insert(0, {root!r})
import torch
from upft.sampler import vllm_worker

class Engine:  # of three GPUs
    def collective_rpc(self, told):
        if {what!r} == "broken":
            raise RuntimeError("no such method")
        worker._wire.send({{"run": 7, "done": [], "took": 0}})  # of a call that was given up
        peaks = []
        for gib in (3, 5, 4):
            torch.cuda.max_memory_reserved = lambda: gib << 30
            peaks.append(told(self))
        return peaks
    class engine_core:
        shutdown = staticmethod(lambda: None)

def opened(self, message):
    global worker
    worker, self._engine, self._cpu = self, Engine(), {what!r} == "cpu"
    return {{"context": 64, "fits": 64, "cpu": self._cpu}}

vllm_worker._Worker._open = opened
sys.argv = sys.argv[2:]
vllm_worker.main()
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], VllmEngine]]:
    """opened("gpu", "cpu" or "broken") -> the engine over a process with the stand-in."""
    engines = []

    def open_one(what: str) -> VllmEngine:
        (tmp_path / f"{what}.py").write_text(STAND_IN.format(root=str(ROOT), what=what))
        python = tmp_path / what
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / what}.py "$@"\n')
        python.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(python))
            engines.append(VllmEngine(tmp_path, Dtype.float32, CPU))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


def test_the_process_tells_the_most_of_its_gpus(opened: Callable[[str], VllmEngine]) -> None:
    gpu, cpu = opened("gpu"), opened("cpu")
    assert [engine.peak_device_bytes() for engine in (gpu, cpu, gpu)] == [5 << 30, 0, 5 << 30]
    both = SideBySide([cpu, gpu])
    assert both.peak_device_bytes() == 5 << 30, "of one GPU"
    gpu.close()
    assert gpu.peak_device_bytes() == 0


def test_a_process_that_cannot_tell_goes_on(opened: Callable[[str], VllmEngine]) -> None:
    engine = opened("broken")
    assert engine.peak_device_bytes() == 0
    assert engine.alive


def test_a_process_that_died_ends_nothing(opened: Callable[[str], VllmEngine]) -> None:
    engine = opened("gpu")
    engine._process.kill()
    assert engine.peak_device_bytes() == 0


def test_it_is_the_ledgers_of_the_stages_that_used_the_engine(
        opened: Callable[[str], VllmEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened("gpu")
    monkeypatch.setattr("upft.sampler.open_engine", lambda *_: engine)
    peaks = []
    with EnginePool(CPU) as engines:
        host = Host(CPU, TrackerConfig(), Console(quiet=True), engines)
        for uses in (True, True, False):
            with Meter() as meter:
                if uses:
                    engines.get(Engine.transformers, tmp_path, Dtype.float32)
            host.settle(Ledger(), meter, tmp_path)
            peaks.append(Ledger.read(tmp_path).peak_device_bytes)
    assert peaks == [5 << 30, 5 << 30, 0]
