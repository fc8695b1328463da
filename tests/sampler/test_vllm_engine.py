"""The vLLM engine: agreement with the embedded one, seeds, stops, and how its process comes and goes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from random_llama import CONTEXT, EOS, VOCAB, rewrite, write_model

from upft.choices import Accelerator, Dtype, Engine
from upft.errors import EngineError, ModelError
from upft.machine import ComputeConfig
from upft.sampler import Completion, Request, Sampling, open_engine
from upft.sampler.side_by_side import SideBySide
from upft.sampler.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

COMPUTE = ComputeConfig(threads=1, cpu_kv_cache_gib=1, gpu_memory_utilization=0.3, enforce_eager=True)
GREEDY = Sampling(0.0, 1.0, 0, frozenset({EOS}), 0)
SAMPLED = Sampling(1.0, 1.0, 0, frozenset({EOS}), 0)


def opened(folder: Path) -> VllmEngine:
    engine = open_engine(Engine.vllm, folder, Dtype.float32, COMPUTE)
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> Iterator[VllmEngine]:
    one = opened(model_folder)
    yield one
    one.close()


def some_requests(count: int, max_tokens: int = 24) -> list[Request]:
    rng = random.Random(0)
    prompts = [(1, *(rng.randrange(3, VOCAB) for _ in range(rng.randrange(1, 30)))) for _ in range(count)]
    return [Request(f"r{i}", prompt, max_tokens, 50 + i) for i, prompt in enumerate(prompts)]


def found(completions: Iterator[Completion]) -> dict[str, Completion]:
    return {c.id: c for c in completions}


def gone(process_id: int, seconds: float = 20.0) -> bool:
    """Whether the process ends (a zombie has ended) within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_greedy_agrees_with_the_embedded_engine(engine: VllmEngine, model_folder: Path) -> None:
    """In float32 the two differ in the rounding of the logits only: where the best two tokens nearly tie one
    may take the other, after which the texts part."""
    requests = some_requests(60)
    embedded = open_engine(Engine.transformers, model_folder, Dtype.float32,
                           ComputeConfig(accelerator=Accelerator.cpu, threads=1))
    want, got = found(embedded.generate(requests, GREEDY)), found(engine.generate(requests, GREEDY))
    assert embedded.context == engine.context == CONTEXT
    same = [want[r.id] == got[r.id] for r in requests]
    assert sum(same) >= 57, f"{same.count(False)} of 60 differ"


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(0.8, 0.9, 0, frozenset({EOS}), 0),
                                      Sampling(1.0, 1.0, 20, frozenset({EOS}), 0)])
def test_a_request_depends_on_its_seed_alone(engine: VllmEngine, sampling: Sampling) -> None:
    requests = some_requests(40)
    first = found(engine.generate(requests, sampling))
    assert found(engine.generate(requests[::-1], replace(sampling, seed=9))) == first
    assert found(engine.generate(requests[3:5], sampling)) == {r.id: first[r.id] for r in requests[3:5]}
    other = found(engine.generate([replace(r, seed=r.seed + 1000) for r in requests], sampling))
    assert sum(other[r.id].ids == first[r.id].ids for r in requests) <= 2


def test_a_prompt_cut_into_several_passes_draws_the_same(engine: VllmEngine) -> None:
    """Together the prompts exceed what vLLM reads in one pass, so it cuts some; in small groups none."""
    rng = random.Random(1)
    prompts = [(1, *(rng.randrange(3, VOCAB) for _ in range(rng.randrange(90, 130)))) for _ in range(300)]
    requests = [Request(f"r{i}", prompt, 12, i) for i, prompt in enumerate(prompts)]
    together = found(engine.generate(requests, SAMPLED))
    groups = [found(engine.generate(requests[i:i + 10], SAMPLED)) for i in range(0, 300, 10)]
    same = [together[r.id] == groups[i // 10][r.id] for i, r in enumerate(requests)]
    assert sum(same) >= 298, f"{same.count(False)} of 300 differ"  # 2 for rounding next to an edge


def test_fewer_tokens_are_a_prefix_and_seed_0_is_a_seed(engine: VllmEngine) -> None:
    requests = [replace(r, seed=i) for i, r in enumerate(some_requests(20))]
    long = found(engine.generate(requests, SAMPLED))
    short = found(engine.generate([replace(r, max_tokens=8) for r in requests], SAMPLED))
    assert all(short[r.id].ids == long[r.id].ids[:8] for r in requests)
    one = Request("q", (1, 5, 6), 24, 0)
    drawn = [next(engine.generate([replace(one, seed=s)], SAMPLED)).ids for s in (0, 0, 1, 2**63 - 1)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_many_seeds_of_one_prompt_follow_the_embedded_engine(engine: VllmEngine, model_folder: Path) -> None:
    """Both engines filter alike: token frequencies under temperature, top_k and top_p agree."""
    sampling, count = Sampling(0.9, 0.85, 30, frozenset({EOS}), 0), 4000
    requests = [Request(str(i), (1, 17, 40, 99), 1, i) for i in range(count)]
    embedded = open_engine(Engine.transformers, model_folder, Dtype.float32,
                           ComputeConfig(accelerator=Accelerator.cpu, threads=1))
    tokens = {}
    for name, one in (("vllm", engine), ("transformers", embedded)):
        drawn = [c.ids[0] for c in one.generate(requests, sampling)]
        tokens[name] = {token: drawn.count(token) / count for token in set(drawn)}
    assert len(tokens["vllm"]) >= 3
    for token in tokens["vllm"] | tokens["transformers"]:
        shares = [tokens[name].get(token, 0.0) for name in tokens]
        assert abs(shares[0] - shares[1]) < 5 * (2 * max(shares) / count) ** 0.5, token


def test_stop_ids_and_reasons_are_those_of_the_embedded_engine(engine: VllmEngine) -> None:
    requests = some_requests(40, max_tokens=20)
    free = found(engine.generate(requests, replace(SAMPLED, stop_ids=frozenset())))
    assert {(c.finish_reason, len(c.ids)) for c in free.values()} == {("length", 20)}  # EOS is no stop here
    tokens = [t for c in free.values() for t in c.ids]
    stops = frozenset(sorted(set(tokens), key=tokens.count)[-3:])
    stopped = found(engine.generate(requests, replace(SAMPLED, stop_ids=stops)))
    for request in requests:
        whole = free[request.id].ids
        hits = [i for i, token in enumerate(whole) if token in stops]
        want = (whole[:hits[0] + 1], "stop") if hits else (whole, "length")
        assert (stopped[request.id].ids, stopped[request.id].finish_reason) == want
    assert {c.ids[-1] for c in stopped.values() if c.finish_reason == "stop"} == stops


def test_max_tokens_is_clipped_to_the_context(engine: VllmEngine) -> None:
    requests = [Request("near", (5,) * (CONTEXT - 1), 50, 0), Request("far", (5,) * (CONTEXT - 20), 50, 0)]
    got = found(engine.generate(requests, replace(SAMPLED, stop_ids=frozenset())))
    assert [len(got[i].ids) for i in ("near", "far")] == [1, 20]
    with pytest.raises(EngineError, match="fills the context"):
        engine.generate([Request("full", (1,) * CONTEXT, 1, 0)], SAMPLED)


def test_completions_stream_and_a_call_given_up_leaves_no_trace(engine: VllmEngine) -> None:
    requests = [Request(str(n), (1, 9, n), n, n) for n in (3, 9, 30, 60)]
    endless = replace(SAMPLED, stop_ids=frozenset())
    whole = list(engine.generate(requests, endless))
    assert [int(c.id) for c in whole] == [3, 9, 30, 60]
    stream = engine.generate(requests, endless)
    assert next(stream) == whole[0]
    with pytest.raises(EngineError, match="sampling already"):
        engine.generate(requests, endless)
    assert engine.peak_device_bytes() == 0, "nobody is asked while completions come"
    stream.close()
    assert engine.peak_device_bytes() == 0, "of a CPU"
    assert list(engine.generate(requests, endless)) == whole


def test_requests_are_taken_in_as_they_are_drawn(engine: VllmEngine) -> None:
    """More requests than are held at once: read bit by bit, the same completions, the same again."""
    requests = [replace(r, max_tokens=3) for r in some_requests(3000)]
    read = 0

    def lazily() -> Iterator[Request]:
        nonlocal read
        for request in requests:
            read += 1
            yield request

    stream = engine.generate(lazily(), SAMPLED)
    first = next(stream)
    assert read < len(requests), "all were read before any was drawn"
    whole = {first.id: first, **found(stream)}
    assert read == len(whole) == len(requests)
    assert found(engine.generate(lazily(), SAMPLED)) == whole
    given_up = engine.generate(lazily(), SAMPLED)
    next(given_up)
    given_up.close()
    assert found(engine.generate(requests[:40], SAMPLED)) == {r.id: whole[r.id] for r in requests[:40]}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, 0.9, 30, frozenset({EOS}), 0)])
def test_log_probabilities_are_those_of_the_embedded_engine(
        engine: VllmEngine, model_folder: Path, sampling: Sampling) -> None:
    """Of the same tokens: what vLLM drew is scored again by hand."""
    from transformers import LlamaForCausalLM

    requests, scored = some_requests(20), replace(sampling, logprobs=True)
    got = found(engine.generate(requests, scored))
    plain = found(engine.generate(requests, sampling))
    assert {n: c.ids for n, c in got.items()} == {n: c.ids for n, c in plain.items()}
    assert all(c.logprobs is None for c in plain.values())
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    for request in requests:
        completion = got[request.id]
        with torch.inference_mode():
            logits = model(torch.tensor([[*request.prompt_ids, *completion.ids]])).logits[0]
        for row, token, given in zip(logits[len(request.prompt_ids) - 1:-1].double(), completion.ids, completion.logprobs,
                                     strict=True):
            scores = row / (sampling.temperature or 1.0)
            kept = scores.argsort(descending=True)[:sampling.top_k or None]
            kept = kept[:int((scores[kept].softmax(0).cumsum(0) < sampling.top_p).sum()) + 1]
            near = (kept == token).nonzero()
            if len(near):  # rounding may put a token on the edge inside or outside
                assert given == pytest.approx(float(scores[kept].log_softmax(0)[near.item()]), abs=0.02)


def test_a_prompt_that_was_read_is_not_read_again(engine: VllmEngine) -> None:
    prompt = tuple(range(3, 150))  # vLLM keeps whole blocks only, on a CPU of 128 tokens
    requests = [Request(str(i), prompt, 2, i) for i in range(600)]
    cached = [c.cached for c in engine.generate(requests, SAMPLED)]
    assert max(cached) >= 64
    assert min(cached) == 0
    assert sum(c > 0 for c in cached) >= 300


def test_two_processes_share_a_call_and_its_failure(engine: VllmEngine, model_folder: Path) -> None:
    both = open_engine(Engine.vllm, model_folder, Dtype.float32, replace(COMPUTE, devices=2))
    assert isinstance(both, SideBySide)
    try:
        requests = some_requests(500)
        whole, shared = found(engine.generate(requests, SAMPLED)), found(both.generate(iter(requests), SAMPLED))
        assert len(shared) == 500
        assert sum(shared[r.id] == whole[r.id] for r in requests) >= 498  # 2 for rounding next to an edge
        ids = [one.process_id for one in both._engines]
        assert len(set(ids)) == 2
        endless = (replace(r, max_tokens=100) for r in some_requests(3000))
        stream = both.generate(endless, replace(SAMPLED, stop_ids=frozenset()))
        next(stream)
        os.kill(ids[1], signal.SIGKILL)
        with pytest.raises(EngineError, match="killed"):
            list(stream)
        assert not both.alive
    finally:
        both.close()
    assert all(gone(one) for one in ids)


def test_a_model_vllm_cannot_take_is_a_model_error(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "strange")
    rewrite(folder / "config.json", architectures=["NobodysForCausalLM"], model_type="nobodys")
    with pytest.raises(ModelError, match=r"cannot take .*strange") as caught:
        opened(folder)
    assert caught.value.remedy


def test_what_does_not_fit_and_a_dead_process_are_errors_with_a_remedy(tmp_path: Path) -> None:
    """A context of a million tokens needs 2 GB of cache: the engine opens and refuses what may need it."""
    folder = write_model(tmp_path / "long")
    rewrite(folder / "config.json", max_position_embeddings=1_000_000)
    engine = opened(folder)
    assert engine.context == 1_000_000
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="may grow to 900003 tokens") as refused:
            engine.generate([Request("q", (1, 5, 6), 900_000, 0)], SAMPLED)
        assert "raise compute.cpu_kv_cache_gib (now 1)" in refused.value.remedy
    stream = engine.generate(some_requests(400, max_tokens=120), SAMPLED)
    next(stream)
    os.kill(engine.process_id, signal.SIGKILL)
    with pytest.raises(EngineError) as caught:
        list(stream)
    assert str(folder) in caught.value.what
    assert "killed" in caught.value.what
    assert "its last lines" in caught.value.what
    assert "compute.cpu_kv_cache_gib (now 1)" in caught.value.remedy or "gpu_memory" in caught.value.remedy
    assert not engine.alive
    with pytest.raises(EngineError, match="closed"):
        engine.generate(some_requests(1), SAMPLED)
    engine.close()


@pytest.mark.parametrize("loading", [True, False])
def test_a_parent_killed_leaves_no_orphan(model_folder: Path, loading: bool) -> None:
    """Killed with signal 9, while the engine loads and after; a forked child still holds its descriptors."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from upft.config import ComputeConfig, Dtype, Engine\n"
        "from upft.sampler import open_engine\n"
        "folder = Path(sys.argv[1])\n"
        "engine = open_engine(Engine.vllm, folder, Dtype.float32, ComputeConfig(\n"
        "    threads=1, cpu_kv_cache_gib=1, gpu_memory_utilization=0.3, enforce_eager=True))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(600)\n"
        "print(child, flush=True)\n"
        "time.sleep(600)\n")
    parent = subprocess.Popen([sys.executable, "-c", code, str(model_folder)], stdout=subprocess.PIPE,
                              text=True)
    forked = None
    try:
        assert parent.stdout is not None
        if not loading:
            forked = int(parent.stdout.readline())
        workers: list[int] = []
        until = time.monotonic() + 60
        while not workers and time.monotonic() < until:
            workers = [p.pid for p in psutil.Process(parent.pid).children()
                       if "upft.sampler.vllm_worker" in p.cmdline()]
            time.sleep(0.05)
        assert workers, "no worker was started"
        worker = workers[0]
        folder = Path(psutil.Process(worker).cmdline()[-1])
        assert folder.is_dir()
    finally:
        parent.kill()
        parent.wait()
    try:
        assert gone(worker)
        assert not folder.exists()
    finally:
        if forked is not None:
            os.kill(forked, signal.SIGKILL)


def test_closing_ends_the_process(engine: VllmEngine) -> None:
    """Last: it closes the engine that the tests above share."""
    folder = engine._folder
    assert psutil.pid_exists(engine.process_id)
    engine.close()
    assert not engine.alive
    assert gone(engine.process_id)
    assert not folder.exists()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(some_requests(1), SAMPLED)
    engine.close()
