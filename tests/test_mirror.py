"""What W&B is told of a sweep, read back from the files that W&B itself writes, with its own record format."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "train"))
from test_tracking import KEY, records
from wandb_server import serving

from upft import lineage, mirror
from upft.choices import Style, TrackerKind
from upft.errors import ConfigError
from upft.machine import ComputeConfig, TrackerConfig
from upft.plan import plan
from upft.records import Machine, Records
from upft.store import Store

ROOT = Path(__file__).parent.parent
SMALL = ["data.arithmetic.questions=60", "eval.limit=16", "sample.engine=transformers", "eval.engine=transformers",
         "train.batch_size=16", "compute.threads=1", "compute.accelerator=cpu", "sample.max_tokens=8"]
ANALYSED = ["analysis=all", "analysis.temperature=1.0", "analysis.consistency.questions=6", "analysis.consistency.n=4",
            "analysis.errors.questions=12", "analysis.errors.n=8", "analysis.errors.at=[2,8]",
            "analysis.errors.continuations=2", "analysis.coverage.questions=6", "analysis.coverage.traces=2",
            "analysis.coverage.at=[4,8]", "analysis.coverage.continuations=2", "analysis.kl.questions=4"]
SWEEP = ["-m", "sweep=tiny_prefix_length", "prefix.len=4,8", *SMALL, *ANALYSED]


@dataclass
class Told:
    """One .wandb file."""

    run: Any
    config: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, Any] = field(default_factory=dict)
    table: dict[str, Any] | None = None

    @classmethod
    def of(cls, file: Path) -> Told:
        found = records(file)
        run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
        out = cls(run, {item.key: json.loads(item.value_json) for item in run.config.update})
        for record in found:
            match record.WhichOneof("record_type"):
                case "summary":
                    out.summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                                    for item in record.summary.update}
                case "history":
                    out.points.append({item.key or "/".join(item.nested_key): json.loads(item.value_json)
                                       for item in record.history.item})
                case "artifact":
                    out.artifacts[record.artifact.name] = record.artifact
        for path in (file.parent / "files").rglob("*.table.json"):
            out.table = json.loads(path.read_text())
        return out


def command(store: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return subprocess.run([sys.executable, str(ROOT / "run.py"), *more, f"run.store={store}"], capture_output=True, text=True,
                          cwd=ROOT, timeout=600, env={**known, "WANDB_DIR": str(store.parent), **environment})


def runs(folder: Path) -> list[Told]:
    return [Told.of(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def spec(store: Path, name: str, key: str) -> dict[str, Any]:
    """What a stage's key is the hash of."""
    found = json.loads((store / name / key / "spec.json").read_text())
    assert isinstance(found, dict)
    return found


def stages(folder: Path) -> list[Told]:
    """Those of stages."""
    return [told for told in runs(folder) if told.run.job_type != "sweep"]


def one(found: list[Told], key: str) -> Told:
    """The last, which is whole: a training has an earlier one, live."""
    return [told for told in found if told.run.run_id == key][-1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store filled by two cells, one after the other."""
    store = tmp_path_factory.mktemp("sweep") / "store"
    out = command(store, *SWEEP, "tracker=wandb", "tracker.project=upft-test", "tracker.tags=[mine]",
                  NETRC=str(store / "none"))
    assert out.returncode == 0, out.stderr
    return store


@pytest.mark.slow
def test_a_sweep_is_a_group_a_cell_a_run(sweep: Path) -> None:
    found = runs(sweep.parent)
    group, = {told.run.run_group for told in found}
    assert group.startswith("sweep-")
    assert {told.run.project for told in found} == {"upft-test"}
    assert all({"mine", "tiny_prefix_length"} <= set(told.run.tags) for told in found)
    cells = [told for told in found if told.run.job_type == "report"]
    assert sorted(told.config["cell"] for told in cells) == ["prefix.len=4", "prefix.len=8"]
    for told in cells:
        assert {"tiny", "arithmetic", "upft"} <= set(told.run.tags)
        assert f"sweep-{told.config['sweep']}" == group
        assert told.config["cell"] in told.run.display_name
        assert told.config["prefix"]["len"] == int(told.config["cell"].removeprefix("prefix.len="))
        assert told.config["eval"]["limit"] == 16
        results = json.loads((sweep / "report" / told.run.run_id / "results.json").read_text())
        task = results["tasks"]["arithmetic"]
        assert told.summary["arithmetic/base"] == task["base"]["accuracy"]["value"]
        assert told.summary["arithmetic/trained"] == task["trained"]["accuracy"]["value"]
        assert [told.summary[f"arithmetic/{name}"] for name in ("difference", "difference_low", "difference_high", "p")] == [
            task["paired"][name] for name in ("difference", "low", "high", "p_value")]
        assert told.summary["cost/making/flops"] == results["totals"]["making"]["flops"]
        assert told.summary["tokens/sampled"] == results["tokens"]["sampled"]


@pytest.mark.slow
def test_the_sweeps_page_is_an_artifact_of_its_own_run(sweep: Path) -> None:
    """With a line a cell in its table, linked to the cells' reports."""
    [sweep_record] = Records(Store(sweep)).sweeps()
    [told] = [told for told in runs(sweep.parent) if told.run.job_type == "sweep"]
    assert told.run.run_id == f"sweep-{sweep_record.id}"
    assert (told.summary["cells"], told.summary["cells_without_report"]) == (2, 0)
    assert told.config["cells"] == sweep_record.cells
    assert "sweep=tiny_prefix_length" in told.config["command"]
    page = sweep / "sweeps" / sweep_record.id
    own = told.artifacts[f"sweep-{sweep_record.id}"]
    assert own.type == "report"
    assert not own.use_after_commit
    shown = {entry.path: Path(entry.local_path) for entry in own.manifest.contents}
    assert shown == {str(file.relative_to(page)): file for file in page.rglob("*") if file.is_file()}
    assert {"report.html", "results.json"} <= set(shown)
    assert any(name.startswith("figures/") for name in shown)
    used = {name for name, one in told.artifacts.items() if one.use_after_commit}
    assert used == {f"report-{key}" for key in sweep_record.cells.values()}
    assert told.table is not None
    lines = [dict(zip(told.table["columns"], row, strict=True)) for row in told.table["data"]]
    assert {line["cell"]: line["run"] for line in lines} == sweep_record.cells
    for line in lines:
        results = json.loads((sweep / "report" / line["run"] / "results.json").read_text())
        assert line["prefix_len"] == results["prefix_len"] == int(line["cell"].removeprefix("prefix.len="))
        assert line["arithmetic/trained"] == results["tasks"]["arithmetic"]["trained"]["accuracy"]["value"]


@pytest.mark.slow
def test_analyses_are_runs_with_their_findings(sweep: Path) -> None:
    """Each stage of theirs, what it found in its summary, continuations with the prefix that they go on from."""
    from transformers import AutoTokenizer

    found = stages(sweep.parent)
    kinds = Counter(told.run.job_type for told in found)
    assert {name: kinds[name] for name in ("consistency", "errors", "coverage", "kl")} == {
        "consistency": 1, "errors": 1, "coverage": 2, "kl": 2}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "upft" / "toy" / "weights")
    for told in found:
        folder = sweep / told.run.job_type / told.run.run_id
        if told.run.job_type in ("errors", "coverage", "kl", "consistency"):
            told_there = json.loads((folder / f"{told.run.job_type}.json").read_text())
            assert told.summary[f"{told.run.job_type}/questions"] == told_there["questions"] > 0
        if told.run.job_type == "kl":
            assert [told.summary[f"kl/share/{end}"] for end in ("value", "low", "high")] == [
                told_there["share"][end] for end in ("value", "low", "high")]
            assert told.summary["cost/flops"] == json.loads((folder / "ledger.json").read_text())["flops"] > 0
        if told.run.job_type == "coverage":
            assert told_there["t"] == [4, 8]
            for place, t in enumerate(told_there["t"]):
                for part in ("change", "coverage", "accuracy"):
                    assert [told.summary[f"coverage/t={t}/{part}{end}"] for end in ("", "_low", "_high", "_p")] == [
                        told_there[part][place][end] for end in ("difference", "low", "high", "p_value")]
                assert told.summary[f"coverage/t={t}/base by trained"] == (
                    told_there["accuracy_of"]["base by trained"]["mean"][place])
        if told.run.job_type == "consistency":
            every = told_there["groups"][0]
            lengths = {int(name.split("/")[1].removeprefix("t=")) for name in told.summary if "/t=" in name}
            assert {1, 2, 4, 8} <= lengths
            assert lengths <= {1, 2, 4, 8, 16, 32, 64, every["t"][-1]}, "few enough to look at"
            for t in lengths:
                for part in ("distinct", "traces_a_prefix", "agreement"):
                    assert [told.summary[f"consistency/t={t}/{part}{end}"] for end in ("", "_low", "_high")] == [
                        every[part][end][every["t"].index(t)] for end in ("mean", "low", "high")]
        if told.run.job_type == "errors":
            assert [told.summary.get(f"errors/critical/{end}") for end in ("t", "low", "high", "reached")] == [
                told_there["critical"][end] for end in ("t", "low", "high", "reached")]
            assert [told.summary[f"errors/t=8/{side}"] for side in ("right", "wrong", "difference")] == [
                told_there[side]["mean"][told_there["t"].index(8)] for side in ("right", "wrong", "difference")]
        if told.run.job_type == "report":
            analyses = json.loads((folder / "results.json").read_text())["analyses"]
            assert told.summary["coverage/t=8/change"] == analyses["coverage"]["change"][1]["difference"]
            assert told.summary["consistency/t=8/distinct"] == analyses["consistency"]["groups"][0]["distinct"]["mean"][7]
        if told.run.job_type == "branch":
            asked = {q["id"]: q for q in map(json.loads, (folder / "questions.jsonl").read_text().splitlines())}
            assert told.table is not None
            shown = [dict(zip(told.table["columns"], row, strict=True)) for row in told.table["data"]]
            assert len(shown) == min(mirror.ROWS, len(asked))
            for row in shown:
                question = asked[row["id"]]
                assert row["question"] == question["text"]
                assert row["prefix"] == tokenizer.decode(question["prompt_ids"][-question["prefix"]:], skip_special_tokens=True)


@pytest.mark.slow
def test_each_stage_is_one_run_of_its_kind(sweep: Path) -> None:
    """Also those that both cells share. A training's is told twice under one id: live, and whole at its end."""
    found = stages(sweep.parent)
    made = {path.parent.name: path.parent.parent.name for path in sweep.glob("[a-z]*/*/manifest.json")}
    assert {told.run.run_id: told.run.job_type for told in found} == made
    counts = Counter(told.run.run_id for told in found)
    assert {key: 2 if name == "train" else 1 for key, name in made.items()} == counts
    for key, name in made.items():
        if name == "train":
            lines = [json.loads(line) for line in (sweep / name / key / "metrics.jsonl").read_text().splitlines()]
            for told in (told for told in found if told.run.run_id == key):
                assert [{k: p[k] for k in lines[0]} for p in told.points] == lines
        if name == "train":
            live, whole = (told for told in found if told.run.run_id == key)
            assert (live.run.display_name, list(live.run.tags)) == (whole.run.display_name, list(whole.run.tags))
            assert {**live.config, "_wandb": None} == {**whole.config, "_wandb": None}, "the live run and what is told are one"
            rows = sweep / "build" / spec(sweep, name, key)["inputs"]["rows"]
            length = json.loads((rows / "rows.json").read_text())["prefix_len"]
            assert f"t={length} p=0.1" in live.run.display_name
            assert {"tiny", "arithmetic", "upft"} <= set(live.run.tags)
            assert (live.config["model"]["name"], live.config["data"], live.config["prefix"]) == (
                "tiny", {"name": "arithmetic"}, {"len": length, "ratio": 0.1})
            assert live.config["method"]["name"] == "upft"
    names = {told.run.display_name for told in found if told.run.job_type == "train"}
    assert len({name.rpartition(" ")[0] for name in names}) == 2, "told apart by more than their keys"
    train = one(found, next(key for key, name in made.items() if name == "train"))
    told = json.loads((sweep / "train" / train.run.run_id / "train.json").read_text())
    assert train.summary["train/last_loss"] == told["last_loss"]


@pytest.mark.slow
def test_hits_are_told_by_whoever_hands_out_the_jobs(sweep: Path, tmp_path: Path) -> None:
    """A cell whose stages were all there has its run too, as in a serial sweep."""
    store = tmp_path / "store"
    shutil.copytree(sweep, store, ignore=shutil.ignore_patterns(mirror.FOLDER, ".locks"))
    out = command(store, *SWEEP, "tracker=wandb", "tracker.project=upft-test", "compute.parallel=2", NETRC=str(store / "none"))
    assert out.returncode == 0, out.stderr
    assert ", 0 to be made" in out.stdout
    found = stages(tmp_path)
    assert sorted(told.run.run_id for told in found) == sorted(p.parent.name for p in store.glob("[a-z]*/*/manifest.json"))
    assert len(runs(tmp_path)) == len(found) + 1, "and the sweep's"
    cells = {told.config["cell"]: told.run.run_group for told in found if told.run.job_type == "report"}
    assert sorted(cells) == ["prefix.len=4", "prefix.len=8"]
    assert set(cells.values()) == {told.run.run_group for told in runs(sweep.parent)}


@pytest.mark.slow
def test_the_last_job_of_a_sweep_writes_its_page_and_tells_what_nobody_has(sweep: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sweep, store, ignore=shutil.ignore_patterns(".locks"))
    [told] = Records(Store(store)).sweeps()
    shutil.rmtree(store / "sweeps")
    key = next(store.glob("report/*")).name
    [mark] = (store / mirror.FOLDER / "told").glob(f"*/{key}")
    mark.unlink()
    done = subprocess.run([sys.executable, "-c", "import sys; from upft.closing import Closing; Closing(*sys.argv[1:])()",
                           str(store), told.id, told.machine], capture_output=True, text=True, cwd=ROOT, timeout=300,
                          env={**os.environ, "WANDB_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert (store / "sweeps" / told.id / "report.html").is_file()
    assert [one.run.run_id for one in runs(tmp_path)] == [key], "the page is as it was told"
    page = store / "sweeps" / told.id
    shutil.rmtree(store / "report" / key)
    again = subprocess.run([*done.args], capture_output=True, text=True, cwd=ROOT, timeout=300,
                           env={**os.environ, "WANDB_DIR": str(tmp_path)})
    assert again.returncode == 0, again.stderr
    last = runs(tmp_path)[-1]
    assert (last.run.run_id, last.summary["cells_without_report"]) == (f"sweep-{told.id}", 1), "told again: it is another page"
    assert len(json.loads((page / "results.json").read_text())["cells"]) == 1


@pytest.mark.slow
def test_artifacts_are_linked_as_the_stages_are(sweep: Path) -> None:
    found = stages(sweep.parent)
    made = {path.parent.name: path.parent.parent.name for path in sweep.glob("[a-z]*/*/manifest.json")}
    for key, name in made.items():
        told, needs = one(found, key), spec(sweep, name, key)["inputs"]
        linked = {n: a for n, a in told.artifacts.items() if not n.startswith(("run-", "model-", "data-"))}
        assert {n for n, a in linked.items() if a.use_after_commit} == {f"{made[i]}-{i}" for i in needs.values()}
        kinds = {"train": "model", "sample": "dataset", "build": "dataset", "branch": "dataset", "evaluate": "evaluation"}
        assert linked[f"{name}-{key}"].type == kinds.get(name, name)
        assert [n for n, a in linked.items() if not a.use_after_commit] == [f"{name}-{key}"]
        for n, used in linked.items():
            own = one(found, n.partition("-")[2]).artifacts[n]
            assert (used.digest, used.type) == (own.digest, own.type), "a link is to what was logged, not to a copy of it"
        for entry in linked[f"{name}-{key}"].manifest.contents:
            there = sweep / name / key / entry.path
            if entry.path.endswith((".safetensors", ".arrow")):
                assert entry.ref == there.as_uri()
                assert not entry.local_path
            else:
                assert Path(entry.local_path) == there, "uploaded from where it lies"
    report = next(told for told in found if told.run.job_type == "report")
    names = {entry.path for entry in report.artifacts[f"report-{report.run.run_id}"].manifest.contents}
    assert {"report.html", "results.json"} <= names


@pytest.mark.slow
def test_a_cells_graph_starts_at_its_model_and_its_questions(sweep: Path) -> None:
    """Going back from a report along what each run used, one comes to artifacts that no run has made: the base model's weights
    and the two question sets, each one artifact for the whole sweep, of which no file is uploaded."""
    found = stages(sweep.parent)
    declared: dict[str, list[Any]] = {}
    for told in found:
        for n, artifact in told.artifacts.items():
            if n.startswith(("model-", "data-")):
                assert artifact.use_after_commit
                declared.setdefault(n, []).append(artifact)
    [model] = [n for n in declared if n.startswith("model-")]
    sha = spec(sweep, "train", next(sweep.glob("train/*")).name)["spec"]["model"]["source"]["sha256"]
    assert model == f"model-{sha[:20]}"
    assert len(declared) == 3, "one model, training and test questions"
    for n, artifacts in declared.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", n)
        assert {one.digest for one in artifacts} == {artifacts[0].digest}, "one version"
        assert {one.type for one in artifacts} == {"model" if n == model else "dataset"}
        assert [(entry.path, entry.local_path) for entry in artifacts[0].manifest.contents] == [
            ("weights" if n == model else "questions", "")]
    assert declared[model][0].manifest.contents[0].ref == f"sha256:{sha}"
    assert json.loads(declared[model][0].metadata)["label"] == "tiny"

    makers = {n: told for told in found for n, a in told.artifacts.items() if not a.use_after_commit}
    for report in (told for told in found if told.run.job_type == "report"):
        waiting, roots = [report], set()
        while waiting:
            for n, a in waiting.pop().artifacts.items():
                if a.use_after_commit and n in makers:
                    waiting.append(makers[n])
                elif a.use_after_commit:
                    roots.add(n)
        assert roots == set(declared)
    trained = next(told for told in found if told.run.job_type == "evaluate" and spec(
        sweep, "evaluate", told.run.run_id)["inputs"])
    assert model not in trained.artifacts, "whole weights came with the training"


def test_names_of_artifacts_say_which_content_and_are_ones_that_wandb_takes(parse: Any, tmp_path: Path) -> None:
    """A model and questions from the hub: by id and revision. A local file: by content, wherever it lies."""
    cell = plan(parse("model=qwen_math", "data=prm12k", "sample.engine=transformers", "eval.engine=transformers"))
    store = Store(tmp_path / "store")
    model, data = lineage.origins(cell.named("sample")[0], store)
    source, questions = (getattr(cell.named("sample")[0].spec, name).source for name in ("model", "questions"))
    assert model.references == {"weights": f"hf://{source.id}@{source.revision}"}
    assert data.references == {"questions": f"hf://datasets/{questions.id}@{questions.revision}/{questions.file}"}
    for bundle, kind in ((model, "model"), (data, "dataset")):
        assert (bundle.kind, bundle.files) == (kind, {})
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", bundle.name)
    assert model.name.startswith("model-Qwen.Qwen2.5-Math-7B")
    assert source.revision[:20] in model.name
    found = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
        cell = plan(parse("data=jsonl", f"data.path={tmp_path / place / 'mine.jsonl'}"))
        found.append(lineage.origins(cell.named("sample")[0], store)[1])
    assert (found[0].name, found[0].references) == (found[1].name, found[1].references)
    assert [one.about["label"] for one in found] == ["mine.jsonl"] * 2, "no cell has given it a name"


def test_an_adapter_is_used_with_the_weights_that_it_stands_on(parse: Any, tmp_path: Path) -> None:
    small = ("sample.engine=transformers", "eval.engine=transformers")
    for lora, overrides in ((True, ["train=lora"]), (False, ["train=lora", "train.lora.merge=true"]), (False, [])):
        cell = plan(parse(*small, *overrides))
        trained = next(stage for stage in cell.named("evaluate") if stage.inputs)
        kinds = [bundle.kind for bundle in lineage.origins(trained, Store(tmp_path))]
        assert kinds == (["model", "dataset"] if lora else ["dataset"])


@pytest.mark.parametrize(("overrides", "method", "title"), [
    (["method=rft"], "rft", "tiny on arithmetic seed=3 lr=3e-05"),
    (["method=upft", "method.label_filter=true", "prefix.len=4"], "upft",
     "tiny on arithmetic label filter t=4 p=0.1 seed=3 lr=3e-05"),
    (["method=upft", "prefix.len=auto", "train.lr=1e-4", "train.seed=9"], "upft",
     "tiny on arithmetic t=auto p=0.1 seed=3 train.seed=9 lr=0.0001"),
    (["method=upft", "method.rounds=2"], "upft", "tiny on arithmetic t=8 p=0.1 seed=3 lr=3e-05")])
def test_trainings_are_named_by_what_is_upstream(parse: Any, tmp_path: Path, overrides: list[str], method: str,
                                                 title: str) -> None:
    config = parse("seed=3", "sample.engine=transformers", "eval.engine=transformers", *overrides)
    store, cell = Store(tmp_path / "store"), plan(config)
    lineage.remember(store, config, cell)
    for train in cell.named("train"):
        card = mirror.card(train, store)
        assert card.name == f"{train.label}, {title} {train.key[:8]}"
        assert list(card.tags) == ["tiny", "arithmetic", method]
        assert card.config["train"]["lr"] == config.train.lr
    if "prefix.len=auto" in overrides:  # known when the rows are there
        [rows] = cell.named("build")
        store.path("build", rows.key).mkdir(parents=True)
        (store.path("build", rows.key) / "rows.json").write_text('{"prefix_len": 11}')
        assert "t=11 " in mirror.card(cell.named("train")[0], store).name


def test_a_verifier_and_its_generator_are_told_apart(parse: Any, tmp_path: Path) -> None:
    cell = plan(parse("method=vstar", "sample.engine=transformers", "eval.engine=transformers"))
    cards = {train.label: mirror.card(train, Store(tmp_path)) for train in cell.named("train")}
    assert {label: card.config["method"]["name"] for label, card in cards.items()} == {
        "train rft": "rft", "train verifier": "vstar"}
    [chosen] = cell.named("verify")
    assert "vstar" in mirror.card(chosen, Store(tmp_path)).tags


def test_what_was_called_something_first_keeps_its_name(parse: Any, tmp_path: Path) -> None:
    """A training that goes on must not change its own; no key depends on it."""
    store, keys = Store(tmp_path / "store"), set()
    for name in ("first", "second"):
        config = parse(f"data.name={name}", "sample.engine=transformers", "eval.engine=transformers")
        cell = plan(config)
        lineage.remember(store, config, cell)
        [train] = cell.named("train")
        keys.add(train.key)
        assert "tiny on first" in mirror.card(train, store).name
    assert len(keys) == 1


@pytest.mark.slow
def test_tables_show_samples_as_they_are(sweep: Path) -> None:
    from transformers import AutoTokenizer

    found = runs(sweep.parent)
    for told in (told for told in found if told.run.job_type == "evaluate"):
        rows = [json.loads(line) for line in (sweep / "evaluate" / told.run.run_id / "answers.jsonl").read_text().splitlines()]
        first = [row for row in rows if row["index"] == 0]
        assert told.table is not None
        assert told.table["data"] == [[row[name] for name in told.table["columns"]] for row in first]
        assert len(first) == 16
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "upft" / "toy" / "weights")
    samplings = [told for told in found if told.run.job_type == "sample"]
    assert any(told.table is not None and len(told.table["data"]) == mirror.ROWS for told in samplings), "one is cut"
    for told in samplings:
        folder = sweep / "sample" / told.run.run_id
        lines = [line for line in map(json.loads, (folder / "samples.jsonl").read_text().splitlines()) if line["index"] == 0]
        asked = {q["id"]: q["text"] for q in map(json.loads, (folder / "questions.jsonl").read_text().splitlines())}
        assert told.table is not None
        shown = [dict(zip(told.table["columns"], row, strict=True)) for row in told.table["data"]]
        assert len(shown) == min(mirror.ROWS, len(asked))
        for row, line in zip(shown, lines, strict=False):
            assert (row["id"], row["question"], row["tokens"]) == (line["id"], asked[line["id"]], len(line["ids"]))
            assert tokenizer(row["completion"], add_special_tokens=False)["input_ids"] == [
                i for i in line["ids"] if i not in tokenizer.all_special_ids]


@pytest.mark.slow
def test_wandb_sync_delivers_every_run_whole(sweep: Path, tmp_path: Path) -> None:
    """The commands of docs/tracking.md, to a server of our own. The sweep's folder stays as it is."""
    there = re.search(r"```\n(wandb sync --dry-run.*?)```", (ROOT / "docs" / "tracking.md").read_text(), re.DOTALL)
    assert there is not None
    shutil.copytree(sweep.parent / "wandb", tmp_path / "wandb")
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    with serving() as server:
        out = subprocess.run(["bash", "-euo", "pipefail", "-c", there.group(1)], capture_output=True, text=True, timeout=300,
                             cwd=tmp_path, env={**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url,
                                                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    assert out.returncode == 0, out.stderr
    listed = (out.stdout + out.stderr).partition("Finished syncing")[0]
    assert all(file.name in listed for file in files), "the dry run names them all"
    for told in {told.run.run_id: told for told in runs(sweep.parent)}.values():  # of each the last
        run = server.runs[told.run.run_id]
        assert (run.starts, run.exits, run.told["displayName"]) == (1, [0], told.run.display_name)
        assert sorted(run.used) == sorted(n for n, a in told.artifacts.items() if a.use_after_commit)
        assert sorted(run.made) == sorted(n for n, a in told.artifacts.items() if not a.use_after_commit)
        numbers = {name: value for name, value in told.summary.items() if not name.startswith(("_", "samples/", "cells/"))}
        assert numbers
        assert {name: run.summary[name] for name in numbers} == numbers
        if told.run.job_type == "train":
            lines = (sweep / "train" / told.run.run_id / "metrics.jsonl").read_text().splitlines()
            assert run.steps == [json.loads(line)["step"] for line in lines]
    assert all(list(one.versions.values()) == [True] for one in server.artifacts.values())


@pytest.mark.slow
def test_nothing_is_told_twice_and_what_was_not_is_made_up_for(sweep: Path, parse: Any) -> None:
    """As after a kill between a stage's end and its telling; by `python -m upft.stage`, whose lines are JSON as the sweep's."""
    before = len(runs(sweep.parent))
    cell = plan(parse("prefix.len=4", *SMALL, *ANALYSED))
    key, records = cell.report.key, Records(Store(sweep))
    records.describe(cell.stages)
    mark = sweep / mirror.FOLDER / "told" / "default.upft-test" / key
    tracker = TrackerConfig(kind=TrackerKind.wandb, project="upft-test", group="sweep-x")
    machine = sweep / "machine.json"
    records.keep_machine(machine, Machine(ComputeConfig(), tracker, Style.json))
    for expected in (before, before + 1):
        out = subprocess.run([sys.executable, "-m", "upft.stage", str(sweep), key, "--machine", str(machine)], text=True,
                             capture_output=True, timeout=300, env={**os.environ, "WANDB_DIR": str(sweep.parent)})
        assert out.returncode == 0, out.stderr
        lines = [json.loads(line) for line in out.stdout.splitlines()]
        assert [line["level"] for line in lines] == ["info"]
        assert key in lines[0]["text"]
        assert len(runs(sweep.parent)) == expected
        mark.unlink()


@pytest.mark.slow
def test_without_a_tracker_wandb_stays_away(tmp_path: Path) -> None:
    """Neither imported nor written, and no key of the store says that there is such a thing."""
    code = ("import sys; sys.argv = ['run.py', *sys.argv[1:]]; import runpy\n"
            "try: runpy.run_path('run.py', run_name='__main__')\n"
            "finally: assert not {'wandb', 'tensorboard'} & set(sys.modules), 'imported'")
    out = subprocess.run([sys.executable, "-c", code, *SMALL, f"run.store={tmp_path / 'store'}", "run.console=quiet"],
                         capture_output=True, text=True, cwd=ROOT, timeout=600, env={**os.environ, "WANDB_DIR": str(tmp_path)})
    assert out.returncode == 0, out.stderr
    assert out.stdout == ""
    assert not (tmp_path / "wandb").exists()
    assert not (tmp_path / "store" / mirror.FOLDER).exists()


@pytest.mark.slow
def test_a_dead_server_changes_no_result(sweep: Path, tmp_path: Path) -> None:
    """Port 9 of this machine: nobody listens there. What would have been sent waits on disk."""
    out = command(tmp_path / "store", *SMALL, "prefix.len=4", "tracker=wandb", WANDB_API_KEY=KEY,
                  WANDB_BASE_URL="http://127.0.0.1:9")
    assert out.returncode == 0, out.stderr
    assert out.stderr.count("does not answer") == 1, "once a process"
    [told] = Records(Store(sweep)).sweeps()
    ours, theirs = (json.loads(path.read_text()) for path in (
        *tmp_path.glob("store/report/*/results.json"), sweep / "report" / told.cells["prefix.len=4"] / "results.json"))
    assert ours["tasks"] == theirs["tasks"]
    assert len({told.run.run_id for told in runs(tmp_path)}) == len(list(tmp_path.glob("store/[a-z]*/*/manifest.json")))
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()], "the key is no one's to keep"


@pytest.mark.slow
def test_online_a_cell_is_there_as_it_is_offline(sweep: Path, tmp_path: Path) -> None:
    """W&B's client, told of a cell's every stage by a run of ours, and a server of our own that takes it."""
    with serving() as server:
        out = command(tmp_path / "store", *SMALL, "prefix.len=4", "tracker=wandb", "tracker.project=upft-test",
                      WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url, WANDB_MODE="online", WANDB_DATA_DIR=str(tmp_path / "data"))
    assert out.returncode == 0, out.stderr
    assert out.stderr == ""
    made = {path.parent.name: path.parent.parent.name for path in tmp_path.glob("store/[a-z]*/*/manifest.json")}
    assert {key: run.told["jobType"] for key, run in server.runs.items()} == made
    offline = {told.run.run_id: told for told in stages(sweep.parent)}
    for key, name in made.items():
        run = server.runs[key]
        assert run.starts == (2 if name == "train" else 1)
        assert set(run.exits) == {0}
        assert f"{name}-{key}" in run.made
        if key in offline:  # all but the report, whose cell has no analyses here
            assert run.told["displayName"] == offline[key].run.display_name
            assert sorted(run.used) == sorted(n for n, a in offline[key].artifacts.items() if a.use_after_commit)
        if name == "train":
            lines = (tmp_path / "store" / name / key / "metrics.jsonl").read_text().splitlines()
            assert run.steps == [json.loads(line)["step"] for line in lines]
    assert sum(key in offline for key in made) >= 5
    assert all(list(one.versions.values()) == [True] for one in server.artifacts.values()), "each one version, and whole"


def test_settings_of_slurm_stay_at_home(parse: Any) -> None:
    config = parse("compute=slurm", "compute.slurm.setup=['export TOKEN=secret']", "+compute.slurm.sbatch.comment=secret")
    assert "secret" not in json.dumps(mirror.resolved(config))
    assert mirror.resolved(config)["train"]["lr"] == config.train.lr


def test_a_missing_package_is_named_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    mirror.check(TrackerConfig())
    for kind in (TrackerKind.wandb, TrackerKind.tensorboard):
        with pytest.raises(ConfigError, match=rf"tracker\.kind={kind.name}"):
            mirror.check(TrackerConfig(kind=kind))
