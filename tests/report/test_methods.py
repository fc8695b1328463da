"""The table of methods: what a cell is charged, and cells side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from artifacts import answer, evaluated, making, spec, write

from upft.alone import Pilot
from upft.choices import MethodName
from upft.ledger import Ledger
from upft.report import methods, page, results
from upft.stages import report


def vstar(root: Path) -> tuple:
    """A V-STaR cell of two rounds by hand, with numbers that no two quantities share."""
    inputs = making(root)
    build = json.loads((inputs["rows"] / "rows.json").read_text())
    build |= {"supervised_tokens": 1_000, "used_tokens": 990, "prefix_len": None, "prefix_len_from": None,
              "alone": {"prompt_tokens": 7_000, "sampled_tokens": 50_000, "flops": 3e12}}
    (inputs["rows"] / "rows.json").write_text(json.dumps(build))
    first = build | {"supervised_tokens": 200, "used_tokens": 195,
                     "alone": {"prompt_tokens": 300, "sampled_tokens": 4_000, "flops": 5e11}}
    key = "f" * 20
    inputs |= {
        "rows:1": write(root / "build" / key, {"rows.json": first}, Ledger(seconds=1)),
        "samples:1": write(root / "sample" / key, {}, Ledger(sampled_tokens=8_000, seconds=2, device_seconds=3)),
        "train:1": write(root / "train" / key, {}, Ledger(supervised_tokens=400, forward_tokens=4_400, flops=7e10, seconds=4)),
        "grades": write(root / "grade" / key, {"grades.json": {"traces": 80, "right": 20}}, Ledger(seconds=8)),
        "pairs": write(root / "pair" / key, {"pairs.json": {"pairs": 11, "supervised_tokens": 640}}, Ledger(seconds=16)),
        "reference": write(root / "reference" / key, {}, Ledger(scored_tokens=123, flops=9e9, seconds=32)),
        "verifier": write(root / "train" / ("e" * 20), {"train.json": {"first_loss": 0.6931, "last_loss": 0.5, "steps": 3}},
                          Ledger(supervised_tokens=1_280, forward_tokens=2_500, flops=2e10, seconds=64)),
        "base:task": evaluated(root, "a", [answer(f"q{i}", i < 4, j) for i in range(10) for j in range(2)]),
        "generator:task": evaluated(root, "b", [answer(f"q{i}", i < 5, j) for i in range(10) for j in range(2)]),
        "candidates:task": evaluated(root, "c", [answer(f"q{i}", i < 5, j) for i in range(10) for j in range(4)]),
        "trained:task": evaluated(root, "d", [answer(f"q{i}", i < 9) for i in range(10)]),
    }
    (inputs["trained:task"] / "scores.json").write_text(json.dumps({
        "task": "task", "candidates": 4.0, "score": "likelihood", "accuracy": 0.9, "low": 0.6, "high": 0.98,
        "mean_of_candidates": 0.5, "some_candidate_right": 0.95, "ranked_right": 0.8}))
    return replace(spec("task"), method=MethodName.vstar, label="V-STaR", prefix_len=None, ratio=1.0), inputs


def test_what_a_cell_is_charged(tmp_path: Path) -> None:
    spec, inputs = vstar(tmp_path)
    book = Ledger.read(inputs["samples"])
    book.sampled_tokens, book.device_seconds = 50_000, 25.0
    book.write(inputs["samples"])
    evidence = report.read(spec, inputs)
    train = Ledger.read(next(s for s in (tmp_path / "train").iterdir() if s.name[0] == "0"))
    told = methods.costs(evidence)
    assert told == {
        "sampled": 54_000, "trained": 1_200 + 640, "verifier": 640, "sampled_with_prompts": 54_000 + 7_300,
        "trained_all_epochs": train.supervised_tokens + 400 + 1_280,
        "trained_with_prompts": train.forward_tokens + 4_400 + 2_500,
        "scored": 123, "sampling_flops": 3.5e12, "training_flops": pytest.approx(train.flops + 7e10 + 2e10 + 9e9),
        "seconds": pytest.approx(train.seconds + 4 + 64 + 8 + 16 + 32 + 1 + Ledger.read(
            tmp_path / "build" / "0123456789abcdef0123").seconds), "device_seconds": 0.0,
        # the second round drew what it needs, the first one twice as much
        "sampling_seconds": pytest.approx(12.5 + 2 / 2), "sampling_device_seconds": pytest.approx(25 + 3 / 2),
        "sampling_share": pytest.approx(54_000 / 58_000)}
    found = results.results(evidence)
    assert found["tokens"]["sampled"] == 54_000
    assert found["tokens"]["sampled_with_prompts"] == 61_300
    assert found["tokens"]["discarded"] == 54_000 - 990 - 195
    assert found["tokens"]["trained"] == told["trained_all_epochs"]
    assert found["generator"]["task"]["trained"]["accuracy"]["value"] == 0.5
    assert found["tasks"]["task"]["trained"]["accuracy"]["value"] == 0.9
    making_ = {s["role"] for s in found["stages"] if s["making"]}
    assert {"rows:1", "samples:1", "train:1", "grades", "pairs", "reference", "verifier"} <= making_
    assert {s["role"] for s in found["stages"]} - making_ == {"base:task", "generator:task", "candidates:task", "trained:task"}
    labels = {s["role"]: s["label"] for s in found["stages"]}
    assert labels["train:1"] == "train, round 1"
    assert labels["trained:task"] == "choose answers on task"
    assert labels["generator:task"] == "evaluate its generator on task"


@pytest.mark.parametrize(("book", "told", "share"), [
    ({"sampled_tokens": 1_000}, {}, 0.1),  # a sampling that others share: a tenth of its tokens are needed
    ({"sampled_tokens": 100}, {}, 1.0),
    ({"sampled_tokens": 100, "reused_tokens": 20}, {}, 1.25),  # measured on four fifths
    ({"sampled_tokens": 100, "reused_tokens": 51}, {}, None),
    ({"sampled_tokens": 100, "reused_tokens": 100}, {}, None),
    # a ledger is of all attempts
    ({"sampled_tokens": 100}, {"prefix_requests": 8, "trace_requests": 2, "reused_after_interruption": 6}, 1.0),
])
def test_sampling_time_is_that_of_the_tokens_needed(book: dict, told: dict, share: float | None, tmp_path: Path) -> None:
    inputs = making(tmp_path)
    Ledger(seconds=60, device_seconds=120, **book).write(inputs["samples"])
    (inputs["samples"] / "samples.json").write_text(json.dumps(told))
    rows = json.loads((inputs["rows"] / "rows.json").read_text())
    (inputs["rows"] / "rows.json").write_text(json.dumps(
        rows | {"alone": {"prompt_tokens": 5, "sampled_tokens": 100, "flops": 1e9}}))
    found = methods.sampling_alone(report.read(spec(), inputs))
    assert found == {"sampling_seconds": share and pytest.approx(60 * share),
                     "sampling_device_seconds": share and pytest.approx(120 * share),
                     "sampling_share": share and pytest.approx(share)}
    assert (found["sampling_share"] == 1) == (share == 1), "exactly, for then nothing is estimated"


def test_a_pilot_is_paid_for_once(tmp_path: Path) -> None:
    """Its tokens are the main sampling's first ones: 40 of its 60 are taken over, the others are the pilot's alone."""
    inputs = making(tmp_path)
    inputs["pilot"] = write(tmp_path / "sample" / ("d" * 20), {}, Ledger(sampled_tokens=60, seconds=10))
    Ledger(sampled_tokens=100, reused_tokens=40, seconds=30).write(inputs["samples"])
    evidence = replace(report.read(spec(), inputs), pilot=Pilot(0, 20, 0.0, 40))
    assert methods.sampling_alone(evidence) == {
        "sampling_seconds": 40.0, "sampling_device_seconds": 0.0, "sampling_share": 1.0}


def test_the_page_tells_of_the_choice(tmp_path: Path) -> None:
    evidence = report.read(*vstar(tmp_path))
    html = page.render(results.results(evidence), evidence, {})
    assert "whole traces, seed 0" in html
    assert "trained on 11 pairs" in html
    assert "from 0.693 to 0.500" in html
    assert "80, 25.0% right" in html
    for shown in ("54,000", "1,840", "640", "61,300"):
        assert f'<td class="n">{shown}</td>' in html


def test_cells_side_by_side(tmp_path: Path) -> None:
    one = results.results(report.read(*vstar(tmp_path / "one")))
    other = json.loads(json.dumps(one)) | {"method": "RFT", "seed": 3}
    elsewhere = json.loads(json.dumps(one)) | {"method": "UPFT", "model": "big", "data": "hard"}
    elsewhere["tasks"] |= {"second": json.loads(json.dumps(one["tasks"]["task"]))}
    elsewhere["tasks"]["second"]["trained"]["accuracy"] = {"value": 0.25, "low": 0.1, "high": 0.5}
    lines = methods.table([one, elsewhere, other])
    assert [(line.model, line.method, line.seed) for line in lines] == [
        ("big", "base", None), ("big", "UPFT", 0), ("tiny", "base", None), ("tiny", "V-STaR", 0), ("tiny", "RFT", 3)]
    assert lines[1].mean == pytest.approx((0.9 + 0.25) / 2)
    header, cells = methods.columns(lines)
    assert header[-3:] == ["task %", "second %", "mean %"]
    assert [row[-3].split()[0] for row in cells] == ["40.0", "90.0", "40.0", "90.0", "90.0"]
    assert [row[-2] for row in cells][2:] == ["—"] * 3, "a task that the cell was not asked"
    text = methods.markdown(lines)
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "| tiny, arithmetic | V-STaR | 0 | 54,000 | 1,840 | 640 | 61,300 |" in text


def test_the_door_names_what_is_no_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert methods.main([str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results.results(report.read(*vstar(tmp_path / "cell")))))
    assert methods.main([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("| model, data | method | seed | sampled | trained |")
