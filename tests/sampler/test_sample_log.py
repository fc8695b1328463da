"""Samples survive what ends the process: kill -9 at any moment, a full disk, an engine that dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from upft.console import Console
from upft.errors import EngineError
from upft.rollouts import Prompt, Rescue, Rollout, roll_out
from upft.sample_log import FILE, SampleLog
from upft.sampler import Completion, Request, Sampling
from upft.sampler.transformers_engine import TransformersEngine

SAMPLING = Sampling(temperature=0.8, top_p=1.0, top_k=0, stop_ids=frozenset({3}), seed=0)
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> TransformersEngine:
    return TransformersEngine.over(LlamaForCausalLM.from_pretrained(model_folder), "random", sample_batch=4)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    draw = random.Random(5)
    return [Prompt(f"q/{i}", tuple(draw.randrange(4, 60) for _ in range(draw.randrange(3, 12))), 12) for i in range(30)]


def test_kill_9_at_any_moment_loses_and_repeats_nothing(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked child has no other threads to wait for
    whole = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling")
    total = len("\n".join(map(str, whole)))
    draw = random.Random(11)
    context = multiprocessing.get_context("fork")
    kills, seen = 0, 0
    log = tmp_path / FILE
    while kills < 24:
        child = context.Process(target=roll_out, args=(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path))
        child.start()
        until = (log.stat().st_size if log.exists() else 0) + draw.randrange(1, max(2, total // 30))
        while child.is_alive() and (not log.exists() or log.stat().st_size < until):
            time.sleep(0.0005)
        if not child.is_alive():
            break
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
        with SampleLog(tmp_path) as kept:
            count = len({(record["id"], record["index"]) for _, record in kept.read()})
        assert count >= seen, "what was there once stays"
        seen = count
        if kills % 5 == 0 and seen > 6:  # start over now and then: kills early and late
            log.unlink()
            seen = 0
    assert kills >= 20
    rescue = Rescue()
    assert roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path, rescue) == whole
    with SampleLog(tmp_path) as kept:
        names = [(record["id"], record["index"]) for _, record in kept.read()]
    assert len(names) == len(set(names)) == len(whole), "no sample was paid for twice"
    assert rescue.reused == seen


def test_a_torn_last_line_is_cut_and_counted(engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    whole = roll_out(engine, SAMPLING, prompts, 1, 7, QUIET, "sampling", tmp_path)
    log = tmp_path / FILE
    log.write_bytes(log.read_bytes()[:-9])
    rescue = Rescue()
    assert roll_out(engine, SAMPLING, prompts, 1, 7, QUIET, "sampling", tmp_path, rescue) == whole
    assert rescue == Rescue(reused=len(whole) - 1, dropped=1)


def test_a_damaged_line_is_dropped_and_sampled_again(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    whole = roll_out(engine, SAMPLING, prompts, 1, 7, QUIET, "sampling", tmp_path)
    log = tmp_path / FILE
    lines = log.read_bytes().split(b"\n")
    at = lines[3].index(b"[") + 1
    lines[3] = lines[3][:at] + (b"9" if lines[3][at:at + 1] != b"9" else b"8") + lines[3][at + 1:]
    log.write_bytes(b"\n".join(lines))
    rescue = Rescue()
    assert roll_out(engine, SAMPLING, prompts, 1, 7, QUIET, "sampling", tmp_path, rescue) == whole
    assert rescue == Rescue(reused=len(whole) - 1, dropped=1)


class _Asked:
    """A real engine that notes what it is asked, and dies after `lives` completions."""

    name, per_request_seed, alive = "transformers", True, True

    def __init__(self, engine: TransformersEngine, lives: int | None = None) -> None:
        self._engine, self._lives, self.asked = engine, lives, 0
        self.context = engine.context

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        taken = list(requests)
        self.asked += len(taken)
        for count, completion in enumerate(self._engine.generate(taken, sampling)):
            if count == self._lives:
                raise EngineError("out of memory", "lower compute.sample_batch")
            yield completion

    def close(self) -> None:
        pass


def test_an_engine_that_dies_keeps_what_it_gave(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    whole = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling")
    with pytest.raises(EngineError, match="out of memory"):
        roll_out(_Asked(engine, lives=17), SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path)
    second = _Asked(engine)
    assert roll_out(second, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path) == whole
    assert second.asked == len(whole) - 17
    third = _Asked(engine)
    assert roll_out(third, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path) == whole
    assert third.asked == 0


def test_more_samples_a_question_keep_the_first(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    two = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path)
    asked = _Asked(engine)
    four = roll_out(asked, SAMPLING, prompts, 4, 7, QUIET, "sampling", tmp_path)
    assert asked.asked == 2 * len(prompts)
    assert [r for r in four if r.index < 2] == two


def test_a_record_longer_than_asked_for_is_not_taken(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    roll_out(engine, SAMPLING, prompts, 1, 7, QUIET, "sampling", tmp_path)
    short = [replace(p, max_tokens=2) for p in prompts]
    drawn = roll_out(engine, SAMPLING, short, 1, 7, QUIET, "sampling", tmp_path)
    assert max(len(r.ids) for r in drawn) <= 2


def _limited(engine: TransformersEngine, prompts: list[Prompt], folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails then, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling", folder)
    except OSError:
        os._exit(42)
    os._exit(0)


def test_a_disk_that_fills_up_leaves_whole_lines(
        engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    child = multiprocessing.get_context("fork").Process(target=_limited, args=(engine, prompts, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == 42
    assert 0 < (tmp_path / FILE).stat().st_size <= 1000
    whole: list[Rollout] = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling")
    rescue = Rescue()
    assert roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "sampling", tmp_path, rescue) == whole
    assert rescue.reused > 0
    assert rescue.dropped == 0
