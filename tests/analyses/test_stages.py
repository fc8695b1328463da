"""The analyses as a cell runs them on the embedded model; what they find, found again from the tokens."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest

from upft import launcher, models
from upft.choices import Dtype, Engine, Style
from upft.console import Console
from upft.hashing import Hasher
from upft.machine import ComputeConfig, TrackerConfig
from upft.pipeline import walk
from upft.plan import Plan, plan
from upft.sample_log import SampleLog
from upft.sampler import EnginePool
from upft.sharing import distinct
from upft.specs import BranchSpec, ContentRef, GradeSpec, ModelSpec, SamplingSpec
from upft.stages import Host, branch, grade
from upft.store import RESUME, Store

WEIGHTS = Path(__file__).parents[2] / "upft" / "toy" / "weights"
SMALL = ["data.arithmetic.questions=48", "eval.limit=16", "eval.n=1", "train.batch_size=8", "train.lr=1e-4",
         "sample.engine=transformers", "eval.engine=transformers"]
ASKED = [*SMALL, "analysis=all", "analysis.task=arithmetic", "analysis.temperature=1.0", "analysis.consistency.questions=10",
         "analysis.consistency.n=8", "analysis.errors.questions=12", "analysis.errors.n=8", "analysis.errors.at=[2,8,48]",
         "analysis.errors.continuations=2", "analysis.coverage.questions=8", "analysis.coverage.traces=2",
         "analysis.coverage.at=[4,8]", "analysis.coverage.continuations=2", "analysis.kl.questions=6"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


def test_without_analyses_a_cell_has_the_keys_it_had(parse):
    """Nothing of the group reaches the stages that were there before; with it they come first, all but the report."""
    without, asked = plan(parse(*SMALL)), plan(parse(*ASKED))
    assert "analysis" not in json.dumps([stage.identity for stage in without.stages])
    assert [stage.key for stage in without.stages[:-1]] == [stage.key for stage in asked.stages[:len(without.stages) - 1]]
    assert without.report.key != asked.report.key
    assert [role for role in asked.report.inputs if role not in without.report.inputs] == [
        role for role in asked.report.inputs if role.startswith("analysis:")]


def test_the_default_cell_has_its_keys(parse):
    assert [stage.key for stage in plan(parse(*SMALL[5:])).stages] == [
        "4c5a6a553e525a454959", "7d039db9da5e24edd9ad", "53b53006c391d06ad5d3", "4f8f7b44e8f0722bf1db", "347ba8f4734d578a7abd",
        "c7ff93b59ca7a5e058a8", "fc069d3ea341c04f71eb"]


@pytest.mark.parametrize(("sweep", "asked"), [
    ("consistency", ["consistency"]), ("critical_length", ["errors"]), ("coverage", ["coverage"]), ("kl", ["kl"]),
    ("tiny_consistency", ["consistency"]), ("tiny_critical_length", ["errors"]),
    ("tiny_analyses", ["consistency", "errors", "coverage", "kl"])])
def test_each_analysis_has_a_named_sweep(parse, sweep, asked):
    analysis = parse(f"sweep={sweep}").analysis
    assert [name for name in ("consistency", "errors", "coverage", "kl") if getattr(analysis, name) is not None] == asked


def test_methods_share_what_looks_at_the_base_model_alone(parse):
    shared = [*ASKED, "sample.n=4", "method.n=4", "sample.trace_ratio=1"]
    cells = [plan(parse(*shared, f"method={name}")) for name in ("upft", "rft")]
    counts: dict[str, int] = defaultdict(int)
    for stage in distinct(cells):
        counts[stage.name] += 1
    assert (counts["consistency"], counts["errors"]) == (1, 1)
    assert (counts["kl"], counts["coverage"]) == (2, 2)
    assert counts["branch"] == 1 + 1 + 2 * 3, "of the errors, base by base, and three of each training"


def test_data_without_answers_is_not_split_by_difficulty(parse, write_jsonl):
    path = write_jsonl([{"question": "1 + 1?"}])
    cell = plan(parse("data=jsonl", f"data.path={path}", "analysis=consistency", *SMALL[1:]))
    [counted] = cell.named("consistency")
    assert (set(counted.inputs), counted.spec.edges) == ({"samples"}, ())
    assert not cell.named("grade")


def test_models_are_compared_in_float32_whatever_they_sample_in(parse):
    """In bfloat16 what is measured of two models that lie close together is rounding."""
    def spec(*more):
        [compared] = plan(parse(*ASKED, *more)).named("kl")
        return compared.spec.dtype

    assert [spec(), spec("model.dtype=bfloat16")] == [Dtype.float32] * 2
    assert spec("analysis.kl.dtype=bfloat16") is Dtype.bfloat16


def test_prefixes_alone_are_sampled_where_whole_traces_are_not_asked_for(parse):
    [counted] = plan(parse("analysis=consistency", "analysis.consistency.whole=false", *SMALL)).named("consistency")
    spec = counted.inputs["samples"].spec
    assert (spec.trace_ratio, spec.max_tokens, spec.n) == (0.0, 64, 64)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, parse) -> tuple[Plan, Store]:
    if not (WEIGHTS / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in upft/toy/weights")
    config = parse(*ASKED, f"run.store={tmp_path_factory.mktemp('store')}")
    launcher.one(config)
    return plan(config, Hasher()), Store(config.run.store)


def folder(ran: tuple[Plan, Store], role: str) -> Path:
    stage = ran[0].report.inputs[role]
    return ran[1].path(stage.name, stage.key)


def right(text: str, gold: str) -> bool:
    """The toy's answers are whole numbers in a box: no grader is needed to know them."""
    boxes = re.findall(r"\\boxed\{(-?\d+)\}", text)
    return bool(boxes) and boxes[-1] == gold


def outcomes(ran: tuple[Plan, Store], role: str) -> dict[tuple[str, int], list[float]]:
    """(question, t) -> of each cut trace the share of its continuations that are right, from ids and gold answers alone."""
    tokenizer = models.load_tokenizer(WEIGHTS)
    asked = {row["id"]: row for row in lines(folder(ran, role) / "questions.jsonl")}
    texts = defaultdict(list)
    for row in lines(folder(ran, role) / "samples.jsonl"):
        prompt = asked[row["id"]]
        text = tokenizer.decode(prompt["prompt_ids"][-prompt["prefix"]:] + row["ids"], skip_special_tokens=True)
        texts[row["id"]].append(right(text, prompt["answer"]))
    found = defaultdict(list)
    for point in lines(folder(ran, role) / "points.jsonl"):
        found[point["question"], point["t"], point["right"]].append(sum(texts[point["prefix"]]) / len(texts[point["prefix"]]))
    return found


def test_a_prefix_that_fills_the_context_is_its_own_outcome(tmp_path, capsys):
    """A trace that the context cut has lengths at which nothing can follow: they fail nothing, and are counted."""
    prompt, samples, out = [1, *[11] * 508], tmp_path / "samples", tmp_path / "out"
    samples.mkdir()
    out.mkdir()
    question = {"id": "q", "text": "2+2?", "answer": "4", "prompt_ids": prompt}
    (samples / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (samples / "samples.jsonl").write_text("".join(json.dumps(
        {"id": "q", "index": n, "kind": "trace", "ids": ids, "finish_reason": "length"}) + "\n"
        for n, ids in enumerate(([12, 13, 14], [12, 13, 15], [12, 13, 15]))))
    (samples / "samples.json").write_text(json.dumps({"context": 512}))
    spec = BranchSpec(ModelSpec(ContentRef("0", str(WEIGHTS)), False),
                      SamplingSpec(Engine.transformers, Dtype.float32, 1.0, 1.0, 0, 0), (2, 3), 3, False, 4, 192)
    with EnginePool(ComputeConfig()) as engines:
        branch.run(spec, {"samples": samples}, out, Host(ComputeConfig(), TrackerConfig(), Console(Style.plain), engines))
    points = lines(out / "points.jsonl")
    assert [(p["t"], p["ended"]) for p in points] == [(2, False), (3, True)] * 3
    drawn = lines(out / "samples.jsonl")
    assert [(row["id"], len(row["ids"])) for row in drawn] == [(points[0]["prefix"], 1)] * 4 + [
        (points[1]["prefix"], 0), (points[3]["prefix"], 0)]
    told = json.loads((out / "samples.json").read_text())
    assert (told["questions"], told["over"], told["full"]) == (3, 2, 2)
    assert "2 prefixes fill the model's context" in capsys.readouterr().err


@pytest.mark.slow
def test_prefixes_are_those_of_the_traces(ran):
    traces = {(row["id"], row["index"]): row["ids"] for row in lines(folder(ran, "analysis:errors:samples") / "samples.jsonl")}
    prompts = {row["id"]: row["prompt_ids"] for row in lines(folder(ran, "analysis:errors:samples") / "questions.jsonl")}
    asked = {row["id"]: row for row in lines(folder(ran, "analysis:errors:branches") / "questions.jsonl")}
    drawn = defaultdict(int)
    for row in lines(folder(ran, "analysis:errors:branches") / "samples.jsonl"):
        drawn[row["id"]] += 1
    points = lines(folder(ran, "analysis:errors:branches") / "points.jsonl")
    assert {p["prefix"] for p in points} == set(asked) == set(drawn)
    for point in points:
        ids = traces[point["question"], point["trace"]]
        assert asked[point["prefix"]]["prompt_ids"] == prompts[point["question"]] + ids[:point["t"]]
        assert point["ended"] == (len(ids) <= point["t"]), "the toy's traces all end by themselves"
        assert drawn[point["prefix"]] == (1 if point["ended"] else 2)
    assert any(p["ended"] for p in points)
    assert len(asked) < len(points), "traces that begin alike are continued together"
    graded = lines(folder(ran, "analysis:errors:grades") / "verdicts.jsonl")
    verdicts = {(row["id"], row["index"]): row["right"] for row in graded}
    assert all(p["right"] == verdicts[p["question"], p["trace"]] for p in points)


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "noun"), [("samples", "questions"), ("branches", "prefixes")])
def test_grading_says_of_what_it_counts_the_ones_without_a_right_trace(ran, tmp_path, capsys, samples, noun):
    console = Console(Style.plain)
    with EnginePool(ComputeConfig()) as engines:
        spec = GradeSpec(ModelSpec(ContentRef("0", str(WEIGHTS)), False))
        grade.run(spec, {"samples": folder(ran, f"analysis:errors:{samples}")},
                  tmp_path, Host(ComputeConfig(), TrackerConfig(), console, engines))
    verdicts = defaultdict(list)
    for row in lines(tmp_path / "verdicts.jsonl"):
        verdicts[row["id"]].append(row["right"])
    rights, none = sum(map(sum, verdicts.values())), sum(not any(found) for found in verdicts.values())
    assert rights > 0
    assert samples == "samples" or none > 0
    assert (f"{rights} of {sum(map(len, verdicts.values()))} traces are right; {none} of {len(verdicts)} {noun} have none"
            in capsys.readouterr().out)


@pytest.mark.slow
def test_errors_are_found_again_from_the_tokens(ran):
    told = json.loads((folder(ran, "analysis:errors") / "errors.json").read_text())
    found = outcomes(ran, "analysis:errors:branches")
    questions = {question for question, _, _ in found}
    assert told["questions"] == len(questions) > 3
    for i, t in enumerate(told["t"]):
        for side in (True, False):
            mean = sum(sum(found[q, t, side]) / len(found[q, t, side]) for q in questions) / len(questions)
            assert told["right" if side else "wrong"]["mean"][i] == pytest.approx(mean)
    ended = told["ended"]["wrong"][-1]
    assert ended > 0.5
    assert told["wrong"]["mean"][-1] <= 1 - ended, "a wrong trace that is over ends right in none of its continuations"


@pytest.mark.slow
def test_coverage_is_found_again_from_the_tokens(ran):
    told = json.loads((folder(ran, "analysis:coverage") / "coverage.json").read_text())
    of = {}
    for i in ("base", "trained"):
        for j in ("base", "trained"):
            found = outcomes(ran, f"analysis:coverage:branches {i} by {j}")
            for place, t in enumerate(told["t"]):
                values = [sum(v) / len(v) for (_, at, _), v in found.items() if at == t]
                of[i, j, t] = sum(values) / len(values)
                assert told["accuracy_of"][f"{i} by {j}"]["mean"][place] == pytest.approx(of[i, j, t])
    for place, t in enumerate(told["t"]):
        bb, bt, tb, tt = (of[i, j, t] for i in ("base", "trained") for j in ("base", "trained"))
        assert told["change"][place]["difference"] == pytest.approx(tt - bb)
        assert told["coverage"][place]["difference"] == pytest.approx((tb - bb + tt - bt) / 2)
        assert told["accuracy"][place]["difference"] == pytest.approx((bt - bb + tt - tb) / 2)


@pytest.mark.slow
def test_consistency_is_found_again_from_the_tokens(ran):
    told = json.loads((folder(ran, "analysis:consistency") / "consistency.json").read_text())
    traces = defaultdict(list)
    for row in lines(folder(ran, "analysis:consistency:samples") / "samples.jsonl"):
        traces[row["id"]].append(row["ids"])
    for t in (1, 2, 8, 64):
        distinct = [len({tuple(ids[:t]) for ids in of}) for of in traces.values()]
        assert told["groups"][0]["distinct"]["mean"][t - 1] == pytest.approx(sum(distinct) / len(distinct))
    assert sum(g["questions"] for g in told["groups"][1:]) == len(traces) == 10


@pytest.mark.slow
def test_divergence_is_of_the_base_models_own_traces(ran):
    told = json.loads((folder(ran, "analysis:kl") / "kl.json").read_text())
    traces = lines(folder(ran, "analysis:kl:samples") / "samples.jsonl")
    apart = lines(folder(ran, "analysis:kl") / "divergences.jsonl")
    assert [len(row["forward"]) for row in apart] == [len(row["ids"]) for row in traces]
    assert all(math.isfinite(x) and x > -1e-9 for row in apart for x in row["forward"])
    assert told["prefix_len"] == 8
    assert told["forward"]["mean"][0] > 0


@pytest.mark.slow
def test_the_report_shows_them_and_the_store_serves_them(ran):
    folder_of_report = ran[1].path("report", ran[0].report.key)
    text = (folder_of_report / "report.html").read_text()
    for title in ("Prefix self-consistency", "Where errors begin", "What training moved", "Where training acts"):
        assert f"<h2>{title}" in text
    results = json.loads((folder_of_report / "results.json").read_text())
    assert set(results["analyses"]) == {"consistency", "errors", "coverage", "kl"}
    drawn = {path.name for path in (folder_of_report / "figures").iterdir()}
    assert {"consistency.svg", "errors.pdf", "coverage.svg", "kl.pdf"} <= drawn
    samples = json.loads((folder(ran, "analysis:kl:samples") / "samples.json").read_text())
    assert samples["taken_from_other_samplings"] == 12, "traces that another analysis has drawn are not drawn again"


@pytest.mark.slow
def test_continuing_goes_on_where_it_was_killed(ran, tmp_path):
    """Half of the log of finished continuations is left to a second store: the rest is drawn, and all are as before."""
    cell, store = ran
    stage = cell.report.inputs["analysis:errors:branches"]
    other = Store(tmp_path)
    other.prepare()
    for upstream in stage.inputs.values():
        target = other.path(upstream.name, upstream.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(store.path(upstream.name, upstream.key))
    unfinished = other.unfinished(stage.name, stage.key) / RESUME
    whole = [row for row in lines(store.path(stage.name, stage.key) / "samples.jsonl") if row["ids"]]
    with SampleLog(unfinished) as log:
        for row in whole[::2]:
            log.append({"id": row["id"], "index": row["index"], "ids": row["ids"], "finish_reason": row["finish_reason"],
                        "cached": 0})
    walk(Plan((stage.inputs["samples"], stage.inputs["grades"], stage)), other, ComputeConfig(), TrackerConfig(),
         Console(quiet=True))
    again = other.path(stage.name, stage.key)
    assert json.loads((again / "samples.json").read_text())["reused_after_interruption"] == len(whole[::2])
    assert (again / "samples.jsonl").read_bytes() == (store.path(stage.name, stage.key) / "samples.jsonl").read_bytes()
