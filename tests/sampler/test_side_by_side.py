"""Several engines that share a call: the same ids whatever their number, and what happens when one of them fails."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from random_llama import EOS, VOCAB
from transformers import LlamaForCausalLM

from upft.errors import EngineError
from upft.machine import ComputeConfig
from upft.sampler import Completion, Request, Sampling, devices
from upft.sampler.side_by_side import SideBySide, _Dealer
from upft.sampler.transformers_engine import TransformersEngine

SAMPLING = Sampling(0.9, 0.95, 40, frozenset({EOS}), 0, logprobs=True)


@pytest.fixture(scope="module")
def engines(model_folder: Path) -> list[TransformersEngine]:
    return [TransformersEngine.over(LlamaForCausalLM.from_pretrained(model_folder).eval(), f"copy {i}", 8) for i in range(3)]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    draw = random.Random(3)
    prompts = [(1, *(draw.randrange(3, VOCAB) for _ in range(draw.randrange(1, 25)))) for _ in range(45)]
    return [Request(f"{i}/{j}", prompt, draw.choice((4, 24)), 7 * i + j) for i, prompt in enumerate(prompts) for j in range(2)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 16])
def test_the_same_ids_whatever_the_number_of_engines(
        engines: list[TransformersEngine], requests: list[Request], count: int, block: int) -> None:
    alone = {c.id: c for c in engines[0].generate(requests, SAMPLING)}
    shared = list(SideBySide(engines[:count], block).generate((r for r in requests), SAMPLING))
    assert len(shared) == len(requests)
    assert {c.id: (c.ids, c.finish_reason) for c in shared} == {n: (c.ids, c.finish_reason) for n, c in alone.items()}
    for c in shared:
        assert c.logprobs == pytest.approx(alone[c.id].logprobs, abs=1e-4)


def test_who_gets_a_request_does_not_depend_on_who_asks_first() -> None:
    requests = [Request(str(i), (1,), 1, i) for i in range(23)]
    greedy, even = (_Dealer(iter(requests), 3, 4, 64) for _ in range(2))
    hands = [[r.id for r in greedy.hand(i)] for i in (2, 0, 1)]  # the last hand reads all, the others find what was kept
    turns = [even.hand(i) for i in range(3)]
    taken: list[list[str]] = [[], [], []]
    for _ in range(23):
        for i, turn in enumerate(turns):
            taken[i] += [r.id for r in [next(turn, None)] if r is not None]
    assert hands == [taken[2], taken[0], taken[1]]
    assert taken[0] == [str(i) for i in (*range(4), *range(12, 16))]
    assert sorted([i for hand in taken for i in hand], key=int) == [r.id for r in requests]


def test_an_engine_that_is_ahead_waits_for_the_one_behind() -> None:
    """However many requests there are, few are held; and each engine gets what it gets without waiting."""
    count, most, block = 6000, 64, 8
    dealer, taken = _Dealer((Request(str(i), (1,), 1, i) for i in range(count)), 3, block, most), [[], [], []]

    def take(hand: int) -> None:
        taken[hand] += [int(r.id) for r in dealer.hand(hand)]

    ahead = [threading.Thread(target=take, args=(hand,), daemon=True) for hand in (0, 1)]
    for thread in ahead:
        thread.start()
        thread.join(0.5)
    assert all(thread.is_alive() for thread in ahead), "they wait"
    held = 0
    for request in dealer.hand(2):
        taken[2].append(int(request.id))
        held = max(held, *map(len, dealer._kept))
    for thread in ahead:
        thread.join(60)
    assert held <= most
    assert taken == [[i for i in range(count) if i // block % 3 == hand] for hand in range(3)]


class Stub:
    """Reads its requests, then does as it is told."""

    name, per_request_seed, alive, context = "stub", True, True, 64

    def __init__(self, reads: bool, then: Callable[[], None]) -> None:
        self._reads, self._then = reads, then

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        for request in requests if self._reads else ():
            yield Completion(request.id, (1,), "stop")
        self._then()

    def close(self) -> None:
        pass


def test_who_waits_for_an_engine_that_fails_is_let_go() -> None:
    got: list[Completion] = []

    def fail() -> None:
        while len(got) < 12:  # the other one has drawn what it may, and waits
            time.sleep(0.01)
        raise EngineError("out of memory", "lower compute.sample_batch")

    both = SideBySide([Stub(True, lambda: None), Stub(False, fail)], 4, 8)
    with pytest.raises(EngineError, match="out of memory"):
        got.extend(both.generate((Request(str(i), (1,), 1, i) for i in range(1000)), SAMPLING))
    assert [c.id for c in got] == [str(i) for i in (*range(4), *range(8, 12), *range(16, 20))]
    assert running() == []


class Failing:
    """A real engine that fails after some completions."""

    name, per_request_seed, alive = "transformers", True, True

    def __init__(self, engine: TransformersEngine, lives: int) -> None:
        self._engine, self._lives, self.context, self.closed = engine, lives, engine.context, False

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        for count, completion in enumerate(self._engine.generate(requests, sampling)):
            if count == self._lives:
                raise EngineError("out of memory", "lower compute.sample_batch")
            yield completion

    def close(self) -> None:
        self.closed = True


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("upft-engine")]


def test_an_engine_that_fails_ends_the_call_and_stops_the_others(
        engines: list[TransformersEngine], requests: list[Request]) -> None:
    both = SideBySide([engines[0], Failing(engines[1], 5)], 4)
    got: list[Completion] = []
    with pytest.raises(EngineError, match="out of memory"):
        got.extend(both.generate(iter(requests), SAMPLING))
    assert 5 <= len(got) < len(requests)
    assert running() == []


def test_a_call_that_is_given_up_leaves_no_thread(engines: list[TransformersEngine], requests: list[Request]) -> None:
    stream = SideBySide(engines, 4).generate(iter(requests), SAMPLING)
    next(stream)
    stream.close()
    assert running() == []


def test_engines_that_opened_are_closed_when_one_does_not(engines: list[TransformersEngine]) -> None:
    opened = [Failing(engines[0], 0), Failing(engines[1], 0)]

    def refuse() -> Failing:
        raise EngineError("no memory", "fewer devices")

    with pytest.raises(EngineError, match="no memory"):
        SideBySide.of([lambda: opened[0], refuse, lambda: opened[1]])
    assert [one.closed for one in opened] == [True, True]
    assert SideBySide.of([lambda: opened[0]]) is opened[0], "one alone needs nobody beside it"


def test_each_engine_is_shown_its_own_part_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {2, 3, 5, 7}, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert devices.shares(ComputeConfig()) == [{}]
    two = devices.shares(ComputeConfig(devices=4, tensor_parallel=2))
    assert [share["CUDA_VISIBLE_DEVICES"] for share in two] == ["4,5", "6,7"]
    assert [share["VLLM_CPU_OMP_THREADS_BIND"] for share in two] == ["2,3", "5,7"]
    assert [share["OMP_NUM_THREADS"] for share in two] == ["2", "2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    eight = devices.shares(ComputeConfig(devices=8, threads=1))
    assert [share["CUDA_VISIBLE_DEVICES"] for share in eight] == [str(i) for i in range(8)]
    assert {share["VLLM_CPU_OMP_THREADS_BIND"] for share in eight} == {"2", "3", "5", "7"}, "few cores are shared"
