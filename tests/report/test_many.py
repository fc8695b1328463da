"""The report on many cells: its numbers against numbers counted anew, its files against each other, what can be selected."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from stores import PAPER, QUESTIONS, Setting, cell, key, rows, store
from test_page import Page

from upft import dossier, shelf, statistics
from upft.errors import DataError, StoreError
from upft.report import latex, markdown, paper, spreadsheet
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
            assert found["tasks"][task]["paired"] == pytest.approx(vars(paired))
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
    files = sorted(path.relative_to(root / "out") for path in (root / "out").rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {"report.html", "report.md", "results.json", "figures/length-0.svg",
                                             "figures/ratio-0.pdf", "figures/pareto-0.svg", "figures/loss-0.svg",
                                             "tables/cost.tex", "tables/ratios-rft.csv", "tables/ratios-sft.csv",
                                             "tables/cells.csv"}
    for path in files:
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
        ([(0, 0)], ("train.lr=1e-05",)), ([(0, 0), (1, 1)], ("train.lr=2e-06",))]


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
    assert found["tasks"]["gsm8k"]["paired"] == pytest.approx(vars(statistics.paired_over_seeds(before, after)))
    assert found["tasks"]["gsm8k"]["accuracy"] == pytest.approx(vars(statistics.over_seeds(after)))
    [base] = told["bases"]
    assert base["tasks"]["gsm8k"]["samples"] == 2
    assert [c["train_seed"] for c in told["cells"]] == [0, 1, 2]
    assert "3 cells, 1 setting, seed 0, training seeds 0, 1, 2" in page
    assert len(shelf.choose(["train.seed=1,2"], tmp_path / "store")[0]) == 2


def test_of_two_reports_on_one_cell_the_later_counts(tmp_path: Path) -> None:
    one = Setting(tasks=("gsm8k",))
    old, new = cell(tmp_path, one), cell(tmp_path, one, "2026-03-02T10:00:00Z")
    dossier.write([new, old], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [c["key"] for c in told["cells"]] == [new.name]


def test_what_can_be_selected(root: Path) -> None:
    there = root / "store"
    every = sorted((there / "report").iterdir())
    assert shelf.choose([], there) == (every, None)
    assert shelf.choose([every[3].name[:8]], there) == ([every[3]], None)
    assert len(shelf.choose(["method=upft", "prefix.len=8", "seed=1"], there)[0]) == 2
    assert len(shelf.choose(["method=upft_label_filter,rft"], there)[0]) == 4
    assert shelf.choose([str(every[0]), "seed=0,1"], there)[0] == [every[0]]
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
    found, command = shelf.choose(["ab12"], root / "store")
    assert (found, command) == (every[:2], "python run.py -m prefix.len=8,32")
    page = root / "store" / "sweeps" / "ab12cd34"
    page.mkdir(parents=True)
    assert shelf.choose([str(page)], root / "store") == (found, command)
    assert [one.name for one in shelf.choose([str(page)], root / "elsewhere")[0]] == [one.name for one in every[:2]]
    assert shelf.choose(["ab12", "seed=0"], root / "store")[1] is None


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
        assert (body[0].count("\\begin{tabular}"), body[-1]) == (1, "\\end{tabular}")
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
