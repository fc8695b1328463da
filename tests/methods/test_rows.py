"""What each method trains on, decoded: the rows, their masks, pairs, caps, duplicates, and what is said when there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import MODEL, PROMPT, RATIO

from upft import prefix
from upft.choices import CutUnit, MethodName
from upft.errors import DataError
from upft.ledger import Ledger
from upft.specs import BuildSpec, GradeSpec, PairSpec
from upft.stages import build, grade, pair

SUFFIX = " Only the first step, please."
WHOLE = BuildSpec(MethodName.sft, MODEL, PROMPT, None, CutUnit.token, 1.0, "", True, False, 512)
PREFIX = replace(WHOLE, method=MethodName.upft, prefix_len=3, ratio=RATIO, suffix=SUFFIX)
A = "We add: 2 + 2 = 4, so \\boxed{4}"
B = "First, 2 + 2 is 4. \\boxed{4}"
A_TOO = "We add: 2 + 2 is \\boxed{4}"  # opens as A does
WRONG, WRONG_TOO, NOTHING = "We add: 2 + 2 = 5, so \\boxed{5}", "I guess \\boxed{7}", "I do not know"


@pytest.fixture
def graded(sampled: Callable, run: Callable, tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """graded(drawn, **arguments of sampled) -> inputs of the stages that choose."""

    def make(drawn: dict[str, list[str]], **more: Any) -> dict[str, Path]:
        samples = sampled(drawn, **more)
        run(grade, GradeSpec(MODEL), {"samples": samples}, "grades")
        return {"samples": samples, "grades": tmp_path / "grades"}

    return make


def decoded(folder: Path, tokenizer: Any) -> list[tuple[str, str]]:
    """(prompt as the model sees it, supervised text) of each row."""
    out = []
    for row in prefix.read_rows(folder / prefix.FILE):
        cut = sum(label == prefix.UNSUPERVISED for label in row.labels)
        assert row.labels == [prefix.UNSUPERVISED] * cut + row.input_ids[cut:], "the prompt is never supervised, the rest is"
        out.append((tokenizer.decode(row.input_ids[:cut]), tokenizer.decode(row.input_ids[cut:])))
    return out


def asked(tokenizer: Any, question: str) -> str:
    from upft.prompts import Prompter

    return tokenizer.decode(Prompter(tokenizer, PROMPT).ids(question))


def test_verdicts_and_counts(graded: Callable, questions: Callable, tokenizer: Any) -> None:
    one, two = questions(True, 2)
    inputs = graded({one: [A, WRONG, NOTHING], two: ["So \\boxed{016}", "\\boxed{16", WRONG]}, answers={two: "16"})
    lines = [json.loads(line) for line in (inputs["grades"] / "verdicts.jsonl").read_text().splitlines()]
    assert [(v["id"], v["index"], v["right"], v["extracted"]) for v in lines] == [
        (prefix.question_id(one), 0, True, "4"), (prefix.question_id(one), 1, False, "5"),
        (prefix.question_id(one), 2, False, None), (prefix.question_id(two), 0, True, "016"),
        (prefix.question_id(two), 1, lines[4]["right"], lines[4]["extracted"]), (prefix.question_id(two), 2, False, "5")]
    assert all(v["reason"] for v in lines)
    told = json.loads((inputs["grades"] / "grades.json").read_text())
    assert (told["questions"], told["traces"], told["right"]) == (2, 6, sum(v["right"] for v in lines))
    assert told["questions_with_a_right_trace"] == 2
    assert told["no_answer"] == sum(v["extracted"] is None for v in lines)


def test_a_question_without_a_gold_answer_is_named(sampled: Callable, run: Callable, questions: Callable) -> None:
    one, two = questions(True, 2)
    samples = sampled({one: [A], two: [A]}, answers={one: "4", two: None})
    with pytest.raises(DataError, match="no gold answer") as caught:
        run(grade, GradeSpec(MODEL), {"samples": samples}, "grades")
    assert two in caught.value.what
    assert "data.answer_field" in caught.value.remedy


def test_sft_takes_the_first_trace_whatever_it_comes_to(sampled: Callable, run: Callable, questions: Callable, tokenizer: Any,
                                                        tmp_path: Path) -> None:
    one, two, three = *questions(True, 2), questions(False, 1)[0]
    samples = sampled({one: [WRONG, A], two: [NOTHING, A], three: [A + "...", B]})
    said = run(build, WHOLE, {"samples": samples}, "rows")
    assert decoded(tmp_path / "rows", tokenizer) == [
        (asked(tokenizer, one), WRONG + "<|eos|>"), (asked(tokenizer, two), NOTHING + "<|eos|>")]
    assert "1 rows left out: the whole trace was cut by the length limit" in said
    told = json.loads((tmp_path / "rows" / "rows.json").read_text())
    first = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (WRONG, NOTHING, A)]
    assert told["alone"]["sampled_tokens"] == sum(first) + 2, "of 16 traces at hand SFT alone would have sampled one"
    assert told["used_tokens"] == told["supervised_tokens"] == sum(first[:2]) + 2
    assert (told["trace_rows"], told["prefix_rows"], told["prefix_len"]) == (2, 0, None)


@pytest.mark.parametrize(("cap", "traces", "kept"), [
    (1, 6, [A]), (2, 6, [A, B]), (None, 6, [A, B, A_TOO]), (None, 3, [A]), (None, 4, [A, B]),
])
def test_rft_takes_the_first_different_right_ones(
        cap: int | None, traces: int, kept: list[str], graded: Callable, run: Callable, questions: Callable, tokenizer: Any,
        tmp_path: Path) -> None:
    one, two = questions(True, 2)
    inputs = graded({one: [WRONG, A, A, B, A_TOO, B], two: [WRONG, NOTHING, WRONG, WRONG, WRONG, WRONG]})
    said = run(build, replace(WHOLE, method=MethodName.rft, traces=traces, cap=cap, right=True), inputs, "rows")
    assert decoded(tmp_path / "rows", tokenizer) == [(asked(tokenizer, one), text + "<|eos|>") for text in kept]
    assert "1 rows left out: no trace is right" in said
    told = json.loads((tmp_path / "rows" / "rows.json").read_text())
    assert told["repeated"] == {3: 1, 4: 1, 6: 2}[traces]
    sizes = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1
             for texts in ([WRONG, A, A, B, A_TOO, B], [WRONG, NOTHING, WRONG, WRONG, WRONG, WRONG]) for t in texts[:traces]]
    assert told["alone"]["sampled_tokens"] == sum(sizes), "rejected ones had to be sampled as well"
    assert told["alone"]["prompt_tokens"] == traces * sum(
        len(tokenizer(asked(tokenizer, q), add_special_tokens=False)["input_ids"]) for q in (one, two))


def test_rft_passes_over_right_traces_that_make_no_row(graded: Callable, run: Callable, questions: Callable, tokenizer: Any,
                                                       tmp_path: Path) -> None:
    one, two, three = questions(True, 3)
    long = "We add. " * 200 + "\\boxed{4}"
    inputs = graded({one: [A + "...", B], two: [long, A], three: [A + "..."]})
    said = run(build, replace(WHOLE, method=MethodName.rft, traces=16, right=True), inputs, "rows")
    assert [text for _, text in decoded(tmp_path / "rows", tokenizer)] == [B + "<|eos|>", A + "<|eos|>"]
    assert "1 rows left out: the whole trace was cut by the length limit" in said
    run(build, replace(WHOLE, method=MethodName.rft, traces=16, right=True, keep_unfinished=True), inputs, "kept")
    assert [text for _, text in decoded(tmp_path / "kept", tokenizer)] == [A, A + "<|eos|>", A], "no EOS is forced on a cut one"


def test_label_filter_cuts_prefixes_of_right_traces(graded: Callable, run: Callable, questions: Callable, tokenizer: Any,
                                                    tmp_path: Path) -> None:
    short, whole = questions(False, 2), questions(True, 1)[0]
    inputs = graded({short[0]: [WRONG_TOO, A, B], short[1]: [NOTHING, WRONG], whole: [WRONG, B]})
    run(build, replace(PREFIX, traces=16, right=True), inputs, "rows")

    def cut(text: str) -> str:
        return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:3])

    assert decoded(tmp_path / "rows", tokenizer) == [
        (asked(tokenizer, short[0] + SUFFIX), cut(A) + "<|eos|>"), (asked(tokenizer, whole), B + "<|eos|>")]
    told = json.loads((tmp_path / "rows" / "rows.json").read_text())
    assert told["left_out"]["no trace is right"] == 1
    total = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1
                for t in (WRONG_TOO, A, B, NOTHING, WRONG, WRONG, B))
    assert told["alone"]["sampled_tokens"] == total, "to be graded they had to be whole"
    # A and A_TOO open alike: one row
    inputs = {"samples": inputs["samples"], "grades": inputs["grades"]}
    run(build, replace(PREFIX, traces=16, right=True, cap=None), inputs, "all")
    assert [text for _, text in decoded(tmp_path / "all", tokenizer)][:2] == [cut(A) + "<|eos|>", cut(B) + "<|eos|>"]


def test_prefixes_that_are_the_same_row_come_once(graded: Callable, run: Callable, questions: Callable, tokenizer: Any,
                                                  tmp_path: Path) -> None:
    (one,) = questions(False, 1)
    run(build, replace(PREFIX, traces=16, right=True, cap=None), graded({one: [A, A_TOO, B]}), "rows")
    assert len(decoded(tmp_path / "rows", tokenizer)) == 2
    assert json.loads((tmp_path / "rows" / "rows.json").read_text())["repeated"] == 1


def test_upft_of_whole_traces_counts_the_prefixes_it_would_have_sampled(sampled: Callable, run: Callable, questions: Callable,
                                                                        tokenizer: Any, tmp_path: Path) -> None:
    short, whole = questions(False, 1)[0], questions(True, 1)[0]
    samples = sampled({short: [WRONG, A], whole: [B, A]})
    run(build, PREFIX, {"samples": samples}, "rows")
    told = json.loads((tmp_path / "rows" / "rows.json").read_text())
    trace = len(tokenizer(B, add_special_tokens=False)["input_ids"]) + 1
    assert told["alone"]["sampled_tokens"] == 3 + trace
    assert told["alone"]["flops"] > 0
    lost = Ledger.read(tmp_path / "rows").discarded_tokens
    everything = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in (WRONG, A, B, A))
    assert lost == everything - 3 - trace, "of the sampling at hand all else is in no row"


@pytest.mark.parametrize(("cap", "needed"), [(1, 1), (2, 2), (None, 3)])
def test_traces_that_no_row_may_come_from_are_not_charged(cap: int | None, needed: int, sampled: Callable, run: Callable,
                                                          questions: Callable, tokenizer: Any, tmp_path: Path) -> None:
    """Three traces to choose from and no verdict: the first `cap` are the method's, whatever `traces` says."""
    short, whole = questions(False, 1)[0], questions(True, 1)[0]
    run(build, replace(PREFIX, traces=3, cap=cap), {"samples": sampled({short: [WRONG, A, B], whole: [B, A, WRONG]})}, "rows")
    told = json.loads((tmp_path / "rows" / "rows.json").read_text())
    sizes = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in (B, A, WRONG)]
    assert told["alone"]["sampled_tokens"] == 3 * needed + sum(sizes[:needed])
    assert (told["prefix_rows"], told["trace_rows"]) == (needed, needed)


def test_no_right_trace_at_all_is_an_error_with_counts(graded: Callable, run: Callable, questions: Callable) -> None:
    one, two = questions(True, 2)
    inputs = graded({one: [WRONG, NOTHING], two: [WRONG]})
    with pytest.raises(DataError, match="2 questions were left out \\(2 no trace is right\\)") as caught:
        run(build, replace(WHOLE, method=MethodName.rft, traces=16, right=True), inputs, "rows")
    assert "method.n" in caught.value.remedy


PAIRS = PairSpec(MODEL, 16, 1, False, 512)


def pairs_of(folder: Path, tokenizer: Any) -> list[tuple[str, str]]:
    rows = decoded(folder, tokenizer)
    assert [p for p, _ in rows[0::2]] == [p for p, _ in rows[1::2]], "both of a pair answer one prompt"
    return [(a.removesuffix("<|eos|>"), b.removesuffix("<|eos|>"))
            for (_, a), (_, b) in zip(rows[0::2], rows[1::2], strict=True)]


@pytest.mark.parametrize(("cap", "wanted"), [
    (1, [(A, WRONG), (B, WRONG)]),
    (2, [(A, WRONG), (B, WRONG_TOO), (B, WRONG)]),
    (None, [(A, WRONG), (B, WRONG_TOO), (A_TOO, NOTHING), (B, WRONG)]),
])
def test_pairs_are_different_balanced_and_capped(
        cap: int | None, wanted: list[tuple[str, str]], graded: Callable, run: Callable, questions: Callable, tokenizer: Any,
        tmp_path: Path) -> None:
    one, two, three, four, five = questions(True, 5)
    inputs = graded({one: [WRONG, A, WRONG, A, B, WRONG_TOO, A_TOO, NOTHING], two: [B, B, A, WRONG],
                     three: [A, B], four: [WRONG, NOTHING], five: [A, WRONG + "..."]})
    said = run(pair, replace(PAIRS, cap=cap), inputs, "pairs")
    assert pairs_of(tmp_path / "pairs", tokenizer) == wanted
    told = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert (told["questions"], told["questions_with_pairs"], told["pairs"], told["unfit_traces"]) == (5, 2, len(wanted), 1)
    assert list(told["left_out"].values()) == [1, 1, 1]
    sizes = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for both in wanted for t in both]
    assert told["supervised_tokens"] == sum(sizes)
    assert "1 questions: no trace is right" in said
    assert "1 questions: no trace is wrong" in said


def test_no_pair_at_all_is_an_error_with_counts(graded: Callable, run: Callable, questions: Callable) -> None:
    one, two = questions(True, 2)
    with pytest.raises(DataError, match="no pair of a right and a wrong trace") as caught:
        run(pair, PAIRS, graded({one: [A, B], two: [WRONG]}), "pairs")
    assert "1 questions: no trace is right, 1 questions: no trace is wrong" in caught.value.what
    assert "method=rft" in caught.value.remedy


def test_verdicts_of_another_sampling_are_refused(graded: Callable, sampled: Callable, run: Callable,
                                                  questions: Callable) -> None:
    one, two = questions(True, 2)
    inputs = graded({one: [A], two: [A]})
    other = sampled({one: [A, B], two: [A]}, name="other")
    with pytest.raises(DataError, match=r"verdicts\.jsonl has trace 0 of question .* where samples\.jsonl has trace 1"):
        run(build, replace(WHOLE, method=MethodName.rft, right=True), {**inputs, "samples": other}, "rows")
