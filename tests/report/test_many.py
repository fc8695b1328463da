"""The report on many cells: its numbers against numbers counted anew, its files against each other, what can be selected."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from markdown_it import MarkdownIt
from stores import PAPER, QUESTIONS, Setting, cell, key, rows, store
from test_page import Page

from upft import dossier, shelf, statistics
from upft.errors import DataError, StoreError
from upft.report import files, knobs, latex, markdown, overview, paper, spreadsheet, wording
from upft.report.evidence import Answer
from upft.report.page import Pair
from upft.report.settings import settings
from upft.report.table import Cell, Column, Row, Table, estimate
from upft.statistics import Estimate, Paired

SCHEMA = Path(paper.__file__).with_name("results.schema.json")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    dossier.write(store(folder / "store"), folder / "out")
    return folder


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "out" / "results.json").read_text(encoding="utf-8"))
    return found


def table(root: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "out" / "tables" / f"{name}.csv").open(encoding="utf-8")))


def matrix(task: str, one: Setting | None) -> np.ndarray:
    """[seeds, questions] of the base model or a setting, from the rows themselves."""
    return np.array([[sum(r["right"] for r in found[2 * q:2 * q + 2]) / 2 for q in range(QUESTIONS[task])] for found in (
        rows(task, ("base", seed), 0.0) if one is None else rows(task, replace(one, seed=seed), one.gain) for seed in (0, 1))])


def without_detectable(paired: dict[str, Any]) -> dict[str, Any]:
    assert 0 < paired["smallest_detectable"] <= 1
    return {name: value for name, value in paired.items() if name != "smallest_detectable"}


def test_seeds_are_one_row_with_an_interval_over_both(told: dict[str, Any]) -> None:
    assert len(told["settings"]) == len(PAPER) // 2
    for one in PAPER[::2]:
        (found,) = [s for s in told["settings"] if (s["method"], s["prefix_len"], s["ratio"]) == (
            one.label, one.prefix_len, one.ratio)]
        assert found["seeds"] == [0, 1]
        for task in one.tasks:
            before, after = matrix(task, None), matrix(task, one)
            assert found["tasks"][task]["accuracy"]["value"] == pytest.approx(after.mean())
            paired = statistics.paired_over_seeds(before, after)
            assert found["tasks"][task]["paired"]["difference"] == pytest.approx(after.mean() - before.mean())
            assert without_detectable(found["tasks"][task]["paired"]) == pytest.approx(vars(paired))
        means = [np.mean([matrix(task, side).mean() for task in one.tasks]) for side in (None, one)]
        assert found["mean"]["accuracy"]["value"] == pytest.approx(means[1])
        assert found["mean"]["paired"]["difference"] == pytest.approx(means[1] - means[0])
    verdicts = {(s["method"], s["prefix_len"], s["ratio"]): s["mean"]["paired"]["verdict"] for s in told["settings"]}
    assert verdicts["UPFT", 8, 0.5] == "loss"
    assert verdicts["UPFT", 32, 0.1] == "gain"
    assert verdicts["SFT", None, 1.0] == "inside noise"


def test_the_base_model_is_one_row_of_all_its_answers(told: dict[str, Any]) -> None:
    (base,) = told["bases"]
    for task in QUESTIONS:
        assert base["tasks"][task]["samples"] == 4
        assert base["tasks"][task]["accuracy"]["value"] == pytest.approx(matrix(task, None).mean())


def test_costs_and_their_shares(told: dict[str, Any]) -> None:
    by_name = {(s["method"], s["prefix_len"], s["ratio"]): s for s in told["settings"]}
    rft, one = by_name["RFT", None, 1.0], by_name["UPFT", 8, 0.1]
    assert rft["cost"]["sampled"] == 16 * 12_000 * 300
    assert one["cost"]["sampled"] == 12_000 * 8
    assert one["shares"]["RFT"]["sampled"] == pytest.approx(8 / (16 * 300))
    assert one["shares"]["SFT"]["trained"] == pytest.approx(8 / 300)
    assert one["cost"]["gpu_hours"] == pytest.approx((1800 + 136) / 3600)
    assert rft["shares"]["RFT"] == pytest.approx(dict.fromkeys(rft["shares"]["RFT"], 1.0))
    flops = [s["cost"]["sampled"] * 1e10 + s["cost"]["trained_with_prompts"] * 4e10 for s in (one, rft)]
    assert one["shares"]["RFT"]["flops"] == pytest.approx(flops[0] / flops[1])
    assert one["cost"]["peak_device_bytes"] == 60 * 2**30
    assert all(s["estimated"] == [] for s in told["settings"]), "each has sampled for itself"


def test_a_shared_sampling_is_charged_by_the_tokens_needed(tmp_path: Path) -> None:
    """Of one sampling 900 s and 0.5 GPU-hours are RFT's; SFT needs a sixteenth of the tokens, UPFT 8 of 4,800."""
    every = [replace(Setting(method, label, length, ratio), tasks=("gsm8k",), shared=True) for method, label, length, ratio in (
        ("rft", "RFT", None, 1.0), ("sft", "SFT", None, 1.0), ("upft", "UPFT", 8, 0.1))]
    page = dossier.write(store(tmp_path / "store", every), tmp_path / "out").read_text(encoding="utf-8")
    assert len(list((tmp_path / "store" / "sample").iterdir())) == 1
    told = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(told, json.loads(SCHEMA.read_text(encoding="utf-8")))
    found = {s["method"]: s for s in told["settings"]}
    for method, need, training in (("RFT", 1, 720), ("SFT", 1 / 16, 720), ("UPFT", 8 / 4800, 136)):
        cost = found[method]["cost"]
        assert cost["sampling_seconds"] == pytest.approx(900 * need)
        assert cost["gpu_hours"] == pytest.approx((1800 * need + training) / 3600)
        assert cost["peak_memory_bytes"] == 2**31, "of what ran"
        assert found[method]["estimated"] == ([] if method == "RFT" else ["gpu_hours", "sampling_seconds"])
    assert found["UPFT"]["shares"]["RFT"]["sampling_seconds"] == pytest.approx(found["UPFT"]["shares"]["RFT"]["sampled"])
    assert found["UPFT"]["shares"]["RFT"]["gpu_hours"] == pytest.approx((3 + 136) / (1800 + 720))
    rows_ = {row["setting"].partition(",")[0]: row for row in table(tmp_path, "cost")}
    assert [rows_[name]["gpu_hours_estimated"] for name in ("RFT", "SFT", "UPFT")] == ["", "yes", "yes"]
    for shown in ("15 min 00 s", "≈ 56.2 s", "≈ 1.5 s", "0.700", "≈ 0.231", "≈ 0.0386", "≈ 5.5%", "under whatever load it had"):
        assert shown in page, shown
    assert "$\\approx$ 0.231" in (tmp_path / "out" / "tables" / "cost.tex").read_text()


def test_a_cell_that_drew_nothing_is_not_charged_next_to_nothing(tmp_path: Path) -> None:
    """What its samples took is in no ledger of its own: not known, and no share of it either."""
    rft, upft = Setting("rft", "RFT", None, 1.0, tasks=("gsm8k",)), Setting(tasks=("gsm8k",), taken=1.0)
    page = dossier.write(store(tmp_path / "store", [rft, upft]), tmp_path / "out").read_text(encoding="utf-8")
    told = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(told, json.loads(SCHEMA.read_text(encoding="utf-8")))
    one, other = sorted(told["settings"], key=lambda s: s["method"])
    assert (one["method"], one["cost"]["gpu_hours"]) == ("RFT", 0.7)
    assert (other["cost"]["sampling_seconds"], other["cost"]["gpu_hours"]) == (None, None)
    assert other["cost"]["training_seconds"] == 71
    assert not {"sampling_seconds", "gpu_hours"} & set(other["shares"]["RFT"])
    assert "A dash: the samples were taken over from other samplings" in page


def test_ratios_are_a_table_a_method_without_what_costs_the_same(root: Path) -> None:
    for method, missing in (("rft", "RFT"), ("sft", "SFT")):
        found = table(root, f"ratios-{method}")
        assert {row["setting"] for row in found} == {
            "RFT", "SFT", "UPFT, t = 8, p = 0.1", "UPFT, t = 8, p = 0.5", "UPFT, t = 32, p = 0.1",
            "UPFT + label filter, t = 8, p = 0.1"} - {missing}
        assert all(float(row[f"trained_of_{method}"]) > 0 for row in found)
        head = (root / "out" / "tables" / f"ratios-{method}.tex").read_text(encoding="utf-8").splitlines()[4]
        assert head.count("&") == 12
        assert max(len(line) for line in re.split(r"\\\\| & |\\shortstack\[r\]\{", head)) <= 12, "as narrow as the numbers"
    assert not (root / "out" / "tables" / "ratios.csv").exists()


def test_quantities_of_one_column_have_as_many_digits(root: Path) -> None:
    page = (root / "out" / "report.md").read_text(encoding="utf-8")
    found = re.findall(r"([\d.,]+) [PTG]FLOP\b", page)
    assert len(found) >= 6
    assert {len(re.sub(r"[.,]", "", number)) for number in found} == {3}
    assert "operations" not in page


def test_the_papers_figures_stand_beside_ours(root: Path) -> None:
    found = table(root, "unsupervised")
    published = {row["method"]: row for row in found if row["source"] == "paper"}
    assert set(published) == {"base", "SFT", "UPFT"}
    assert (float(published["UPFT"]["math500"]), float(published["UPFT"]["length"])) == (0.856, 51.4)
    assert float(published["base"]["mean"]) == 0.514
    supervised = {row["method"]: row for row in table(root, "supervised") if row["source"] == "paper"}
    assert float(supervised["UPFT + label filter"]["sampled"]) == 51.7e6
    assert float(supervised["RFT"]["aime24"]) == 0.2
    words = Page((root / "out" / "report.html").read_text(encoding="utf-8")).words
    assert "UPFT, as published" in words
    assert "arXiv:2503.02875" in words
    assert paper.line("supervised", "tiny", "arithmetic", "UPFT") is None


def test_the_papers_means_are_means_of_its_rows() -> None:
    for name in ("unsupervised", "supervised"):
        columns = paper.told()[name]["columns"]
        for row in paper.told()[name]["rows"]:
            one = dict(zip(columns, row, strict=True))
            assert np.mean([one[task] for task in paper.told()["tasks"]]) == pytest.approx(one["mean"], abs=0.0751), row


def test_page_markdown_latex_and_csv_tell_the_same(root: Path, told: dict[str, Any]) -> None:
    page = Page((root / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.problems == []
    text = (root / "out" / "report.md").read_text(encoding="utf-8")
    tex = (root / "out" / "tables" / "unsupervised.tex").read_text(encoding="utf-8")
    rows_ = {(r["method"], r["prefix_len"], r["ratio"]): r for r in table(root, "unsupervised") if r["source"] == "ours"}
    assert len(rows_) == 4
    for one in told["settings"]:
        if one["method"] not in ("SFT", "UPFT"):
            continue
        row = rows_[one["method"], str(one["prefix_len"] or ""), "" if one["prefix_len"] is None else str(one["ratio"])]
        a, p = one["tasks"]["math500"]["accuracy"], one["tasks"]["math500"]["paired"]
        assert float(row["math500_low"]) == a["low"]
        assert (float(row["mean_difference"]), row["mean_verdict"]) == (one["mean"]["paired"]["difference"],
                                                                        one["mean"]["paired"]["verdict"])
        shown = f"{100 * a['value']:.1f}", f"[{100 * a['low']:.1f}, {100 * a['high']:.1f}]"
        difference = f"{100 * p['difference']:+.1f}".replace("-", "−")
        assert " ".join(shown) in page.words
        assert f"{shown[0]} {markdown.escaped(shown[1])}<br>{difference}" in text
        assert f"{shown[0]} {{\\scriptsize {{}}{shown[1]}}}" in tex
        assert difference in page.words
        assert difference.replace("−", "$-$") in tex
    assert "inside noise" in page.words
    assert "▼" in page.words
    assert "60 questions, paper protocol, mean of 2 answers at T=0.6" in page.words
    assert "$^{\\mathrm{ns}}$" in tex
    assert "The tables of results hold 30 tests against the base model" in page.words
    assert "30 tests against the base model, each at the 5% level" in text


def test_results_json_keeps_to_its_schema(told: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(told, schema)
    for broken in ({**told, "schema": 2}, {**told, "more": 1}, {name: v for name, v in told.items() if name != "settings"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_the_same_artifacts_give_the_same_bytes(root: Path) -> None:
    reports = sorted((root / "store" / "report").iterdir())
    dossier.write(reports[::-1], root / "again")
    written = sorted(path.relative_to(root / "out") for path in (root / "out").rglob("*") if path.is_file())
    assert {str(path) for path in written} >= {"report.html", "report.md", "results.json", "figures/length-0.svg",
                                             "figures/ratio-0.pdf", "figures/pareto-0.svg", "figures/loss-0.svg",
                                             "tables/cost.tex", "tables/ratios-rft.csv", "tables/ratios-sft.csv",
                                             "tables/cells.csv"}
    for path in written:
        assert (root / "out" / path).read_bytes() == (root / "again" / path).read_bytes(), path


def test_examples_have_their_prefix_marked(tmp_path: Path) -> None:
    page = dossier.write([cell(tmp_path / "store", Setting(prefix_len=2, tasks=("gsm8k",)))], tmp_path / "out").read_text()
    marked = re.findall(r'<div class="text"><mark>(.*?)</mark>(.*?)</div>', page, re.DOTALL)
    assert len(marked) == 8
    for beginning, rest in marked:
        assert re.fullmatch(r"step\d+ then", beginning)
        assert re.match(r" \\boxed\{[56]\}", rest)


def test_other_learning_rates_are_other_settings_and_say_so(tmp_path: Path) -> None:
    one = Setting(tasks=("gsm8k",))
    reports = store(tmp_path / "store", [one, replace(one, seed=1), replace(one, lr=1e-5)])
    found = settings([dossier.read(report) for report in reports])
    assert [(s.seeds, s.knobs) for s in found] == [
        ([(0, 0), (1, 1)], ("train.lr=2e-06",)), ([(0, 0)], ("train.lr=1e-05",))]  # by value: as text 1e-05 would be first
    dossier.write(reports, tmp_path / "out")
    with (tmp_path / "out" / "tables" / "cells.csv").open(encoding="utf-8") as table:
        assert [(row["cell"], row["seed"]) for row in csv.DictReader(table)] == [
            ("UPFT, t = 8, p = 0.1, train.lr=2e-06", "0"), ("UPFT, t = 8, p = 0.1, train.lr=2e-06", "1"),
            ("UPFT, t = 8, p = 0.1, train.lr=1e-05", "0")]


def asked(root: Path, s: Setting, n: int, limit: int | None) -> Path:
    """A cell of which base and trained model were asked `n` times each of the first `limit` questions."""
    folder = cell(root, replace(s, data=f"{s.data} {n} {limit}"))
    told = json.loads((folder / "spec.json").read_text())
    told["spec"]["data"] = s.data
    for role, name in told["inputs"].items():
        task = role.partition(":")[2]
        if not task:
            continue
        old = next(folder.parent.parent.glob(f"evaluate/{name}"))
        new = old.with_name(key(name, n, limit))
        if not new.is_dir():
            shutil.copytree(old, new)
            lines = [json.loads(line) for line in (old / "answers.jsonl").open()]
            (new / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["index"] < n and (
                limit is None or int(line["id"][-3:]) < limit)))
            spec = json.loads((old / "spec.json").read_text())
            spec["spec"] |= {"n": n, "questions": {"type": "QuestionsSpec", "limit": limit, "source": {
                "type": "HubRef", "id": task, "revision": "0" * 40}}}
            (new / "spec.json").write_text(json.dumps(spec))
        told["inputs"][role] = new.name
    (folder / "spec.json").write_text(json.dumps(told))
    return folder


def test_settings_that_answered_other_questions_are_not_chosen_from_together(tmp_path: Path) -> None:
    """One training, evaluated twice: two findings, two base rows, each named once by the keys that a user types."""
    one = Setting(tasks=("gsm8k", "gpqa"))
    reports = [asked(tmp_path / "store", one, 2, None), asked(tmp_path / "store", one, 1, 20)]
    found = settings([dossier.read(report) for report in reports])
    assert [s.knobs for s in found] == [("eval.limit=20", "eval.n=1"), ("eval.limit=null", "eval.n=2")]
    told = overview.findings(found)
    assert len(told) == 2
    assert not any("Best of" in finding["numbers"] for finding in told)
    assert told[0]["what"].replace("\u00a0", " ").startswith(
        "UPFT, t = 8, p = 0.1, eval.limit=20, eval.n=1 raised accuracy on the mean of 2 tasks: ")
    dossier.write(reports, tmp_path / "out")
    kinds = [(row["source"], row["method"], row["method_knobs"]) for row in table(tmp_path, "unsupervised")]
    assert [row for row in kinds if row[0] != "paper"] == [
        ("base", "base", "eval.limit=20; eval.n=1"), ("ours", "UPFT", "eval.limit=20; eval.n=1"),
        ("base", "base", "eval.limit=null; eval.n=2"), ("ours", "UPFT", "eval.limit=null; eval.n=2")]
    bases = json.loads((tmp_path / "out" / "results.json").read_text())["bases"]
    assert [base["knobs"] for base in bases] == [["eval.limit=20", "eval.n=1"], ["eval.limit=null", "eval.n=2"]]
    assert "base:gsm8k." not in "".join(kind[2] for kind in kinds)


def test_what_sets_settings_apart_has_the_names_that_users_type() -> None:
    evaluation = {"n": 1, "protocol": "paper", "questions": {"limit": None}, "sampling": {"temperature": 0.0},
                  "wording": "{question}"}
    one = {"samples": {"n": 1, "questions": {"limit": None, "source": {"type": "HubRef", "id": "a", "revision": "1" * 40}}},
           "rows": {"eos": True}, "train": {"lr": 2e-6, "lora": None}, "base:a": evaluation, "trained:a": evaluation,
           "base:b": evaluation, "trained:b": evaluation}

    def other(role: str, **more: Any) -> dict[str, Any]:
        return {name: {**spec, **more} if name.partition(":")[0] in role.split() else spec for name, spec in one.items()}

    adapters = {"type": "LoraSpec", "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": None, "merge": False}
    limited = {"questions": {**one["samples"]["questions"], "limit": 128}}
    standard = {**evaluation, "protocol": "standard", "n": 4, "sampling": {"temperature": None}, "wording": "other {question}"}
    assert knobs.differ([one]) == [()]
    assert knobs.differ([one, other("train", lr=1e-4)]) == [("train.lr=2e-06",), ("train.lr=0.0001",)]
    assert knobs.differ([one, other("rows", eos=False)]) == [("prefix.eos=true",), ("prefix.eos=false",)]
    assert knobs.differ([one, other("samples", **limited)]) == [("data.limit=null",), ("data.limit=128",)]
    assert knobs.differ([one, other("train", lora=adapters)]) == [("train.lora=null",), ("train.lora.rank=16",)]
    assert knobs.differ([other("train", lora=adapters), other("train", lora={**adapters, "alpha": 8.0})]) == [
        ("train.lora.alpha=32.0",), ("train.lora.alpha=8.0",)]
    assert knobs.differ([one, other("base trained", n=4, sampling={"temperature": 1.0})]) == [
        ("eval.n=1", "eval.temperature=0.0"), ("eval.n=4", "eval.temperature=1.0")]
    assert knobs.differ([one, {name: standard if ":" in name else spec for name, spec in one.items()}]) == [
        ("eval.protocol=paper",), ("eval.protocol=standard",)]
    assert knobs.differ([one, {**one, "base:b": {**evaluation, "n": 8}, "trained:b": {**evaluation, "n": 8}}]) == [
        ("eval.tasks.b.paper.n=1",), ("eval.tasks.b.paper.n=8",)]
    assert knobs.differ([one, {name: spec for name, spec in one.items() if not name.endswith(":b")}]) == [
        ("eval.tasks=a,b",), ("eval.tasks=a",)]


def test_what_ours_do_otherwise_than_the_paper_is_told(root: Path, told: dict[str, Any], tmp_path: Path) -> None:
    by_name = {(s["method"], s["prefix_len"], s["ratio"]): s["published"] for s in told["settings"]}
    asked_otherwise = {"questions", "protocol"}
    assert set(by_name["UPFT", 32, 0.1]["unsupervised"]["unlike"]) == asked_otherwise
    assert set(by_name["UPFT", 8, 0.5]["supervised"]["unlike"]) == {"prefix_len", "ratio"} | asked_otherwise
    assert by_name["UPFT", 8, 0.5]["supervised"]["unlike"]["prefix_len"] == {"ours": 8, "paper": 32}
    assert by_name["UPFT", 8, 0.1]["unsupervised"]["unlike"]["questions"]["gsm8k"] == {"ours": 60, "paper": 1319}
    assert set(by_name["SFT", None, 1.0]["unsupervised"]["unlike"]) == asked_otherwise
    rows_ = table(root, "unsupervised")
    assert {row["prefix_len"] + "/" + row["ratio"] + "/" + row["questions"] for row in rows_ if row["source"] == "paper"
            and row["method"] == "UPFT"} == {"32/0.1/12000"}
    assert [row["method_unlike_paper"] for row in rows_ if row["source"] == "ours"] == [
        "", "prefix_len", "prefix_len; ratio", ""]
    words = Page((root / "out" / "report.html").read_text(encoding="utf-8")).words
    for text in ("60 of 1,319 questions of gsm8k", "gsm8k, math500, aime24, gpqa asked otherwise", "1,319 questions",
                 "unlike the paper: t, p", "ours were read by the rule alone"):
        assert text in words, text
    folder = cell(tmp_path / "store", Setting(lr=1e-4, prefix_len=32))
    train, sample = (folder.parent.parent / stage / json.loads((folder / "spec.json").read_text())["inputs"][role]
                     for stage, role in (("train", "train"), ("sample", "samples")))
    spec = json.loads((train / "spec.json").read_text())
    (train / "spec.json").write_text(json.dumps({**spec, "spec": {**spec["spec"], "lora": {"type": "LoraSpec", "rank": 16}}}))
    (sample / "samples.json").write_text(json.dumps({"questions": 128}))
    dossier.write([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    for what in ("training questions 128, the paper's 12,000", "learning rate 0.0001, the paper's 2e-06",
                 "adapters, the paper trains all weights"):
        assert what in text, what


def test_nothing_is_said_of_a_cell_that_does_as_the_paper(tmp_path: Path) -> None:
    line = paper.line("unsupervised", "qwen_math", "prm12k", "UPFT")
    assert line is not None
    ours = {"prefix_len": 32, "ratio": 0.1, "training_questions": 11_950, "epochs": 2, "lr": 2e-6, "adapters": False}
    asked_ = {"gsm8k": {"questions": 1319, "samples": 1, "temperature": 0.0, "protocol": "paper"}}
    assert paper.unlike(line, ours, asked_) == {}
    assert set(paper.unlike(line, ours, {"gsm8k": {**asked_["gsm8k"], "protocol": "standard"}})) == {"protocol"}
    assert set(paper.unlike(line, {**ours, "training_questions": 128}, asked_)) == {"training_questions"}
    distill = paper.line("unsupervised", "r1_distill", "limo", "UPFT")
    assert distill is not None
    assert distill.prefix_len is None  # not on record


def test_p_values_of_all_settings_are_holms(told: dict[str, Any]) -> None:
    one = [s["mean"]["paired"]["p_value"] for s in told["settings"]]
    stepped, largest = [], 0.0
    for rank, value in enumerate(sorted(one)):
        largest = max(largest, min(1.0, value * (len(one) - rank)))
        stepped.append(largest)
    assert sorted(s["p_value_of_all"] for s in told["settings"]) == pytest.approx(stepped)
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_seeds_of_the_training_alone_are_seeds_too(tmp_path: Path) -> None:
    """One row with an interval over them; the base model's answers are the same for all, and are counted once."""
    one = Setting(tasks=("gsm8k",))
    every = [one, *(replace(one, train_seed=seed) for seed in (1, 2))]
    reports = store(tmp_path / "store", every)
    page = dossier.write(reports, tmp_path / "out").read_text()
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    jsonschema.validate(told, json.loads(SCHEMA.read_text(encoding="utf-8")))
    [found] = told["settings"]
    assert (found["seeds"], found["train_seeds"]) == ([0, 0, 0], [0, 1, 2])
    before, after = (np.array([[row["right"] for row in of] for of in side], dtype=float).reshape(3, -1, 2).mean(axis=2)
                     for side in ([rows("gsm8k", ("base", 0), 0.0)] * 3, [rows("gsm8k", s, s.gain) for s in every]))
    assert len({tuple(row) for row in after}) == 3
    assert without_detectable(found["tasks"]["gsm8k"]["paired"]) == pytest.approx(vars(
        statistics.paired_over_seeds(before, after)))
    assert found["tasks"]["gsm8k"]["accuracy"] == pytest.approx(vars(statistics.over_seeds(after)))
    [base] = told["bases"]
    assert base["tasks"]["gsm8k"]["samples"] == 2
    assert [c["train_seed"] for c in told["cells"]] == [0, 1, 2]
    assert "3 cells, 1 setting, seed 0, training seeds 0, 1, 2" in page
    assert len(shelf.choose(["train.seed=1,2"], tmp_path / "store").reports) == 2


def test_trainings_on_the_same_samples_are_one_seed(tmp_path: Path) -> None:
    """By their mean: they are alike, and counted one by one would make the interval too narrow."""
    one = Setting(tasks=("gsm8k",))
    every = [replace(one, seed=seed, train_seed=training) for seed in (0, 1) for training in (0, 1, 2)]
    dossier.write(store(tmp_path / "store", every), tmp_path / "out")
    [found] = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert (found["seeds"], found["train_seeds"]) == ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2])
    before = np.array([[row["right"] for row in rows("gsm8k", ("base", seed), 0.0)] for seed in (0, 1)], dtype=float)
    after = np.array([[row["right"] for row in rows("gsm8k", s, s.gain)] for s in every], dtype=float)
    before, after = before.reshape(2, -1, 2).mean(axis=2), after.reshape(2, 3, -1, 2).mean(axis=(1, 3))
    told = found["tasks"]["gsm8k"]
    assert without_detectable(told["paired"]) == pytest.approx(vars(statistics.paired_over_seeds(before, after)))
    assert told["accuracy"] == pytest.approx(vars(statistics.over_seeds(after)))


def test_of_two_reports_on_one_cell_the_later_counts(tmp_path: Path) -> None:
    one = Setting(tasks=("gsm8k",))
    old, new = cell(tmp_path, one), cell(tmp_path, one, "2026-03-02T10:00:00Z")
    dossier.write([new, old], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [c["key"] for c in told["cells"]] == [new.name]


def test_what_can_be_selected(root: Path) -> None:
    there = root / "store"
    every = sorted((there / "report").iterdir())
    assert shelf.choose([], there) == shelf.Chosen(every)
    assert shelf.choose([every[3].name[:8]], there) == shelf.Chosen([every[3]])
    assert len(shelf.choose(["method=upft", "prefix.len=8", "seed=1"], there).reports) == 2
    assert len(shelf.choose(["method=upft_label_filter,rft"], there).reports) == 4
    assert shelf.choose([str(every[0]), "seed=0,1"], there).reports == [every[0]]
    with pytest.raises(DataError, match=r"no report has seed=7\n.*there are: model=qwen_math; .*seed=0,1"):
        shelf.choose(["seed=7"], there)
    with pytest.raises(DataError, match=r"sede is nothing to select by\n.*'seed'"):
        shelf.choose(["sede=1"], there)
    with pytest.raises(StoreError, match="no report and no sweep"):
        shelf.choose(["ffffff00"], there)
    with pytest.raises(StoreError, match="holds no report"):
        shelf.choose([], root / "nothing")


def test_a_sweep_is_selected_by_its_id_and_told_by_its_command(root: Path) -> None:
    from upft.records import Records, Sweep
    from upft.store import Store

    every = sorted((root / "store" / "report").iterdir())
    Records(Store(root / "store")).keep_sweep(Sweep(
        "ab12cd34", ["/somewhere/bin/python", "run.py", "-m", "prefix.len=8,32"], "/there", "2026-03-01T10:00:00Z", "",
        {"one": every[0].name, "two": every[1].name, "missing": key("nowhere")}))
    chosen = shelf.Chosen(every[:2], "python run.py -m prefix.len=8,32", ["missing"])
    assert shelf.choose(["ab12"], root / "store") == chosen
    page = root / "store" / "sweeps" / "ab12cd34"
    page.mkdir(parents=True)
    assert shelf.choose([str(page)], root / "store") == chosen
    elsewhere = shelf.choose([str(page)], root / "elsewhere")
    assert ([one.name for one in elsewhere.reports], elsewhere.missing) == ([one.name for one in every[:2]], ["missing"])
    assert shelf.choose(["ab12", "seed=0"], root / "store").command is None


def test_a_sweep_selected_by_its_id_names_the_cells_that_have_no_report(root: Path, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture) -> None:
    from upft.choices import MethodName
    from upft.plan import Stage
    from upft.records import Records, Sweep
    from upft.specs import ReportSpec
    from upft.store import Store

    every = sorted((root / "store" / "report").iterdir())
    planned = Stage("report", "report", ReportSpec("UPFT of a on b", "a", "b", MethodName.upft, 16, 0.1, 7, ("gsm8k",)))
    records = Records(Store(root / "store"))
    records.describe([planned])
    records.keep_sweep(Sweep("cd34ef56", ["python", "run.py", "-m", "prefix.len=8,16"], "/there", "2026-03-01T10:00:00Z", "",
                             {"prefix.len=8": every[0].name, "prefix.len=16 seed=7": planned.key}))
    shelf.main(["cd34ef56", "--store", str(root / "store"), "--out", str(tmp_path)])
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["missing"] == ["prefix.len=16 seed=7"]
    assert "1 cell of this sweep has no report yet: prefix.len=16 seed=7" in (tmp_path / "report.html").read_text()
    assert "without a report: prefix.len=16 seed=7" in "".join(capsys.readouterr())
    seed = json.loads((every[0] / "spec.json").read_text())["spec"]["seed"]
    assert shelf.choose(["cd34ef56", f"seed={seed}"], root / "store").missing == []
    assert shelf.choose(["cd34ef56", f"seed={seed},7"], root / "store").missing == ["prefix.len=16 seed=7"]


def test_a_report_deletes_what_an_earlier_one_wrote_and_nothing_of_the_users(root: Path, tmp_path: Path) -> None:
    one, other = (cell(tmp_path / f"store{n}", Setting(prefix_len=8, tasks=("gsm8k",), looked=n == 0)) for n in (0, 1))
    out = tmp_path / "paper"
    mine = {"tables/mine.tex": "\\toprule", "tables/cost-notes.csv": "a", "figures/overview.pdf": "%PDF",
            "figures/sketch.svg": "<svg/>", "figures/length-0/raw.txt": "raw",
            "figures/accuracy.svg": "<svg/>", "tables/kl-0.txt": "x", "notes.md": "notes"}
    for name, text in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)

    def foreign() -> dict[str, str]:
        return {name: (out / name).read_text() for name in mine}

    dossier.write([one], out)
    first = json.loads((out / "results.json").read_text())["files"]
    assert {"tables/kl-3.tex", "figures/consistency-0.pdf", "tables/unsupervised.csv"} <= set(first)
    assert all((out / name).is_file() for name in first)
    assert foreign() == mine
    dossier.write([other], out)
    second = json.loads((out / "results.json").read_text())["files"]
    stale = set(first) - set(second)
    assert {"tables/kl-3.tex", "figures/consistency-0.pdf"} <= stale
    assert not [name for name in stale if (out / name).exists()]
    there = {str(path.relative_to(out)) for folder in ("tables", "figures") for path in (out / folder).rglob("*")
             if path.is_file()}
    assert there == set(second) | {name for name in mine if "/" in name}
    assert foreign() == mine


@pytest.mark.parametrize("told", [None, "no JSON", '{"loss": 1}', '{"schema": 1, "files": ["figures/kl-0.svg"]}', "[]"])
def test_a_folder_without_an_earlier_report_loses_nothing(tmp_path: Path, told: str | None) -> None:
    out = tmp_path / "paper"
    for name in ("figures/kl-0.svg", "tables/ratios.csv"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    if told is not None:
        (out / "results.json").write_text(told)
    assert files.earlier(out) == []


def test_a_report_of_before_files_were_listed_is_known_by_its_names(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "old"
    written = dossier.write([cell(tmp_path / "store", Setting(looked=True))], out).parent
    told = json.loads((written / "results.json").read_text())
    listed = told.pop("files")
    (written / "results.json").write_text(json.dumps(told))
    (out / "tables" / "unsupervised-final.tex").write_text("mine")
    assert files.earlier(out) == listed
    for evil in ("../outside.csv", "tables/../../outside.csv", "notes.md"):
        (written / "results.json").write_text(json.dumps({**told, "files": [evil, *listed]}))
        assert files.earlier(out) == listed


def test_a_secret_of_a_command_is_in_no_file_of_the_report_or_the_record(root: Path, tmp_path: Path) -> None:
    from upft.records import Records, Sweep
    from upft.store import Store

    every = sorted((root / "store" / "report").iterdir())
    secret, command = "0123456789abcdef", ["python", "run.py", "hydra.job.env_set.WANDB_API_KEY=0123456789abcdef", "seed=0"]
    dossier.write(every[:1], tmp_path / "out", " ".join(command))
    Records(Store(tmp_path / "store")).keep_sweep(Sweep("ab12", command, "/there", "", "", {}))
    assert "seed=0" in (tmp_path / "out" / "report.md").read_text()
    assert "env_set.WANDB_API_KEY=REDACTED seed=0" in (tmp_path / "out" / "report.html").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_the_door(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shelf.main(["seed=0", "--store", str(root / "store"), "--out", str(tmp_path)])
    assert (tmp_path / "report.html").is_file()
    with pytest.raises(SystemExit) as stopped:
        shelf.main(["model=none", "--store", str(root / "store"), "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "model=qwen_math" in capsys.readouterr().err


def test_the_door_needs_no_torch_and_its_neighbour_still_opens(root: Path, tmp_path: Path) -> None:
    code = ("import sys; from upft import shelf; shelf.main(sys.argv[1:]); "
            "sys.exit(' '.join({'torch', 'transformers', 'vllm', 'wandb'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code, "seed=0", "--store", str(root / "store"), "--out", str(tmp_path)],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 reports read" in done.stdout
    for module, shown in (("upft.report", "SELECTION"), ("upft.report.methods", "")):
        given = "--help" if shown else str(root / "nothing")
        done = subprocess.run([sys.executable, "-m", module, given],
                              capture_output=True, text=True, check=False)
        assert shown in done.stdout
        assert "Traceback" not in done.stderr
        assert "RuntimeWarning" not in done.stderr


HOSTILE = Table("hostile", "50% of_all & more", (Column("a", "a_b", False), Column("b", "x^2 #", True)), (
    Row((Cell("\\input{x} $1$ {~} <b> | _x_ [y](z)", "t", data={"": "=cmd()"}), Cell("—"))),
    Row((Cell("[first]", "t", data={"": "plain, \"quoted\""}),
         estimate(Estimate(0.5, 0.25, 0.75), Paired(-0.125, -0.25, -0.0625, 0.01, "t", "loss"))), "paper")), "100%")


def test_latex_escapes_what_tex_obeys() -> None:
    text = latex.table(HOSTILE)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == "\\begin{tabular}{@{}lr@{}}"
    assert body[-1] == ("\\par\\smallskip\\parbox{\\linewidth}{\\footnotesize\\raggedright 100\\% $^{\\blacktriangle}$ gain, "
                        "$^{\\blacktriangledown}$ loss, $^{\\mathrm{ns}}$ inside noise.}")
    assert "a\\_b & x\\textasciicircum{}2 \\# \\\\" in body
    assert ("\\textbackslash{}input\\{x\\} \\$1\\$ \\{\\textasciitilde{}\\} \\textless{}b\\textgreater{} "
            "\\textbar{} \\_x\\_ [y](z) & --- \\\\") in body
    assert "\\emph{[first]} & \\emph{50.0} {\\scriptsize {}[25.0, 75.0]} \\\\" in body
    assert " & {\\scriptsize $-$12.5 [$-$25.0, $-$6.2]$^{\\blacktriangledown}$} \\\\" in body
    assert all(ord(sign) < 128 for sign in text)
    plain = re.sub(r"\\[{}$&#%_\\]", "", "\n".join(body))
    assert plain.count("{") == plain.count("}")


COMMANDS = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
            "textbar": "|", "textasciigrave": "`"}


def printed(tex: str) -> str:
    """What TeX prints of text with commands that take no argument, escaped signs and empty groups; nothing else is allowed."""
    out = ""
    while tex:
        if tex.startswith(r"\symbol{34}"):
            out, tex = out + '"', tex[11:]
            continue
        found = re.match(r"\\([a-z]+)\{\}|\\([{}$&#%_])|(\{\})|([^\\{}$&#%_~^])", tex)
        assert found, f"TeX would obey {tex[:20]!r}"
        command, sign, _, plain = found.groups()
        out += COMMANDS[command] if command else sign or plain or ""
        tex = tex[found.end():]
    return out


NAMES = ["".join(map(chr, range(32, 127))), r"\input{/etc/passwd}", "a%b", "$x^2$", "#1", "~/models/x_y-z", "50% & more",
         "{", "}", "}{",
         "\\", "\\\\", r"\end{tabular}", "--", "---", "''", "``", ",,", "<<>>", "?`!`", "[2pt]", "*", "&&", "^^M", "^^5c",
         "_", "tab\tnew\nline", "it's", '"q"', "a|b", "\x00\x07", ""]


@pytest.mark.parametrize("name", NAMES)
def test_latex_prints_any_name_as_it_is(name: str) -> None:
    tex = latex.escaped(name)
    assert printed(tex) == re.sub(r"[\0\s]", " ", name).replace("\x07", "[U+0007]")
    for pair in ("--", "''", ",,", "<<", ">>", "?`", "!`"):
        assert pair not in tex, "TeX's fonts make one sign of two"


@pytest.mark.parametrize(("name", "shown"), [("modèle Größe", "modele Grosse"), ("模型", "[U+6A21][U+578B]"), ("ﬁne", "fine"),
                                             ("½ \U0001f600", "1[U+2044]2 [U+1F600]"), ("ł", "[U+0142]")])
def test_latex_needs_no_font_but_its_own(name: str, shown: str) -> None:
    shown = shown.replace("Grosse", "Gro[U+00DF]e").replace("1[U+2044]2", "12")
    assert printed(latex.escaped(name)) == shown


def test_every_latex_table_is_balanced_ascii(root: Path) -> None:
    """Of real tables: as many cells in each line as columns, groups that close, one tabular."""
    hostile = [Row(tuple(Cell(name, name, "[1.0, 2.0]", f"{name} [3]", "gain") for _ in range(2))) for name in NAMES]
    texts = [(root / "out" / "tables" / f"{name}.tex").read_text(encoding="utf-8")
             for name in ("unsupervised", "supervised", "cost", "ratios-rft", "ratios-sft", "cells")]
    for text in [*texts, latex.table(Table("x", "Title % “x”\n\\end", HOSTILE.columns, tuple(hostile), "Note − ‖"))]:
        assert text.isascii()
        body = [line for line in text.splitlines() if not line.startswith("%")]
        end = body.index("\\end{tabular}")
        body, note = body[:end + 1], body[end + 1:]
        assert body[0].count("\\begin{tabular}") == 1
        for line in note:
            assert re.fullmatch(r"\\par\\smallskip\\parbox\{\\linewidth\}\{\\footnotesize\\raggedright .*\}", line)
            assert re.sub(r"\\[{}$&#%_\\]", "", line).count("{") == re.sub(r"\\[{}$&#%_\\]", "", line).count("}")
        assert len(note) == ("paired difference" in text or "\\blacktriangle" in text or "paper counts" in text
                             or "over the seeds" in text)
        columns = len(re.fullmatch(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", body[0])[1])  # type: ignore[index]
        rules = [line for line in body[1:-1] if line in ("\\toprule", "\\midrule", "\\bottomrule")]
        assert rules == ["\\toprule", "\\midrule", "\\bottomrule"]
        for line in body[1:-1]:
            plain = re.sub(r"\\[{}$&#%_\\]", "", line)
            assert plain.count("{") == plain.count("}"), line
            depth = 0
            for sign in plain:
                depth += (sign == "{") - (sign == "}")
                assert depth >= 0, line
            if line not in rules:
                assert plain.count("&") == columns - 1, line
                assert line.endswith(" \\\\")
                assert not line.lstrip().startswith(("[", "*")), "the line before would take it for an argument"
            assert plain.count("$") % 2 == 0
            assert "%" not in plain
            assert "#" not in plain


def test_markdown_and_csv_escape_what_they_obey() -> None:
    lines = markdown.table(HOSTILE).splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert widths == {3}
    assert "&lt;b&gt;" in "".join(lines)
    found = list(csv.reader(io.StringIO(spreadsheet.table(HOSTILE))))
    assert found[1][1] == "'=cmd()"
    assert found[2][1] == 'plain, "quoted"'
    assert dict(zip(found[0], found[2], strict=True))["b_difference"] == "-0.125"


def test_a_difference_and_its_parts_add_up_as_they_are_said() -> None:
    assert wording.parts(0.004, 0.0036, 0.0004) == ["+0.4", "+0.4", "0.0"]
    assert wording.parts(0.00412, 0.0036, 0.00052) == ["+0.41", "+0.36", "+0.05"]  # of one digit: +0.4, +0.4 and +0.1
    assert wording.parts(-0.03, 0.01, -0.04) == ["−3.0", "+1.0", "−4.0"]
    for whole, first in ((0.00333, 0.001664), (0.01005, 0.005024), (-0.00995, 0.003336), (0.2, 0.06666)):
        said = [float(text.replace("−", "-")) for text in wording.parts(whole, first, whole - first)]
        assert said[0] == pytest.approx(said[1] + said[2])
        assert said == pytest.approx([100 * whole, 100 * first, 100 * (whole - first)], abs=0.051)


MARKUP = "1. <b>x</b> | *a* _b_ `c` [d](javascript:e) #f ~~g~~ $h$ @user https://evil.example www.evil.example ![i](j)"


@pytest.mark.parametrize(("beginning", "rest", "shown"), [
    ("Nora has ", "3 pears", "<strong>Nora has</strong> 3 pears"),
    ("Nora has", " 3 pears", "<strong>Nora has</strong> 3 pears"),
    ("Nora has\n", "3 pears", "<strong>Nora has</strong><br>3 pears"),
    ("Nora ha", "s 3 pears", "<strong>Nora ha</strong>s 3 pears"),
    (" ", "3 pears", " 3 pears"),
])
def test_no_space_is_lost_where_a_prefix_ends(beginning: str, rest: str, shown: str) -> None:
    one = Answer("q", 0, "?", "3", beginning + rest, "3", True, "stop", 4, None, False)
    text = markdown.examples("Title", [Pair("?", "3", one, one, (beginning, beginning))], "UPFT", 2)
    assert text.count(f"<br>{shown}\n") == 2


def test_markdown_has_the_examples_and_no_model_is_obeyed(tmp_path: Path) -> None:
    folder = cell(tmp_path / "store", Setting(prefix_len=2, tasks=("gsm8k",)))
    for name in json.loads((folder / "spec.json").read_text())["inputs"].values():
        for path in (tmp_path / "store").glob(f"evaluate/{name}/answers.jsonl"):
            lines = [json.loads(line) for line in path.open()]
            path.write_text("".join(json.dumps({
                **line, "question": MARKUP, "completion": f"{line['completion']}\n\n- {MARKUP}\n{'long ' * 5000}"}) + "\n"
                for line in lines))
    dossier.write([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    found = text[text.index("Questions that one model"):text.index("### The cells")]
    assert "Bold: the first 2 tokens" in found
    assert len(re.findall(r"^> - (base|UPFT), (✓ right|✗ wrong), answered [56]:<br><strong>step\d+ then</strong> "
                          r"\\\\boxed\{[56]\}<br>", found, re.MULTILINE)) == 8
    plain = re.sub(r"</?strong>|<br>|\\.|&[a-z]+;|&#\d+;", "", found)
    for sign in "<`*_|[]~$@":
        assert sign not in plain, sign
    assert "://" not in plain
    assert "www." not in plain
    assert {line[:3].strip() for line in found.splitlines()[1:] if line} <= {">", "> Q", "> -"}
    assert len(found) < 40_000
    html = MarkdownIt("commonmark", {"html": True}).render(found)
    assert set(re.findall(r"<(\w+)", html)) == {"blockquote", "p", "ul", "li", "br", "strong"}
    assert html.count("<blockquote>") == 4
    specs = text[text.index("## Everything each result depends on"):]
    assert '"longest": 64' in specs
    assert "tests against the base model" not in text  # there is one


def test_markdown_tells_the_specs_of_the_first_setting_and_what_others_have_else(root: Path) -> None:
    text = (root / "out" / "report.md").read_text(encoding="utf-8")
    specs = text[text.index("## Everything each result depends on"):]
    assert specs.count("<details>") == len(PAPER) // 2
    assert specs.count("what differs from the first") == len(PAPER) // 2 - 1
    assert "rows.spec.prefix_len = 32" in specs
    assert ".inputs." not in specs
    assert markdown.folded("a <b>", "x\n````\ny").splitlines()[2] == "`````"
