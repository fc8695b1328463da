"""Whole cells of every method on the embedded model: from sampling to the report, over one store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from upft import prefix, selection, traces
from upft.ledger import Ledger

ROOT = Path(__file__).parent.parent.parent
GENERATED = "data.arithmetic.questions=60"
SMALL = ["eval.tasks.arithmetic.arithmetic.questions=20", "eval.n=3", "train.batch_size=20",
         "sample.n=6", "sample.trace_ratio=1.0", "method.verifier.n=3", "method.verifier.temperature=1.0"]

pytestmark = pytest.mark.slow


def cell(store: Path, *arguments: str) -> tuple[dict, str]:
    """(results.json, what was said) of a run; of several cells the last one's."""
    several = ["-m"] if any("," in one for one in arguments) else []
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), *several, f"run.store={store}", *SMALL,
                          *([] if "data=jsonl" in arguments else [GENERATED]), *arguments],
                         capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    reports = sorted((store / "report").glob("*/results.json"), key=lambda p: p.stat().st_mtime)
    return json.loads(reports[-1].read_text()), out.stdout


def by_method(store: Path) -> dict[str, dict]:
    """results.json of every report of a store."""
    reports = [json.loads(path.read_text()) for path in (store / "report").glob("*/results.json")]
    found = {one["method"]: one for one in reports}
    assert len(found) == len(reports)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods") / "store"


@pytest.fixture(scope="module")
def found(store: Path) -> dict[str, dict]:
    """Results by method, all from one store; several in one process, which has its imports and its base model once."""
    cell(store, "method=upft,sft")
    cell(store, "method=rft,vstar,upft_label_filter", "method.n=6")
    found = by_method(store)
    assert set(found) == {"UPFT", "SFT", "RFT", "V-STaR", "UPFT + label filter"}
    return found


def only(store: Path, stage: str) -> Path:
    [folder] = (p for p in (store / stage).iterdir() if p.suffix != ".partial")
    return folder


def test_one_sampling_serves_them_all_and_each_is_charged_what_it_needs(found: dict[str, dict], store: Path) -> None:
    samples, grades = only(store, "sample"), only(store, "grade")
    every = list(traces.read(samples, grades))
    assert {name: found[name]["method"] for name in found} == {name: name for name in found}
    sampled = {name: one["comparison"]["sampled"] for name, one in found.items()}
    everything = sum(len(t.ids) for q in every for t in q.traces)
    assert sampled["RFT"] == sampled["V-STaR"] == sampled["UPFT + label filter"] == everything
    assert everything == Ledger.read(samples).sampled_tokens
    assert sampled["SFT"] == sum(len(q.traces[0].ids) for q in every)
    assert sampled["UPFT"] == sum(
        len(q.traces[0].ids) if prefix.carries_trace(q.id, 0.1) else min(8, len(q.traces[0].ids)) for q in every)
    for name, one in found.items():
        assert one["tokens"]["sampled"] == sampled[name]
        assert one["comparison"]["sampled_with_prompts"] - sampled[name] == sum(
            len(q.prompt_ids) for q in every) * (1 if name in ("UPFT", "SFT") else 6)


def test_trained_tokens_are_those_of_the_chosen_traces(found: dict[str, dict], store: Path) -> None:
    every = list(traces.read(only(store, "sample"), only(store, "grade")))
    rft = sum(len(t.ids) for q in every for t in [t for t in q.traces if t.right and t.ended][:1])
    pairs = sum(len(a.ids) + len(b.ids) for q in every for a, b in selection.pairs([t for t in q.traces if t.ended], 1))
    assert pairs > 0
    counted = {name: one["comparison"] for name, one in found.items()}
    assert (counted["RFT"]["trained"], counted["RFT"]["verifier"]) == (rft, 0)
    assert (counted["V-STaR"]["trained"], counted["V-STaR"]["verifier"]) == (rft + pairs, pairs)
    assert counted["V-STaR"]["trained_all_epochs"] == rft + pairs
    assert found["V-STaR"]["tokens"]["trained"] == rft + pairs
    assert counted["V-STaR"]["training_flops"] > counted["RFT"]["training_flops"] > 0
    assert counted["SFT"]["trained"] == sum(len(q.traces[0].ids) for q in every if q.traces[0].ended)
    assert counted["UPFT"]["sampling_flops"] < counted["RFT"]["sampling_flops"]


def test_the_verifier_chooses_among_the_answers_the_generator_is_measured_by(found: dict[str, dict], store: Path) -> None:
    told = found["V-STaR"]
    [scores] = (json.loads(p.read_text()) for p in (store / "verify").glob("*/scores.json"))
    assert told["choosing"]["tasks"]["arithmetic"] == scores
    entry = told["tasks"]["arithmetic"]
    assert (entry["samples"], entry["trained"]["samples"], entry["questions"]) == (3, 1, 20)
    assert entry["trained"]["accuracy"]["value"] == scores["accuracy"]
    assert told["generator"]["arithmetic"] == found["RFT"]["tasks"]["arithmetic"]
    assert scores["mean_of_candidates"] == pytest.approx(entry_value(found["RFT"]))
    assert told["choosing"]["training"]["first_loss"] == pytest.approx(0.6931, abs=1e-3), "log 2: the reference is the base"
    roles = {s["role"]: s["making"] for s in told["stages"]}
    assert roles["verifier"] is True
    assert roles["reference"] is True
    assert roles["candidates:arithmetic"] is False


def entry_value(results: dict) -> float:
    value = results["tasks"]["arithmetic"]["trained"]["accuracy"]["value"]
    assert isinstance(value, float)
    return value


def test_the_page_and_the_table_show_all(found: dict[str, dict], store: Path) -> None:
    for report in (store / "report").iterdir():
        name = json.loads((report / "results.json").read_text())["method"]
        page = (report / "report.html").read_text()
        assert f"<title>{name} of tiny on arithmetic</title>" in page
    out = subprocess.run([sys.executable, "-m", "upft.report.methods", *map(str, sorted((store / "report").iterdir()))],
                         capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in out.stdout.splitlines()[2:]]
    assert rows[0][:2] == ["tiny, arithmetic", "base"]
    assert {row[1] for row in rows[1:]} == set(found)
    for row in rows[1:]:
        one = found[row[1]]
        assert row[3] == f"{one['comparison']['sampled']:,}"
        assert row[-1].startswith(f"{100 * entry_value(one):.1f} [")


def test_the_report_on_all_cells_says_what_each_says(found: dict[str, dict], store: Path, tmp_path: Path) -> None:
    out = subprocess.run([sys.executable, "-m", "upft.report", "--store", str(store), "--out", str(tmp_path)],
                         capture_output=True, text=True, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    settings = {one["method"]: one for one in json.loads((tmp_path / "results.json").read_text())["settings"]}
    assert set(settings) == set(found)
    for name, one in settings.items():
        told, task = found[name]["tasks"]["arithmetic"], one["tasks"]["arithmetic"]
        assert one["seeds"] == [0]
        assert task["accuracy"]["value"] == pytest.approx(told["trained"]["accuracy"]["value"])
        assert task["paired"]["difference"] == pytest.approx(told["paired"]["difference"])
        assert one["cost"]["sampled"] == found[name]["comparison"]["sampled"]
        for key in ("sampled", "trained"):
            assert one["shares"]["RFT"][key] == pytest.approx(
                found[name]["comparison"][key] / found["RFT"]["comparison"][key])


def test_time_to_sample_is_the_methods_own(found: dict[str, dict], store: Path) -> None:
    """Of the one sampling: all of it for the methods that need it all, for the others by the tokens they need."""
    book = Ledger.read(only(store, "sample"))
    for name, one in found.items():
        told = one["comparison"]
        assert told["sampling_share"] == pytest.approx(told["sampled"] / book.sampled_tokens)
        assert told["sampling_seconds"] == pytest.approx(book.seconds * told["sampling_share"])
        assert (told["sampling_share"] == 1) == (name not in ("UPFT", "SFT"))


def test_traces_for_others_to_choose_from_are_not_upfts(found: dict[str, dict], store: Path) -> None:
    """method.n=6 for all, as a sweep over methods sets it: UPFT and SFT still need one trace a question, and train on it."""
    cell(store, "method=upft,sft", "method.n=6")
    again = by_method(store)
    for name in ("UPFT", "SFT"):
        assert again[name]["comparison"] == found[name]["comparison"]


def test_a_method_alone_takes_over_and_draws_nothing(found: dict[str, dict], store: Path) -> None:
    """Without the shared key: UPFT's own sampling of prefixes, all of them beginnings of traces that are there."""
    result, said = cell(store, "method=upft", "sample.n=1", "sample.trace_ratio=null")
    assert "60 of 60 are in the store already" in said
    assert result["comparison"]["sampled"] == found["UPFT"]["comparison"]["sampled"]
    samples = max((store / "sample").iterdir(), key=lambda p: p.stat().st_mtime)
    book = Ledger.read(samples)
    assert book.sampled_tokens == book.reused_tokens == result["comparison"]["sampled"]
    assert result["comparison"]["sampling_seconds"] is None, "another sampling has paid"


@pytest.mark.parametrize("lora", [False, True])
def test_rounds_sample_from_the_model_of_the_round_before(lora: bool, tmp_path: Path) -> None:
    adapters = ["train=lora", "train.lora.rank=4"] if lora else []
    result, said = cell(tmp_path, "method=sft", "method.rounds=2", "method.restart=false", "sample.n=1", "train.lr=0.003",
                        "data.arithmetic.questions=30", *adapters)
    assert result["method"] == "SFT, 2 rounds"
    assert said.count("sample arithmetic, round") >= 2
    assert "in the store already" not in said, "what the base model sampled is not what the trained one would"
    one, two = ({tuple(t.ids) for q in traces.read(p) for t in q.traces} for p in (tmp_path / "sample").iterdir())
    assert one != two, "a rate this high changes what is sampled"
    roles = [s["role"] for s in result["stages"]]
    assert roles[:8] == ["samples:1", "diagnosis:1", "rows:1", "train:1", "samples", "diagnosis", "rows", "train"]
    assert result["comparison"]["trained"] == sum(
        json.loads(p.read_text())["supervised_tokens"] for p in (tmp_path / "build").glob("*/rows.json"))
    assert result["comparison"]["sampled"] == sum(
        Ledger.read(p).sampled_tokens for p in (tmp_path / "sample").iterdir())


def test_questions_without_an_answer_key_work_for_the_unsupervised_ones_only(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    asked = [f"Ann has {n} pens. She buys 3 more. How many?" for n in range(24)]
    data.write_text("".join(json.dumps({"question": question}) + "\n" for question in asked))
    mine = ["data=jsonl", f"data.path={data}", "sample.n=1"]
    cell(tmp_path / "store", "method=upft,sft", *mine)
    questions = {name: one["training"]["questions"] for name, one in by_method(tmp_path / "store").items()}
    assert questions == {"UPFT": 24, "SFT": 24}
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), f"run.store={tmp_path / 'none'}", "method=rft", *mine[:2]],
                         capture_output=True, text=True, cwd=ROOT)
    assert out.returncode != 0
    assert "data.answer_field=null" in out.stderr
    assert not (tmp_path / "none").exists(), "refused before anything is spent"


def test_methods_asked_for_together_share_the_largest_sampling(tmp_path: Path) -> None:
    """Without a word on the sampling: SFT's cell comes first, and still RFT's 16 traces are drawn before its one."""
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", "method=sft,upft,rft", f"run.store={tmp_path}",
                          "data.arithmetic.questions=24", "eval.tasks.arithmetic.arithmetic.questions=10",
                          "compute.threads=1"], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    ledgers = {json.loads((folder / "samples.json").read_text())["traces_a_question"] * 100 + json.loads(
        (folder / "spec.json").read_text())["spec"]["trace_ratio"]: json.loads((folder / "ledger.json").read_text())
        for folder in (tmp_path / "sample").iterdir()}
    assert sorted(ledgers) == [100.1, 101, 1601]
    assert ledgers[1601]["reused_tokens"] == 0
    for small in (100.1, 101):
        assert ledgers[small]["reused_tokens"] == ledgers[small]["sampled_tokens"] > 0
    [page] = tmp_path.glob("sweeps/*/report.html")  # on all three, at the end of the sweep
    assert "all 3 cells: " in out.stdout
    told = json.loads((page.parent / "results.json").read_text())
    assert {one["method"] for one in told["settings"]} == {"SFT", "UPFT", "RFT"}
    assert len(told["cells"]) == 3
    told = subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", "method=sft,upft,rft", "plan=true",
                           f"run.store={tmp_path / 'new'}"], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert "2 of the samplings draw nothing: a larger one, made first, holds their samples" in told.stdout
