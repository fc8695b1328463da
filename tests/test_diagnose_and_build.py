"""The stages `diagnose` and `build` as the pipeline calls them, on samples written by hand, with the embedded tokenizer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from upft import models, prefix
from upft.choices import CutUnit, MethodName
from upft.console import Console
from upft.errors import DataError
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.prompts import Prompter
from upft.sampler import EnginePool
from upft.specs import BuildSpec, ContentRef, DiagnoseSpec, ModelSpec, PromptSpec
from upft.stages import Host, build, diagnose

WEIGHTS = Path(__file__).parent.parent / "upft" / "toy" / "weights"
MODEL = ModelSpec(ContentRef("0" * 64, str(WEIGHTS)), False)
SUFFIX = " Only the first step, please."
RATIO = 0.5


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    if not (WEIGHTS / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in upft/toy/weights")
    return models.load_tokenizer(WEIGHTS)


def questions(whole: bool, count: int) -> list[str]:
    """Questions that carry a whole trace at RATIO, or that do not."""
    numbered = (f"What is {n} plus 2?" for n in range(1000))
    return [q for q in numbered if prefix.carries_trace(prefix.question_id(q), RATIO) == whole][:count]


@pytest.fixture
def samples(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """samples({question: [(ids, finish_reason, logprobs or None), ...]}, greedy) -> folder of the sample stage."""

    def write(drawn: dict[str, list[tuple[list[int], str, list[float] | None]]], greedy: bool = False) -> Path:
        folder = tmp_path / "samples"
        folder.mkdir()
        prompter = Prompter(tokenizer, PromptSpec(None, "{question}"))
        with (folder / "questions.jsonl").open("w") as asked, (folder / "samples.jsonl").open("w") as answered:
            for question, rows in drawn.items():
                id_ = prefix.question_id(question)
                asked.write(json.dumps({"id": id_, "text": question, "answer": None,
                                        "prompt_ids": prompter.ids(question)}) + "\n")
                kind = "trace" if prefix.carries_trace(id_, RATIO) else "prefix"
                for index, (ids, finish_reason, logprobs) in enumerate(rows):
                    row = {"id": id_, "index": index, "kind": kind, "ids": ids, "finish_reason": finish_reason}
                    answered.write(json.dumps(row if logprobs is None else {**row, "logprobs": logprobs}) + "\n")
        (folder / "samples.json").write_text(json.dumps({"stop_ids": [prompter.eos_id]}))
        (folder / "spec.json").write_text(json.dumps({"spec": {"sampling": {"temperature": 0.0 if greedy else 0.6}}}))
        return folder

    return write


def run(stage: Any, spec: Any, inputs: dict[str, Path], out: Path) -> str:
    """Run a stage; what it said."""
    out.mkdir()
    said = io.StringIO()
    compute = ComputeConfig()
    with EnginePool(compute) as engines:
        stage.run(spec, inputs, out, Host(compute, TrackerConfig(), Console(rich=RichConsole(file=said, width=300)), engines))
    return said.getvalue()


@pytest.fixture
def ends(tokenizer: Any) -> Callable[[str], list[int]]:
    """ends(text) -> its ids and EOS."""
    return lambda text: [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.fixture
def three(samples: Callable, ends: Callable) -> Path:
    """Two questions with prefixes of 3 tokens and one with whole traces, two samples each."""
    one, two = questions(False, 2)
    (three,) = questions(True, 1)
    half = [-0.5] * 3
    return samples({
        one: [([11, 12, 13], "length", half), ([11, 12, 14], "length", half)],
        two: [([11, 12, 13], "length", half), ([21, 12, 13], "length", half)],
        three: [(ends("We add: \\boxed{4}"), "stop", None), (ends("We add 2 to 2, so boxed 4"), "stop", None)]})


def diagnosed(samples: Path, tmp_path: Path, longest: int = 8) -> tuple[dict[str, Any], str]:
    out = tmp_path / "diagnosis"
    said = run(diagnose, DiagnoseSpec(MODEL, longest, 0.6), {"samples": samples}, out)
    assert Ledger.read(out).seconds > 0
    found: dict[str, Any] = json.loads((out / "diagnosis.json").read_text())
    return found, said


def test_diagnosis_of_an_artifact(three: Path, ends: Callable, tmp_path: Path) -> None:
    found, said = diagnosed(three, tmp_path, longest=4)
    a, b = ends("We add: \\boxed{4}"), ends("We add 2 to 2, so boxed 4")
    same = [a[:t] == b[:t] for t in (1, 2, 3, 4)]
    assert same[0]
    assert found["curve"]["t"] == [1, 2, 3, 4]
    assert found["curve"]["questions"] == [3, 3, 3, 1]
    assert found["curve"]["agreement"] == pytest.approx([(1 + same[0]) / 3, (1 + same[1]) / 3, same[2] / 3, same[3] / 1])
    assert found["whole"] == {"traces": 2, "finished": 1.0, "boxed": 0.5, "mean_tokens": (len(a) + len(b)) / 2,
                              "median_tokens": (len(a) + len(b)) / 2}
    assert found["prefixes"] == {"traces": 4, "finished": 0.0, "mean_tokens": 3.0}
    assert found["entropy"] == {"t": [1, 2, 3], "nats": [0.5] * 3, "tokens": [4] * 3}
    assert (found["agreement_threshold"], found["longest"]) == (0.6, 4)
    assert found["suggested"] == (2 if same[1] else 1)
    assert said == f"  suggested prefix length: {found['suggested']} token{'s' * same[1]}. {found['reason']}\n"


def test_one_trace_a_question_says_nothing_and_still_looks_for_boxes(samples: Callable, ends: Callable, tmp_path: Path) -> None:
    drawn = {q: [([11, 12, 13], "length", None)] for q in questions(False, 3)}
    drawn |= {q: [(ends(text), "stop", None)] for q, text in zip(
        questions(True, 3), ("So \\boxed{1}", "So \\boxed {1}", "\\boxed{2}"), strict=True)}
    found, said = diagnosed(samples(drawn), tmp_path)
    assert said == ""
    assert found["suggested"] is None
    assert "sample.n=8" in found["reason"]
    assert (found["whole"]["traces"], found["whole"]["boxed"]) == (3, pytest.approx(2 / 3))
    assert (found["prefixes"]["mean_tokens"], found["entropy"]) == (3.0, None)


def test_log_probabilities_of_greedy_tokens_are_no_entropy(samples: Callable, tmp_path: Path) -> None:
    (question,) = questions(False, 1)
    found, _ = diagnosed(samples({question: [([11], "length", [-0.7])]}, greedy=True), tmp_path)
    assert found["entropy"] is None


SPEC = BuildSpec(MethodName.upft, MODEL, PromptSpec(None, "{question}"), 2, CutUnit.token, RATIO, SUFFIX, True, False, 512)


def suggesting(tmp_path: Path, length: int | None) -> Path:
    folder = tmp_path / "suggestion"
    folder.mkdir()
    (folder / "diagnosis.json").write_text(json.dumps({"suggested": length, "reason": "As written by hand."}))
    return folder


def completions(folder: Path) -> list[list[int]]:
    return [[x for x in row.labels if x != prefix.UNSUPERVISED] for row in prefix.read_rows(folder / prefix.FILE)]


def test_the_length_is_the_configs_or_the_diagnosis_and_rows_json_says_which(three: Path, ends: Callable, tmp_path: Path,
                                                                             tokenizer: Any) -> None:
    eos, whole = tokenizer.eos_token_id, ends("We add: \\boxed{4}")
    run(build, SPEC, {"samples": three}, tmp_path / "given")
    assert completions(tmp_path / "given") == [[11, 12, eos], [11, 12, eos], whole]
    run(build, replace(SPEC, prefix_len=None), {"samples": three, "diagnosis": suggesting(tmp_path, 3)}, tmp_path / "found")
    assert completions(tmp_path / "found") == [[11, 12, 13, eos], [11, 12, 13, eos], whole]
    told = [json.loads((tmp_path / name / "rows.json").read_text()) for name in ("given", "found")]
    assert [(t["prefix_len"], t["prefix_len_from"]) for t in told] == [(2, "config"), (3, "diagnosis")]
    assert [(t["prefix_rows"], t["trace_rows"]) for t in told] == [(2, 1)] * 2
    assert [t["mean_supervised"] for t in told] == [(2 * 3 + len(whole)) / 3, (2 * 4 + len(whole)) / 3]
    assert [e["kind"] for e in told[0]["examples"]] == ["prefix", "trace"]


def test_a_diagnosis_that_suggests_nothing_is_refused(three: Path, tmp_path: Path) -> None:
    inputs = {"samples": three, "diagnosis": suggesting(tmp_path, None)}
    with pytest.raises(DataError, match="As written by hand") as caught:
        run(build, replace(SPEC, prefix_len=None), inputs, tmp_path / "out")
    assert caught.value.remedy == "give prefix.len=N"


@pytest.mark.parametrize(("first", "changes", "used"), [
    (["First", ",", "Ġwe"], {}, 2),  # cut at 2
    (["First", ",", "Ġwe"], {"prefix_len": 5}, 0),  # the limit cut it before
    (["First", ",", "<|eos|>"], {"prefix_len": 5}, 3),  # it ended before
    (["First", "<|eos|>"], {}, 2),  # its EOS is its own
    (["First", ",", "Ġ", "Ġwe", "Ġadd"], {"unit": CutUnit.word, "prefix_len": 5}, 4),  # the second space is lost
    (["First", ",", "Ġ", "Ġwe", "Ġadd"], {"unit": CutUnit.word, "prefix_len": 6}, 0),  # the limit cut it before
    (["ha", "nd"] * 2 + ["<|eos|>"], {"unit": CutUnit.word, "prefix_len": 9}, 5),  # in the row h, an, d twice: 6, of 5 sampled
    (["First", ",", "Ġwe"], {"max_length": 30}, 0),  # its row is too long
])
def test_discarded_tokens_are_those_sampled_and_in_no_row(first: list[str], changes: dict[str, Any], used: int,
                                                          samples: Callable, ends: Callable, tokenizer: Any,
                                                          tmp_path: Path) -> None:
    (one,), (two, three) = questions(False, 1), questions(True, 2)
    ids = tokenizer.convert_tokens_to_ids(first)
    assert None not in ids
    whole, short = ends("We add: \\boxed{4}"), ends("4")
    folder = samples({one: [(ids, "stop" if first[-1] == "<|eos|>" else "length", None), ([11, 12], "length", None)],
                      two: [(whole, "length", None), (short, "stop", None)],  # cut, so it makes no row
                      three: [(short, "stop", None), (whole, "stop", None)]})
    run(build, replace(SPEC, **changes), {"samples": folder}, tmp_path / "out")
    assert len(completions(tmp_path / "out")) == 1 + (used > 0)
    sampled = len(first) + 2 + 2 * (len(whole) + len(short))
    assert Ledger.read(tmp_path / "out").discarded_tokens == sampled - used - len(short)


@pytest.mark.parametrize("unit", list(CutUnit))
def test_a_prefix_that_the_limit_cut_short_gets_no_eos(unit: CutUnit, samples: Callable, ends: Callable, tokenizer: Any,
                                                       tmp_path: Path) -> None:
    """Sampled as whole traces, which an early limit cut: no row ends where nothing ended. A trace that ended itself counts."""
    cut, full, ended = questions(False, 3)
    ids = ends("We add 2 to 2")
    assert len(ids) > 5
    folder = samples({cut: [(ids[:4], "length", None)], full: [(ids[:5], "length", None)], ended: [(ends("4"), "stop", None)]})
    run(build, replace(SPEC, prefix_len=5, unit=unit), {"samples": folder}, tmp_path / "out")
    found, eos = completions(tmp_path / "out"), tokenizer.eos_token_id
    assert len(found) == 2
    assert unit is CutUnit.word or found == [[*ids[:5], eos], ends("4")]
    assert json.loads((tmp_path / "out" / "rows.json").read_text())["left_out"][build.SHORT] == 1


def test_rows_do_not_depend_on_whether_their_sampling_is_shared(samples: Callable, ends: Callable, tmp_path: Path) -> None:
    """A question with no room for a prefix in the model's context is not asked for prefixes alone; asked for a whole trace,
    which needs no such room, it gives no prefix row either, even where its trace ended in time."""
    near, roomy, whole = *questions(False, 2), questions(True, 1)[0]
    folder = samples({question: [(ends("4"), "stop", None)] for question in (near, roomy, whole)})
    told = json.loads((folder / "samples.json").read_text())
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    lines[0]["prompt_ids"] += [11] * 20
    lines[2]["prompt_ids"] += [11] * 20
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    full = len(lines[0]["prompt_ids"]) + 5
    for context, rows, lost in ((full, 3, {}), (full - 1, 2, {build.CRAMPED: 1})):
        (folder / "samples.json").write_text(json.dumps({**told, "context": context}))
        out = tmp_path / str(context)
        run(build, replace(SPEC, prefix_len=5), {"samples": folder}, out)
        assert len(completions(out)) == rows, "a whole trace needs room for itself alone"
        found = json.loads((out / "rows.json").read_text())
        assert {reason: count for reason, count in found["left_out"].items() if count} == lost
        assert found["questions"] == 3


def test_the_samples_are_read_as_rows_are_asked_for(three: Path, tokenizer: Any) -> None:
    """The first row comes out although the file is broken further down, so it was not read whole."""
    lines = (three / "samples.jsonl").read_text().splitlines()
    (three / "samples.jsonl").write_text("\n".join([*lines[:3], "broken", *lines[4:]]) + "\n")
    rows = build.build(SPEC, 2, three, Prompter(tokenizer, SPEC.prompt), build.Tally())
    assert [x for x in next(rows).labels if x != prefix.UNSUPERVISED][:2] == [11, 12]
    with pytest.raises(json.JSONDecodeError):
        list(rows)


@pytest.mark.parametrize("damage", ["another order", "a question too few", "samples too few"])
def test_samples_of_other_questions_are_refused(damage: str, three: Path, tokenizer: Any) -> None:
    asked, drawn = three / "questions.jsonl", three / "samples.jsonl"
    lines, rows = asked.read_text().splitlines(), drawn.read_text().splitlines()
    if damage == "samples too few":
        drawn.write_text("\n".join(rows[:-2]) + "\n")
    else:
        asked.write_text("\n".join(lines[:-1] if damage == "a question too few" else [lines[1], lines[0], lines[2]]) + "\n")
    with pytest.raises(DataError, match=r"samples\.jsonl has question .* where questions\.jsonl has"):
        list(build.build(SPEC, 2, three, Prompter(tokenizer, SPEC.prompt), build.Tally()))


def test_looking_for_examples_stops_at_one_of_each_kind(three: Path, tokenizer: Any) -> None:
    (three / "samples.jsonl").open("a").write("broken\n")
    tally = build.Tally()
    found = build.firsts(build.build(SPEC, 2, three, Prompter(tokenizer, SPEC.prompt), tally), 1)
    assert ([row.kind for row in found], tally.rows) == (["prefix"], 1)
