"""Training rows, by their decoded content: what each model family is shown, and what of it is supervised.

The rows come from the build stage itself, from sample files as the sample stage writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from upft import prefix
from upft.choices import CutUnit, MethodName
from upft.prompts import Prompter
from upft.specs import BuildSpec, HubRef, ModelSpec, PromptSpec
from upft.stages.build import Tally, build

WEIGHTS = Path(__file__).parents[2] / "upft" / "toy" / "weights"
SUFFIX = (" Please provide the initial step towards resolving the question. This step may serve as a foundation "
          "but might not encompass the entire solution.")
TRACE = "First, we subtract $3$ from both sides: $2x = 8$.\n\nThen $x = \\boxed{4}$."
T, RATIO = 5, 0.5


@dataclass(frozen=True)
class Family:
    """before, after: the prompt around the user's words. bos: None where the family has none that stands once.
    stops: the tokens that end a sampled trace, the tokenizer's EOS first."""

    before: str
    after: str
    bos: str | None
    stops: tuple[str, ...]


FAMILIES = {
    "qwen_math": Family(
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n", None, ("<|im_end|>", "<|endoftext|>")),
    "llama31": Family(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>")),
    "r1_distill": Family(
        "<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜><think>\n", "<｜begin▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>",)),
    "tiny": Family("<|bos|><|user|>", "<|assistant|>", "<|bos|>", ("<|eos|>",)),
}


class Bench:
    """One family's tokenizer and prompter, and the rows the build stage makes of given samples."""

    def __init__(self, name: str, tokenizer: Any, folder: Path) -> None:
        self.family, self.tokenizer, self.folder = FAMILIES[name], tokenizer, folder
        self.prompter = Prompter(tokenizer, PromptSpec(None, "{question}"))
        self.stop_ids = [tokenizer.convert_tokens_to_ids(token) for token in self.family.stops]
        assert self.stop_ids[0] == self.prompter.eos_id
        assert None not in self.stop_ids
        numbered = (f"What is ${n}$ plus $2$?" for n in range(1000))
        by_kind = {kind: list(group) for kind, group in groupby(
            sorted(numbered, key=self._carries_trace), self._carries_trace)}
        self.prefix_question, self.trace_question = by_kind[False][0], by_kind[True][0]

    @staticmethod
    def _carries_trace(question: str) -> bool:
        return prefix.carries_trace(prefix.question_id(question), RATIO)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def rows(self, question: str, completion: list[int], finish_reason: str = "stop",
             **changes: Any) -> list[prefix.Row]:
        """Rows built from one question and one sample of it."""
        id_ = prefix.question_id(question)
        (self.folder / "questions.jsonl").write_text(json.dumps(
            {"id": id_, "text": question, "answer": None, "prompt_ids": self.prompter.ids(question)}) + "\n")
        (self.folder / "samples.jsonl").write_text(json.dumps(
            {"id": id_, "index": 0, "kind": "trace" if self._carries_trace(question) else "prefix",
             "ids": completion, "finish_reason": finish_reason}) + "\n")
        (self.folder / "samples.json").write_text(json.dumps({"stop_ids": self.stop_ids}))
        spec = BuildSpec(
            method=MethodName.upft, model=ModelSpec(HubRef("acme/model", "0" * 40), False),
            prompt=PromptSpec(None, "{question}"), prefix_len=T, unit=CutUnit.token, ratio=RATIO, suffix=SUFFIX,
            eos=True, keep_unfinished=False, max_length=3072)
        spec = replace(spec, **changes)
        return list(build(spec, spec.prefix_len, self.folder, self.prompter, Tally()))

    def row(self, question: str, completion: list[int], **changes: Any) -> prefix.Row:
        (row,) = self.rows(question, completion, **changes)
        return row

    def segments(self, row: prefix.Row) -> list[tuple[str, bool]]:
        """(text, supervised) of each stretch of a row, decoded from its ids."""
        marked = [(token, label != prefix.UNSUPERVISED)
                  for token, label in zip(row.input_ids, row.labels, strict=True)]
        return [(self.prompter.text([token for token, _ in stretch]), supervised)
                for supervised, stretch in groupby(marked, key=lambda pair: pair[1])]


@pytest.fixture(params=list(FAMILIES))
def bench(request: pytest.FixtureRequest, tokenizer_of: Callable[[str], Any], tmp_path: Path) -> Bench:
    if request.param != "tiny":
        return Bench(request.param, tokenizer_of(request.param), tmp_path)
    if not (WEIGHTS / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in upft/toy/weights")
    from upft import models

    return Bench("tiny", models.load_tokenizer(WEIGHTS), tmp_path)


def test_prefix_row_is_the_suffixed_prompt_then_t_sampled_tokens_and_eos(bench):
    family, completion = bench.family, bench.encode(TRACE + bench.family.stops[0])
    row = bench.row(bench.prefix_question, completion)
    opening = bench.prompter.text(completion[:T])
    assert TRACE.startswith(opening)
    assert opening != TRACE
    assert row.kind == "prefix"
    assert bench.segments(row) == [
        (family.before + bench.prefix_question + SUFFIX + family.after, False),
        (opening + family.stops[0], True),
    ]
    assert [label for label in row.labels if label != prefix.UNSUPERVISED] == [*completion[:T], bench.prompter.eos_id]


def test_trace_row_is_the_sampled_prompt_then_the_whole_trace_with_its_own_stop_token(bench):
    family = bench.family
    for stop in family.stops:
        completion = bench.encode(TRACE + stop)
        row = bench.row(bench.trace_question, completion)
        assert row.kind == "trace"
        assert bench.segments(row) == [
            (family.before + bench.trace_question + family.after, False),
            (TRACE + stop, True),
        ]
        assert row.input_ids == bench.prompter.ids(bench.trace_question) + completion


@pytest.mark.parametrize("kind", ["prefix", "trace"])
def test_one_bos(bench, kind):
    if bench.family.bos is None:
        assert bench.tokenizer.bos_token is None
        return
    row = bench.row(getattr(bench, f"{kind}_question"), bench.encode(TRACE + bench.family.stops[0]))
    assert row.input_ids.count(bench.tokenizer.convert_tokens_to_ids(bench.family.bos)) == 1
    assert bench.prompter.text(row.input_ids).startswith(bench.family.bos)


@pytest.mark.parametrize("kind", ["prefix", "trace"])
def test_one_supervised_stop_token_and_it_is_last(bench, kind):
    """Control tokens of the prompt (`<|eot_id|>` ends its turns too) carry no loss."""
    row = bench.row(getattr(bench, f"{kind}_question"), bench.encode(TRACE + bench.family.stops[0]))
    stops = [i for i, label in enumerate(row.labels) if label in bench.stop_ids]
    assert stops == [len(row.labels) - 1]


def test_trace_that_ended_before_t_tokens_gets_no_second_eos(bench):
    for stop in bench.family.stops:
        completion = bench.encode("4" + stop)
        assert len(completion) < T
        row = bench.row(bench.prefix_question, completion)
        assert bench.segments(row)[-1] == ("4" + stop, True)


def test_trace_that_ended_with_its_t_th_token_gets_no_second_eos(bench):
    for stop in bench.family.stops:
        completion = [*bench.encode(TRACE)[: T - 1], *bench.encode(stop)]
        row = bench.row(bench.prefix_question, completion)
        assert bench.segments(row)[-1] == (bench.prompter.text(completion), True)
        assert bench.prompter.text(completion).endswith(stop)


def test_prefix_of_exactly_t_sampled_tokens_gets_its_eos(bench):
    """The usual case: sampling stopped at t because no more was asked for."""
    completion = bench.encode(TRACE)[:T]
    row = bench.row(bench.prefix_question, completion, finish_reason="length")
    assert bench.segments(row)[-1] == (bench.prompter.text(completion) + bench.family.stops[0], True)


def test_words_are_cut_from_the_text_and_newlines_become_spaces(bench):
    """By hand: five words of the completion, then at most five tokens of them, then EOS. Sampled ids keep their newlines."""
    written = "First,\n\nwe  subtract\n$3$ from both sides."
    completion = bench.encode(written + bench.family.stops[0])
    by_token, by_word = (bench.row(bench.prefix_question, completion, unit=unit, prefix_len=n)
                         for unit, n in ((CutUnit.token, len(completion)), (CutUnit.word, 5)))
    assert [x for x in by_token.labels if x != prefix.UNSUPERVISED] == completion
    assert bench.segments(by_token)[-1] == (written + bench.family.stops[0], True)
    opening = bench.encode("First, we subtract $3$ from")
    supervised = [x for x in by_word.labels if x != prefix.UNSUPERVISED]
    assert supervised == [*opening[:5], bench.prompter.eos_id]
    assert len(opening) > 5, "the cut at tokens was to matter"
    assert "\n" in bench.prompter.text(completion)
    assert "\n" not in bench.segments(by_word)[-1][0]
    assert by_word.input_ids == [*bench.prompter.ids(bench.prefix_question, SUFFIX), *supervised]


def test_the_prompt_is_not_tokenised_again_with_the_words(bench):
    """Tokens of the prompt's end and of the first word stay apart, also where together they would be fewer."""
    end = bench.tokenizer.decode(bench.prompter.ids(bench.prefix_question, SUFFIX), skip_special_tokens=False)
    row = bench.row(bench.prefix_question, bench.encode(" \n  First, we"), unit=CutUnit.word, prefix_len=20)
    assert bench.segments(row) == [(end, False), ("First, we" + bench.family.stops[0], True)]
    assert row.input_ids[:-1] == bench.prompter.ids(bench.prefix_question, SUFFIX) + bench.encode("First, we")


def test_a_completion_that_ended_within_its_words_carries_one_eos(bench):
    for stop in bench.family.stops:
        for eos, end in ((True, bench.family.stops[0]), (False, "")):
            row = bench.row(bench.prefix_question, bench.encode("We subtract." + stop), unit=CutUnit.word, prefix_len=99,
                            eos=eos)
            assert bench.segments(row)[-1] == ("We subtract." + end, True)


def test_a_control_token_in_letters_does_not_become_one(bench):
    """Sampled letter by letter; read as text it would end the turn."""
    spelt = bench.encode("So") + [i for letter in " " + bench.family.stops[0] + " on" for i in bench.encode(letter)]
    assert not set(spelt) & set(bench.stop_ids)
    row = bench.row(bench.prefix_question, spelt, unit=CutUnit.word, prefix_len=99)
    supervised = [x for x in row.labels if x != prefix.UNSUPERVISED]
    assert [x for x in supervised if x in bench.stop_ids] == [bench.prompter.eos_id] == supervised[-1:]
    assert bench.prompter.text(supervised[:-1]) == f"So {bench.family.stops[0]} on"


def test_half_a_letter_at_the_end_is_dropped(bench):
    sampled = bench.encode("Costs 漢")
    assert len(bench.encode("漢")) > 1
    row = bench.row(bench.prefix_question, sampled[:-1], unit=CutUnit.word, prefix_len=99)
    assert bench.segments(row)[-1] == ("Costs" + bench.family.stops[0], True)


def test_a_completion_without_a_word_is_an_eos_or_is_left_out(bench):
    blank = bench.encode(" \n\n") + bench.stop_ids[:1]
    row = bench.row(bench.prefix_question, blank, unit=CutUnit.word)
    assert bench.segments(row)[-1] == (bench.family.stops[0], True)
    assert bench.rows(bench.prefix_question, blank, unit=CutUnit.word, eos=False) == []


def test_prefix_without_eos_where_the_configuration_says_so(bench):
    completion = bench.encode(TRACE)[:T]
    row = bench.row(bench.prefix_question, completion, eos=False)
    assert bench.segments(row)[-1] == (bench.prompter.text(completion), True)


def test_trace_cut_by_the_length_limit_is_left_out_or_kept_without_eos(bench):
    cut = bench.encode(TRACE)[:-3]
    assert bench.rows(bench.trace_question, cut, "length") == []
    row = bench.row(bench.trace_question, cut, finish_reason="length", keep_unfinished=True)
    assert bench.segments(row)[-1] == (bench.prompter.text(cut), True)
