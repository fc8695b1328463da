"""Seeds, sampling settings from the model's files, and the pool; with real engines where one is opened."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from random_llama import EOS, rewrite, write_model
from transformers import AutoTokenizer

from upft.choices import Accelerator, Dtype, Engine
from upft.errors import EngineError, ModelError
from upft.machine import ComputeConfig
from upft.sampler import EnginePool, Request, fitted, open_engine, request_seed, resolve_sampling
from upft.specs import SamplingSpec

COMPUTE = ComputeConfig(accelerator=Accelerator.cpu, threads=1)


def spec(top_p: float | None = None, top_k: int | None = None) -> SamplingSpec:
    return SamplingSpec(Engine.transformers, Dtype.float32, 0.6, top_p, top_k, 7)


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def test_importing_the_room_loads_no_engine() -> None:
    code = "import sys, upft.sampler; print({'torch', 'vllm', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_request_seeds_are_63_bit_and_differ_in_every_part() -> None:
    base = request_seed("q1", 0, 0)
    assert base == request_seed("q1", 0, 0)
    assert 0 <= base < 2**63
    others = {request_seed(q, i, s) for q in ("q1", "q2", "q10") for i in range(20) for s in (0, 1)}
    assert len(others) == 120
    assert max(others) >= 2**62
    assert request_seed("q1", 10, 0) != request_seed("q11", 0, 0)


def test_a_models_own_settings_fill_what_is_null(copied: Path) -> None:
    rewrite(copied / "generation_config.json", top_p=0.95, top_k=20, eos_token_id=[5, 9])
    tokenizer = AutoTokenizer.from_pretrained(copied)
    found = resolve_sampling(spec(), copied, tokenizer)
    assert (found.temperature, found.top_p, found.top_k, found.seed) == (0.6, 0.95, 20, 7)
    assert found.stop_ids == {5, 9, EOS}
    given = resolve_sampling(spec(top_p=1.0, top_k=0), copied, tokenizer)
    assert (given.top_p, given.top_k) == (1.0, 0)


def test_a_library_default_never_stands_in_for_an_authors_value(copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied)
    rewrite(copied / "generation_config.json", top_p=None, top_k=None)
    assert resolve_sampling(spec(), copied, tokenizer).top_k == 0
    (copied / "generation_config.json").unlink()
    found = resolve_sampling(spec(), copied, tokenizer)
    assert (found.top_p, found.top_k, found.stop_ids) == (1.0, 0, {EOS})
    rewrite(copied / "config.json", eos_token_id=[11, 12])  # what stands in where there is no such file
    assert resolve_sampling(spec(), copied, tokenizer).stop_ids == {11, 12, EOS}


def test_a_model_without_an_end_token_is_refused(copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.eos_token = None
    rewrite(copied / "generation_config.json", eos_token_id=None)
    with pytest.raises(ModelError, match="end-of-sequence"):
        resolve_sampling(spec(), copied, tokenizer)
    (copied / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json .* is not JSON"):
        resolve_sampling(spec(), copied, tokenizer)


def test_requests_are_fitted_to_the_context() -> None:
    exact = Request("a", (1,) * 10, 6, 0)
    assert list(fitted([exact], 16, "m")) == [exact]
    assert next(fitted([Request("a", (1,) * 10, 99, 0)], 16, "m")).max_tokens == 6
    assert next(fitted([Request("a", (1,) * 15, 99, 0)], 16, "m")).max_tokens == 1
    with pytest.raises(EngineError, match="request a: its prompt of 16 tokens fills the context"):
        fitted([Request("a", (1,) * 16, 1, 0)], 16, "m")
    with pytest.raises(EngineError, match="0 prompt tokens"):
        fitted([Request("a", (), 1, 0)], 16, "m")
    with pytest.raises(EngineError, match="max_tokens=0"):
        fitted([Request("a", (1,), 0, 0)], 16, "m")
    lazily = fitted(iter([exact, Request("b", (), 1, 0)]), 16, "m")
    assert next(lazily) == exact
    with pytest.raises(EngineError, match="request b: 0 prompt tokens"):
        next(lazily)


@pytest.mark.parametrize("kind", list(Engine))
def test_a_folder_that_is_no_model_is_named(tmp_path: Path, kind: Engine) -> None:
    with pytest.raises(ModelError, match="none is no model: it is no folder"):
        open_engine(kind, tmp_path / "none", Dtype.float32, COMPUTE)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_engine(kind, tmp_path, Dtype.float32, COMPUTE)


def test_broken_weights_are_a_model_error(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_engine(Engine.transformers, copied, Dtype.float32, COMPUTE)


def test_the_pool_keeps_one_engine_while_one_model_is_asked_for(model_folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=1)
    with EnginePool(COMPUTE) as pool:
        first = pool.get(Engine.transformers, model_folder, Dtype.float32)
        assert pool.get(Engine.transformers, Path(str(model_folder)), Dtype.float32) is first
        second = pool.get(Engine.transformers, other, Dtype.float32)
        assert second is not first
        assert (first.alive, second.alive) == (False, True)
        third = pool.get(Engine.transformers, other, Dtype.bfloat16)
        assert third is not second
        assert not second.alive
        third.close()  # an engine that ended by itself is not handed out again
        fourth = pool.get(Engine.transformers, other, Dtype.bfloat16)
        assert fourth.alive
    assert not fourth.alive
    pool.close()
    with pytest.raises(EngineError, match="closed"):
        fourth.generate([], resolve_sampling(spec(), other, AutoTokenizer.from_pretrained(other)))
