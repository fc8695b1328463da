"""The numbers of a report, against numbers worked out by hand."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import HOST, answer, diagnose, evaluated, making, realistic, spec, write
from rich.console import Console as RichConsole
from scipy import stats

from upft.errors import DataError
from upft.ledger import Ledger
from upft.report import wording
from upft.report.console import summary_table
from upft.stages import report


def run(task_spec: Any, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    out.mkdir()
    report.run(task_spec, inputs, out, HOST)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.fixture
def cell(tmp_path: Path) -> dict[str, Any]:
    """20 questions: 8 won, 1 lost, 6 right twice, 5 wrong twice. Rows stand in an order of no meaning."""
    before = [False] * 8 + [True] + [True] * 6 + [False] * 5
    after = [True] * 8 + [False] + [True] * 6 + [False] * 5
    style = ["guess"] * 10 + ["careful"] * 10, ["careful"] * 20
    inputs = making(tmp_path)
    inputs["base:toy"] = evaluated(tmp_path, "base", [
        answer(f"{n:02d}", r, style=style[0][n], tokens=20, finish_reason="length" if n < 3 else "stop")
        for n, r in enumerate(before)])
    inputs["trained:toy"] = evaluated(tmp_path, "trained", reversed([
        answer(f"{n:02d}", r, style=style[1][n], tokens=10 + n) for n, r in enumerate(after)]))
    return run(spec("toy"), inputs, tmp_path / "out")


def test_accuracy_and_paired_difference(cell: dict[str, Any]) -> None:
    task = cell["tasks"]["toy"]
    wilson = stats.binomtest(7, 20).proportion_ci(method="wilson")
    assert task["base"]["accuracy"] == {"value": 0.35, "low": pytest.approx(wilson.low), "high": pytest.approx(wilson.high)}
    assert task["trained"]["accuracy"]["value"] == 0.7
    half = stats.t.ppf(0.975, 19) * math.sqrt((9 - 20 * 0.35**2) / 19 / 20)
    paired = task["paired"]
    assert paired["difference"] == pytest.approx(0.35)
    assert (paired["low"], paired["high"]) == (pytest.approx(0.35 - half), pytest.approx(0.35 + half))
    assert paired["p_value"] == pytest.approx(11 / 512)  # mid-P: 2 (P(0) + P(1)/2)
    assert (paired["test"], paired["verdict"]) == ("mid-P McNemar", "gain")
    assert paired["smallest_detectable"] == pytest.approx(half * (1 + stats.t.ppf(0.8, 19) / stats.t.ppf(0.975, 19)))
    assert (task["questions"], task["samples"], task["questions_gained"], task["questions_lost"]) == (20, 1, 8, 1)
    assert (task["base"]["right"], task["base"]["unfinished"], task["base"]["mean_tokens"]) == (7, 3, 20.0)
    assert (task["trained"]["right"], task["trained"]["unfinished"], task["trained"]["mean_tokens"]) == (14, 0, 19.5)


def test_openings_split_the_change_into_coverage_and_accuracy(cell: dict[str, Any]) -> None:
    styles = cell["tasks"]["toy"]["styles"]
    careful, guess = sorted(styles["openings"], key=lambda o: o["style"])
    assert guess["base"] == {"answers": 10, "share": 0.5, "right": 2, "accuracy": 0.2}
    assert guess["trained"] == {"answers": 0, "share": 0.0, "right": 0, "accuracy": None}
    assert careful["base"] == {"answers": 10, "share": 0.5, "right": 5, "accuracy": 0.5}
    assert careful["trained"] == {"answers": 20, "share": 1.0, "right": 14, "accuracy": 0.7}
    # coverage: 0.5 * (0.5 + 0.7)/2 - 0.5 * 0.2 = 0.2; accuracy: (0.7 - 0.5) * (0.5 + 1)/2 = 0.15
    assert styles["coverage_effect"] == pytest.approx(0.2)
    assert styles["accuracy_effect"] == pytest.approx(0.15)


def test_costs_and_both_token_counts(cell: dict[str, Any]) -> None:
    assert cell["tokens"] == {"sampled": 1500, "sampled_with_prompts": 11100, "discarded": 120, "trained": 2900,
                              "trained_with_prompts": 22000, "trained_padding": 640}
    assert [(s["role"], s["making"]) for s in cell["stages"]] == [
        ("samples", True), ("diagnosis", True), ("rows", True), ("train", True), ("base:toy", False), ("trained:toy", False)]
    made, measured, total = (cell["totals"][name] for name in ("making", "evaluating", "all"))
    assert (made["seconds"], measured["seconds"], total["seconds"]) == (78.5, 40.0, 118.5)
    assert (made["sampled_tokens"], measured["sampled_tokens"], total["sampled_tokens"]) == (1500, 10000, 11500)
    assert total["peak_memory_bytes"] == made["peak_memory_bytes"] == 1200 * 2**20  # the largest, not the sum
    assert cell["training"]["mean_trained_length"] == 15.25
    assert (cell["training"]["prefix_rows"], cell["training"]["trace_rows"], cell["training"]["steps"]) == (86, 9, 4)


def test_the_length_that_was_used_is_told_and_a_pilot_belongs_to_the_cost(tmp_path: Path) -> None:
    found = diagnose(4, 12)
    inputs = making(tmp_path, diagnosed=found)
    built = json.loads((inputs["rows"] / "rows.json").read_text())
    (inputs["rows"] / "rows.json").write_text(json.dumps({**built, "prefix_len": 5, "prefix_len_from": "diagnosis"}))
    inputs["pilot"] = write(tmp_path / "pilot", {}, Ledger(prompt_tokens=100, sampled_tokens=400, seconds=2.0))
    for side in ("base", "trained"):
        inputs[f"{side}:toy"] = evaluated(tmp_path, side, [answer(f"{n:02d}", n != 3) for n in range(40)])
    told = run(replace(spec("toy"), prefix_len=None), inputs, tmp_path / "out")
    assert (told["prefix_len"], told["prefix_len_from"]) == (5, "diagnosis")
    assert told["diagnosis"] == found
    assert [(s["role"], s["label"], s["making"]) for s in told["stages"]][:3] == [
        ("pilot", "sample the pilot", True), ("samples", "sample", True), ("diagnosis", "diagnose prefixes", True)]
    assert told["totals"]["making"]["seconds"] == 80.5
    tokens = told["tokens"]
    # no samples tell what the sampling shares with the pilot, so nothing is taken off: see test_pilot.py
    assert (tokens["sampled"], tokens["sampled_with_prompts"], tokens["discarded"]) == (1900, 11600, 520)
    assert "(suggested by the diagnosis)" in (tmp_path / "out" / "report.html").read_text()


def test_headline_says_it_in_words(cell: dict[str, Any]) -> None:
    assert cell["headline"] == ["UPFT raised accuracy on toy: 35.0% → 70.0%. Difference +35.0 points "
                                "[7.5, 62.5], p = 0.021."]


def test_no_change_is_told_as_noise_and_what_would_have_shown(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    for side, wrong in (("base", 3), ("trained", 7)):
        inputs[f"{side}:toy"] = evaluated(tmp_path, side, [answer(f"{n:02d}", n != wrong) for n in range(40)])
    found = run(spec("toy"), inputs, tmp_path / "out")
    task = found["tasks"]["toy"]
    # one question each way: 1 - C(2, 1)/2^2 / 2
    assert (task["paired"]["verdict"], task["paired"]["p_value"], task["styles"]) == ("inside noise", pytest.approx(0.75), None)
    text = found["headline"][0]
    assert text.startswith("UPFT did not measurably change accuracy on toy: 97.5% → 97.5%. Difference 0.0 points [−")
    assert f"A change of {100 * task['paired']['smallest_detectable']:.1f} points would likely have shown." in text


def test_a_loss_is_told_as_one(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    inputs["base:toy"] = evaluated(tmp_path, "base", [answer(f"{n:02d}", True) for n in range(40)])
    inputs["trained:toy"] = evaluated(tmp_path, "trained", [answer(f"{n:02d}", n % 2 == 0) for n in range(40)])
    assert run(spec("toy"), inputs, tmp_path / "out")["headline"][0].startswith("UPFT lowered accuracy on toy: 100.0% → 50.0%.")


def test_several_answers_a_question(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    inputs["base:toy"] = evaluated(tmp_path, "base", [answer(f"{q}", q > 5, i) for i in (1, 0) for q in range(10)])
    inputs["trained:toy"] = evaluated(tmp_path, "trained", [
        answer(f"{q}", q > 5 or i == 0, i) for q in range(10) for i in (0, 1)])
    task = run(spec("toy"), inputs, tmp_path / "out")["tasks"]["toy"]
    assert (task["questions"], task["samples"], task["base"]["answers"]) == (10, 2, 20)
    assert (task["base"]["accuracy"]["value"], task["trained"]["accuracy"]["value"]) == (0.4, 0.7)
    assert task["paired"]["test"] == "sign-flip permutation (exact)"
    assert task["paired"]["p_value"] == pytest.approx(1 / 2**6)  # six questions changed, all the same way; mid-P
    assert [m["measure"] for m in task["several"]] == ["maj@2", "pass@2"]
    majority, solved = task["several"]
    # questions 0 to 5 after training: the right answer and a wrong one tie
    assert (majority["base"]["value"], majority["trained"]["value"]) == (0.4, pytest.approx(0.7))
    assert (solved["base"]["value"], solved["trained"]["value"]) == (0.4, 1.0)
    assert solved["paired"]["difference"] == pytest.approx(0.6)
    assert (task["questions_gained"], task["questions_lost"]) == (6, 0)


def test_tasks_name_their_protocol_and_have_a_mean(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    for task, count in (("few", 10), ("many", 40)):
        for side, right in (("base", 0.4), ("trained", 0.6)):
            inputs[f"{side}:{task}"] = evaluated(tmp_path, f"{side}-{task}", [
                answer(f"{n:02d}", n < right * count) for n in range(count)], protocol="paper", temperature=0.0)
    found = run(spec("few", "many"), inputs, tmp_path / "out")
    mean = found["mean"]
    assert (mean["base"]["accuracy"]["value"], mean["trained"]["accuracy"]["value"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (mean["paired"]["difference"], mean["protocol"]) == (pytest.approx(0.2), "paper")
    few = found["tasks"]["few"]["base"]["accuracy"]
    many = found["tasks"]["many"]["base"]["accuracy"]
    low = 0.4 - math.hypot(0.4 - few["low"], 0.4 - many["low"]) / 2  # independent tasks: distances add up in squares
    assert mean["base"]["accuracy"]["low"] == pytest.approx(low)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "paper protocol, greedy" in page
    assert "mean of 2 tasks" in page
    assert "paper protocol, greedy" in table(found)
    assert any(line.startswith("mean of 2 tasks 40.0%") for line in table(found))


def test_the_same_artifacts_give_the_same_report(tmp_path: Path) -> None:
    task_spec, inputs = realistic(tmp_path)
    run(task_spec, inputs, tmp_path / "one")
    run(task_spec, inputs, tmp_path / "two")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "figures/accuracy.pdf", "figures/accuracy.svg", "figures/beginnings.pdf", "figures/beginnings.svg",
        "figures/loss.pdf", "figures/loss.svg", "figures/styles-0.pdf", "figures/styles-0.svg", "ledger.json", "report.html",
        "report.md", "results.json", "tables/cost.csv", "tables/cost.tex", "tables/unsupervised.csv", "tables/unsupervised.tex"]
    for name in files:
        if name.name != "ledger.json":
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_summaries_may_be_missing(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    for side in ("base", "trained"):
        inputs[f"{side}:toy"] = evaluated(tmp_path, side, [
            {"id": str(n), "index": 0, "right": n < 5} for n in range(10)])
    for name in ("samples/samples.json", "diagnosis/diagnosis.json", "rows/rows.json", "train/train.json",
                 "train/metrics.jsonl", "train/spec.json", "train/provenance.json", "base:toy/scores.json"):
        role, _, file = name.partition("/")
        (inputs[role] / file).unlink()
    found = run(spec("toy"), inputs, tmp_path / "out")
    assert found["tasks"]["toy"]["base"]["accuracy"]["value"] == 0.5
    assert found["training"]["mean_trained_length"] is None
    assert (found["diagnosis"], found["prefix_len"]) == (None, 8)
    assert "mean trained length, tokens — —" in table(found)


def test_other_questions_cannot_be_paired(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    inputs["base:toy"] = evaluated(tmp_path, "base", [answer(f"{n}", True) for n in range(4)])
    inputs["trained:toy"] = evaluated(tmp_path, "trained", [answer(f"{n}", True) for n in range(2, 6)])
    with pytest.raises(DataError, match=r"4 and 4, 2 in common"):
        run(spec("toy"), inputs, tmp_path / "out")


@pytest.mark.parametrize("rows", [
    [answer("a", True), answer("a", True, 1), answer("b", True)],  # ragged
    [answer("a", True), answer("a", True), answer("b", True), answer("b", True)],  # the same answer twice
    [],
])
def test_answers_that_are_no_matrix_are_refused(rows: list[Any], tmp_path: Path) -> None:
    inputs = making(tmp_path)
    inputs["base:toy"] = inputs["trained:toy"] = evaluated(tmp_path, "base", rows)
    with pytest.raises(DataError, match=r"answers\.jsonl"):
        run(spec("toy"), inputs, tmp_path / "out")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    inputs = making(tmp_path)
    inputs["base:toy"] = inputs["trained:toy"] = evaluated(tmp_path, "base", [answer("a", True)])
    with (inputs["base:toy"] / "answers.jsonl").open("a") as stream:
        stream.write('{"id": "b", "ind')
    with pytest.raises(DataError, match=r"answers\.jsonl line 2"):
        run(spec("toy"), inputs, tmp_path / "out")


def table(found: dict[str, Any]) -> list[str]:
    """Lines of the terminal's table."""
    console = RichConsole(width=100, file=io.StringIO())
    console.print(summary_table(found))
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_terminal_table(cell: dict[str, Any]) -> None:
    lines = table(cell)
    assert lines[0] == "base UPFT"
    wilson = {n: stats.binomtest(n, 20).proportion_ci(method="wilson") for n in (7, 14)}
    low, high = ([f"{100 * getattr(wilson[n], end):.1f}" for n in (7, 14)] for end in ("low", "high"))
    assert f"toy, 20 questions 35.0% [{low[0]}, {high[0]}] 70.0% [{low[1]}, {high[1]}]" in lines
    assert "paired difference, points +35.0 [7.5, 62.5]" in lines
    assert "verdict gain, p = 0.021" in lines
    assert "mean trained length, tokens — 15.2" in lines
    assert "tokens sampled — 1,500" in lines
    assert "tokens trained — 2,900" in lines
    assert "time to sample, build and train — 1 min 18 s" in lines
    assert "peak memory — 1.17 GiB" in lines


@pytest.mark.parametrize(("text", "expected"), [
    (wording.percent(0.5512), "55.1%"), (wording.percent(None), "—"), (wording.signed(0.051), "+5.1"),
    (wording.signed(-0.051), "−5.1"), (wording.signed(-0.0001), "0.0"), (wording.interval(-0.0004, 0.063), "[0.0, 6.3]"),
    (wording.interval(-0.05, -0.01), "[−5.0, −1.0]"), (wording.p_value(0.00001), "p < 0.001"),
    (wording.p_value(0.0421), "p = 0.042"), (wording.p_value(0.9), "p = 0.90"), (wording.p_value(1.0), "p = 1.00"),
    (wording.p_value(0.0997), "p = 0.10"),
    (wording.seconds(0.04), "0.0 s"), (wording.seconds(59.96), "1 min 00 s"),
    (wording.seconds(3599.6), "1 h 00 min"), (wording.seconds(245), "4 min 05 s"), (wording.seconds(7_380), "2 h 03 min"),
    (wording.memory(900 * 2**20), "900 MiB"), (wording.memory(1.43 * 2**30), "1.43 GiB"),
    (wording.flops(1.234e15), "1.23 PFLOP"), (wording.flops(4.4e10), "44.0 GFLOP"), (wording.flops(2e12), "2.00 TFLOP"),
    (wording.flops(1.62e12), "1.62 TFLOP"), (wording.flops(9.996e11), "1.00 TFLOP"), (wording.digits(0.0072), "0.00720"),
    (wording.digits(999.6), "1,000"), (wording.digits(123.4), "123"), (wording.about("3 s", True), "≈ 3 s"),
    (wording.flops(12), "12 FLOP"),
    (wording.count(1234567), "1,234,567"), (wording.tokens(1), "1 token"), (wording.tokens(1024), "1,024 tokens"),
    (wording.nats(0.456), "0.46"), (wording.nats(None), "—"),
])
def test_formats(text: str, expected: str) -> None:
    assert text == expected
