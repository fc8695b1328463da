"""What is there already is not drawn again, in which order the rest is, and what is kept of each sample."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from random_llama import EOS, VOCAB
from transformers import LlamaForCausalLM

from upft.console import Console
from upft.ledger import Ledger
from upft.rollouts import Asked, Prompt, Rescue, Rollout, draw, price, resumed, roll_out, take_over
from upft.sample_log import SampleLog
from upft.sampler import Completion, Request, Sampling, request_seed
from upft.sampler.transformers_engine import TransformersEngine
from upft.shapes import Shape

QUIET = Console(quiet=True)
SAMPLING = Sampling(0.8, 0.9, 30, frozenset({EOS}), 0, logprobs=True)


@pytest.fixture(scope="module")
def engine(model_folder: Path) -> TransformersEngine:
    return TransformersEngine.over(LlamaForCausalLM.from_pretrained(model_folder).eval(), "random", sample_batch=4)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    draw_ = random.Random(5)
    return [Prompt(f"q{i}", (1, *(draw_.randrange(4, VOCAB) for _ in range(draw_.randrange(2, 12)))), 10) for i in range(20)]


class Watched:
    """A real engine that notes how many requests it was given."""

    name, per_request_seed, alive = "transformers", True, True

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine, self.asked, self.context = engine, 0, engine.context

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        def counted() -> Iterator[Request]:
            for request in requests:
                self.asked += 1
                yield request

        return self._engine.generate(counted(), sampling)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("ids", "reason", "limit", "wanted"), [
    ((5, 6, EOS), "stop", 3, ((5, 6, EOS), "stop")),
    ((5, 6, EOS), "stop", 9, ((5, 6, EOS), "stop")),  # it ended by itself: more room changes nothing
    ((5, 6, EOS), "stop", 2, ((5, 6), "length")),
    ((5, 6, 7), "length", 3, ((5, 6, 7), "length")),
    ((5, 6, 7), "length", 1, ((5,), "length")),
    ((5, 6, 7), "length", 4, None)])  # what would have come next is not known
def test_a_longer_sample_serves_a_shorter_one(
        ids: tuple[int, ...], reason: str, limit: int, wanted: tuple[tuple[int, ...], str] | None) -> None:
    scores = tuple(-0.5 * i for i in range(len(ids)))
    cut = Rollout("q", 0, ids, reason, scores).cut(limit, logprobs=True)
    assert (cut if cut is None else (cut.ids, cut.finish_reason)) == wanted
    if cut is not None:
        assert cut.logprobs == scores[:len(cut.ids)]
    assert Rollout("q", 0, ids, reason).cut(limit, logprobs=True) is None, "log-probabilities that were not kept"


def test_cutting_is_what_sampling_less_gives(engine: TransformersEngine, prompts: list[Prompt]) -> None:
    long = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "x")
    short = roll_out(engine, SAMPLING, [Prompt(p.question_id, p.ids, 4) for p in prompts], 2, 7, QUIET, "x")
    for whole, part in zip(long, short, strict=True):
        cut = whole.cut(4, logprobs=True)
        assert cut is not None
        assert (cut.ids, cut.finish_reason) == (part.ids, part.finish_reason)
        assert cut.logprobs == pytest.approx(part.logprobs, abs=1e-4)
    assert any(len(r.ids) > 4 for r in long)


def test_requests_are_found_by_question_and_index_and_ordered_by_length(prompts: list[Prompt]) -> None:
    mixed = [Prompt(p.question_id, p.ids, 3 if i % 3 else 40) for i, p in enumerate(prompts)]
    asked = Asked.of(mixed, 3, run_seed=11)
    assert [asked.find(p.question_id, j) for p in mixed for j in range(3)] == list(range(60))
    assert asked.find("q1", 3) is None
    assert asked.find("another", 0) is None
    request = asked.request(7)
    assert (request.id, request.prompt_ids, request.max_tokens, request.seed) == (
        "7", mixed[2].ids, 3, request_seed("q2", 1, 11))
    order = asked.order(np.arange(60)).tolist()
    assert sorted(order) == list(range(60))
    shapes = [(mixed[i // 3].max_tokens, len(mixed[i // 3].ids)) for i in order]
    assert shapes == sorted(shapes, reverse=True)
    assert all(order[i] // 3 == order[i + 1] // 3 == order[i + 2] // 3 for i in range(0, 60, 3)), "a question's side by side"


def test_an_engine_reads_requests_as_it_has_room(engine: TransformersEngine) -> None:
    """Whatever their number, no more than a window of them is held."""
    watched = Watched(engine)
    stream = watched.generate((Request(str(i), (1, 5, 6), 2, i) for i in range(100_000)), SAMPLING)
    next(stream)
    assert watched.asked <= 16 * 4
    stream.close()


def test_log_probabilities_are_those_of_the_distribution_drawn_from(
        engine: TransformersEngine, prompts: list[Prompt], model_folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(model_folder).eval()
    hot, greedy = (Sampling(t, 1.0, 0, frozenset({EOS}), 0, True) for t in (1.3, 0.0))
    for sampling in (SAMPLING, hot, greedy):
        for rollout in roll_out(engine, sampling, prompts[:6], 2, 3, QUIET, "x"):
            prompt = next(p.ids for p in prompts if p.question_id == rollout.question_id)
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *rollout.ids]])).logits[0, len(prompt) - 1:-1].double()
            for row, token, given in zip(logits, rollout.ids, rollout.logprobs, strict=True):
                scores = row / (sampling.temperature or 1.0)
                kept = scores.argsort(descending=True)[:sampling.top_k or None]
                mass = scores[kept].softmax(0)
                kept = kept[:int((mass.cumsum(0) < sampling.top_p).sum()) + 1]
                wanted = scores[kept].log_softmax(0)[(kept == token).nonzero().item()]
                assert given == pytest.approx(float(wanted), abs=2e-4)


def test_log_probabilities_survive_the_log(engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    whole = roll_out(engine, SAMPLING, prompts, 2, 7, QUIET, "x", keep=tmp_path)
    watched = Watched(engine)
    assert roll_out(watched, SAMPLING, prompts, 2, 7, QUIET, "x", keep=tmp_path) == whole
    assert watched.asked == 0
    assert all(len(r.logprobs) == len(r.ids) for r in whole)


def artifact(folder: Path, prompts: list[Prompt], rollouts: list[Rollout]) -> Path:
    """A finished sampling."""
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(
        json.dumps({"id": p.question_id, "prompt_ids": p.ids}) + "\n" for p in prompts))
    (folder / "samples.jsonl").write_text("".join(
        json.dumps({"id": r.question_id, "index": r.index, "ids": r.ids, "finish_reason": r.finish_reason,
                    "logprobs": r.logprobs}) + "\n" for r in rollouts))
    return folder


def test_other_samplings_give_what_they_have(engine: TransformersEngine, prompts: list[Prompt], tmp_path: Path) -> None:
    """Fewer traces of fewer questions, longer than asked for; one question reads otherwise there."""
    half = [Prompt(p.question_id, p.ids if i != 2 else (1, 9), 12) for i, p in enumerate(prompts[:10])]
    earlier = artifact(tmp_path / "earlier", half, roll_out(engine, SAMPLING, half, 2, 7, QUIET, "x"))
    fresh = roll_out(engine, SAMPLING, prompts, 3, 7, QUIET, "x")
    asked, rescue, watched = Asked.of(prompts, 3, 7), Rescue(), Watched(engine)
    with SampleLog(tmp_path / "log") as log:
        drawn = resumed(log, asked, True, rescue, QUIET, "x")
        take_over(earlier, asked, drawn, True, rescue)
        draw(watched, SAMPLING, asked, drawn, QUIET, "x")
        got = list(drawn)
    assert rescue.taken == 9 * 2
    assert watched.asked == 60 - 18
    assert [(r.question_id, r.index, r.ids, r.finish_reason) for r in got] == [
        (r.question_id, r.index, r.ids, r.finish_reason) for r in fresh]
    again = Rescue()
    with SampleLog(tmp_path / "log") as log:
        assert len(resumed(log, asked, True, again, QUIET, "x").missing()) == 0
    assert (again.reused, again.taken, again.taken_tokens) == (60 - 18, 18, rescue.taken_tokens), "who paid is remembered"
    assert rescue.taken_tokens == sum(len(r.ids) for r in got if int(r.question_id[1:]) < 10 and r.index < 2
                                      and r.question_id != "q2")


def test_the_ledger_counts_prompts_once_and_what_was_cached(engine: TransformersEngine, prompts: list[Prompt]) -> None:
    """Three traces of a question in one batch of the embedded engine: its prompt is read once."""
    rollouts = roll_out(engine, SAMPLING, prompts[:1], 3, 7, QUIET, "x")
    cost, shape = Ledger(), Shape(parameters=1000, layers=2, hidden=16, context=160)
    list(price(cost, Asked.of(prompts[:1], 3, 7), rollouts, shape))
    length, sampled = len(prompts[0].ids), sum(len(r.ids) for r in rollouts)
    assert (cost.prompt_tokens, cost.cached_tokens, cost.sampled_tokens) == (3 * length, 2 * length, sampled)

    def flops(tokens: int) -> float:
        return tokens * (2 * 1000 + 4 * 2 * 16 * tokens / 2)

    assert cost.flops == pytest.approx(sum(flops(length + len(r.ids)) for r in rollouts) - 2 * flops(length))
