"""The analyses of many cells: pooled over seeds against numbers counted anew, in every file, from artifacts read once."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from stores import Setting, apart, cell, counted, key, sides, solved, store
from test_many import SCHEMA
from test_page import Page

from upft import dossier, statistics
from upft.answers import FILE
from upft.report import analyses, settings, studies
from upft.stages import report as stage

ONE = ("gsm8k",)
CELLS = [Setting(seed=seed, prefix_len=t, gain=gain, tasks=ONE, looked=True)
         for t, gain in ((4, 0.1), (8, 0.3)) for seed in (0, 1, 2)]
RFT = Setting("rft", "RFT", None, 1.0, 1, 0.2, tasks=ONE, looked=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    dossier.write(store(folder / "store", [*CELLS, RFT]), folder / "out")
    return folder


@pytest.fixture(scope="module")
def told(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "out" / "results.json").read_text(encoding="utf-8"))
    return found


def found(told: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {one["who"]: one for one in told["analyses"] if one["analysis"] == name}


def test_what_looks_at_the_base_model_is_told_once(told: dict[str, Any]) -> None:
    for name in ("consistency", "errors"):
        assert list(found(told, name)) == ["base"]
        one = found(told, name)["base"]
        assert (one["seeds"], one["artifacts"]) == ([0, 1, 2], [key(name, seed) for seed in (0, 1, 2)])
        assert one["method"] is None
    group = found(told, "consistency")["base"]["found"]["groups"][0]
    distinct = np.mean([[one.counts[1, 3] for one in counted(seed)] for seed in (0, 1, 2)], axis=0)
    assert group["distinct"]["mean"][3] == pytest.approx(distinct.mean())
    errors = found(told, "errors")["base"]["found"]
    assert errors["questions"] == 22, "the questions differ from seed to seed; each counts once"
    right: dict[str, list[float]] = {}
    for seed in (0, 1, 2):
        for one in sides(seed):
            right.setdefault(one.question, []).append(one.right[2])
    assert errors["right"]["mean"][2] == pytest.approx(np.mean([np.mean(values) for values in right.values()]))
    assert errors["critical"]["t"] == 4


def test_what_training_moved_has_its_interval_over_questions_and_seeds(told: dict[str, Any]) -> None:
    coverage = found(told, "coverage")
    assert list(coverage) == ["RFT", "UPFT, t = 4, p = 0.1", "UPFT, t = 8, p = 0.1"]
    for t, gain in ((4, 0.1), (8, 0.3)):
        one = coverage[f"UPFT, t = {t}, p = 0.1"]
        assert one["seeds"] == [0, 1, 2]
        value = {c: np.array([[q.by[c][1] for q in solved(replace(CELLS[0], seed=seed, prefix_len=t, gain=gain))]
                              for seed in (0, 1, 2)]) for c in (("base", "base"), ("trained", "trained"))}
        wanted = statistics.paired_over_seeds(value["base", "base"], value["trained", "trained"])
        assert one["found"]["change"][1] == pytest.approx(vars(wanted) | {"moved": one["found"]["change"][1]["moved"]})
    assert coverage["RFT"]["seeds"] == [1]
    assert coverage["RFT"]["found"]["change"][0]["test"].startswith("sign-flip permutation")
    kl = found(told, "kl")["UPFT, t = 8, p = 0.1"]["found"]
    assert kl["prefix"]["forward"]["mean"] == pytest.approx(np.mean([
        one.forward[:8].mean() for seed in (0, 1, 2) for one in apart(replace(CELLS[3], seed=seed))]))
    part, whole = (np.mean([one.forward[:n].sum() for seed in (0, 1, 2) for one in apart(replace(CELLS[3], seed=seed))])
                   for n in (8, 20))
    assert kl["share"]["value"] == pytest.approx(part / whole)
    assert 0.8 < kl["share"]["low"] < part / whole < kl["share"]["high"] < 0.95


def test_page_markdown_and_csv_show_them(root: Path, told: dict[str, Any]) -> None:
    page = Page((root / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.problems == []
    text = (root / "out" / "report.md").read_text(encoding="utf-8")
    for title in ("Prefix self-consistency", "Where errors begin", "What training moved: coverage and accuracy",
                  "Where training acts"):
        assert title in page.words
        assert f"## {title}" in text
    numbers = {name: number for number, name in enumerate(("consistency", "errors", "coverage", "kl"))}
    for name, number in numbers.items():
        assert (root / "out" / "figures" / f"{name}-{number}.svg").is_file()
        assert (root / "out" / "figures" / f"{name}-{number}.pdf").is_file()
        assert f"(figures/{name}-{number}.svg)" in text
        assert (root / "out" / "tables" / f"{name}-{number}.tex").is_file()
    rows = list(csv.DictReader((root / "out" / "tables" / "coverage-2.csv").open(encoding="utf-8")))
    assert [(row["setting"], row["tokens"]) for row in rows] == [
        (who, t) for who in ("RFT", "UPFT, t = 4, p = 0.1", "UPFT, t = 8, p = 0.1") for t in ("4", "8")]
    change = found(told, "coverage")["UPFT, t = 8, p = 0.1"]["found"]["change"][1]
    assert (float(rows[5]["change"]), float(rows[5]["change_p_value"])) == (change["difference"], change["p_value"])
    assert f"+{100 * change['difference']:.1f} [{100 * change['low']:.1f}, {100 * change['high']:.1f}]" in page.words
    assert "seeds 0, 1, 2" in page.words
    jsonschema.validate(told, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_what_was_asked_otherwise_stands_apart(tmp_path: Path) -> None:
    """Traces of another number a question are no more seeds of the same; nor is an artifact that does not say what it found."""
    reports = store(tmp_path / "store", CELLS[:2])
    place = tmp_path / "store" / "consistency" / key("consistency", 1) / "spec.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "spec": {"margin": 0.2}}))
    (tmp_path / "store" / "errors" / key("errors", 1) / "values.jsonl").unlink()
    every = studies.studies(settings.settings([dossier.read(one) for one in reports]))
    assert [[(one.who, one.seeds) for one in study.found] for study in every if study.name == "consistency"] == [
        [("base", ((0, 0),))], [("base", ((1, 1),))]]
    assert [[(one.who, one.seeds) for one in study.found] for study in every if study.name == "errors"] == [
        [("base, seed 0", ((0, 0),)), ("base, seed 1", ((1, 1),))]]
    dossier.write(reports, tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "errors-2-1.csv").is_file()


def test_analyses_asked_for_later_join_the_cell(tmp_path: Path) -> None:
    """They change nothing of its result, so the cell is one with and without them, whichever was reported last."""
    old = cell(tmp_path / "store", CELLS[0])
    new = cell(tmp_path / "store", replace(CELLS[0], looked=False), "2026-03-02T10:00:00Z")
    one, = settings.newest([dossier.read(old), dossier.read(new)])
    assert one.key == new.name
    assert set(one.looked) == {"consistency", "errors", "coverage", "kl"}


def many(root: Path, cells: int) -> list[Path]:
    """Cells of one seed, so of one base model's answers."""
    return store(root, [Setting(prefix_len=t, tasks=ONE, looked=True) for t in range(1, cells + 1)])


def test_a_base_is_read_once_and_memory_is_flat_in_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the cells take little more memory: a cell's answers go when it is read."""
    def words(folder: Path) -> list[Path]:
        reports = many(folder, 24)
        for path in (folder / "evaluate").glob(f"*/{FILE}"):  # answers of 20 KB, as a reasoning model's
            rows = [json.loads(line) for line in path.open()]
            path.write_text("".join(json.dumps({**row, "completion": row["completion"] + " x" * 10_000}) + "\n"
                                    for row in rows))
        return reports

    reports = words(tmp_path / "store")
    read: Counter[str] = Counter()
    lines = stage._lines

    def counting(path: Path) -> Any:
        read[path.parent.name] += path.name == FILE
        return lines(path)

    monkeypatch.setattr(stage, "_lines", counting)
    cases = list(dossier.read_all(reports))
    assert len(cases) == 24
    assert read[key("base", "gsm8k", 0)] == 1
    assert sum(read.values()) == 25

    def peak(some: list[Path]) -> int:
        tracemalloc.start()
        kept = list(dossier.read_all(some))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(kept) == len(some)
        return most

    peak(reports[:2])  # imports
    few, all_ = peak(reports[:6]), peak(reports)
    assert all_ < 1.5 * few, (few, all_)


def test_a_count_that_all_questions_share_has_no_interval() -> None:
    """What is left of one, how seldom another count may be, reads as if nothing were known; it stays in the data."""
    def band(*mean: float) -> dict[str, list[float]]:
        return {"mean": [*mean], "low": [one / 4 for one in mean], "high": [4 * one for one in mean]}

    group = {"from": None, "to": None, "questions": 30, "right": None, "t": [1, 2], "known": [30, 30], "distinct": band(4, 6),
             "traces_a_prefix": band(25, 16), "agreement": band(0.4, 0.2), "alike": [True, False]}
    told = {"questions": 30, "traces": 100, "groups": [group]}
    [section] = analyses.sections({"consistency": told}, "UPFT")
    assert "The first token takes 4.0 (every question) different values" in section.text[0]
    assert "6.0 [1.5, 24.0] different prefixes" in section.text[0]
    [table] = section.tables
    assert [row.cells[3].interval for row in table.rows] == ["every question", "[1.5, 24.0]"]
    assert table.rows[0].cells[3].data == {"": 4, "low": 1, "high": 16}
    assert [row.cells[5].interval for row in table.rows] == ["[10.0, 160.0]", "[5.0, 80.0]"], "pairs that agree are no count"
