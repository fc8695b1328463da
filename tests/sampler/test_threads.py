"""Prompts asked for by several threads at once: of engines beside one another, and of who reads what they draw."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upft.rollouts import Asked, Prompt
from upft.sampler import request_seed
from upft.selection import Trace
from upft.specs import BranchSpec
from upft.stages import branch, sample
from upft.traces import Sampled

COUNT, CALLS = 40, 4000


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def wrong(prompt: Callable[[int], Prompt]) -> list[tuple[int, str]]:
    """(number, whose prompt it got) of calls from four threads that got another's prompt."""

    def ask(thread: int) -> list[tuple[int, str]]:
        order = np.random.default_rng(thread).integers(0, COUNT, CALLS).tolist()
        return [(i, got.question_id) for i in order
                if (got := prompt(i)).question_id != f"q{i}" or got.ids != (i + 1,) * (i + 1)]

    with ThreadPoolExecutor(4) as pool:
        return [one for found in pool.map(ask, range(4)) for one in found]


def test_requests_of_several_threads_are_their_own() -> None:
    prompts = [Prompt(f"q{i}", (i + 1,) * (i + 1), 8) for i in range(COUNT)]
    asked = Asked.of(prompts, 1, 0)
    assert wrong(asked.prompt) == []
    assert asked.request(7).seed == request_seed("q7", 0, 0)


class Interrupted(Asked):
    """Now and then, when it has looked at what it remembers, another thread asks for the next prompt."""

    often = random.Random(0)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name == "_last" and self.often.random() < 0.3:
            other = (found[0] + 1 if found is not None else 0) % COUNT
            self._last = other, self._prompt(other)
        return found


def test_no_prompt_changes_between_two_looks() -> None:
    """As it would be where threads run at the same time, and not in turns that the interpreter gives them."""
    asked = Interrupted.of([Prompt(f"q{i}", (i + 1,), 8) for i in range(COUNT)], 2, 0)
    assert [asked.prompt(i % COUNT).question_id for i in range(300)] == [f"q{i % COUNT // 2}" for i in range(300)]


def test_questions_in_a_file_are_read_whole(tmp_path: Path) -> None:
    places = []
    with (tmp_path / "questions.jsonl").open("wb") as out:
        for i in range(COUNT):
            places.append(out.tell())
            out.write(json.dumps({"id": f"q{i}", "prompt_ids": [i + 1] * (i + 1)}).encode() + b"\n")
    questions = sample._Questions(tmp_path / "questions.jsonl", np.array(places), np.arange(1, COUNT + 1),
                                  np.zeros(COUNT, dtype=bool), "questions", 0, False)
    assert wrong(questions.prompt) == []


def test_prefixes_in_a_file_are_read_whole(tmp_path: Path) -> None:
    spec = BranchSpec(None, None, (1,), 1, False, 1, 9)  # type: ignore[arg-type]  # no model is asked
    prefixes = branch._Prefixes(tmp_path, 512)
    for i in range(COUNT):
        trace = Trace(0, (i + 1, 0), True, True, None)
        prefixes.add(Sampled(f"q{i}", "?", None, [i + 1] * i, (trace,)), trace, spec)
    prefixes.close(spec, None)
    prefixes.fit(512)

    def prompt(number: int) -> Prompt:
        got = prefixes.prompt(number)
        return Prompt(got.question_id.partition("/")[0], got.ids, got.max_tokens)

    assert wrong(prompt) == []
