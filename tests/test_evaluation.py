"""Evaluations as a user runs them: what is asked, graded, kept, taken over, judged, refused."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from upft import asking, datasets, evaluation, pipeline
from upft.choices import AnswerFormat, AnswerKind
from upft.console import Console
from upft.errors import ConfigError, DataError, ModelError
from upft.graders import Graders
from upft.numbered import Asked, Prompt, Rollout
from upft.plan import plan
from upft.specs import ContentRef, EvaluateSpec, QuestionsSpec
from upft.store import Store

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "upft" / "toy" / "weights"
ANY = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=24", "train.batch_size=8",
       "compute.threads=1", "prefix.ratio=0"]
SMALL = [*ANY, "eval.tasks.arithmetic.arithmetic.questions=30"]
COLUMNS = ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Subdomain")


def evaluated(parse: Any, store: Path, *overrides: str,
              trained: bool = False) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """(artifact, scores, answers) of the cell's evaluation."""
    cell = plan(parse(*SMALL, f"run.store={store}", *overrides))
    config = parse(*SMALL, f"run.store={store}", *overrides)
    last = next(s for s in cell.stages if s.name == "evaluate" and bool(s.inputs) == trained)
    until = type(cell)(cell.stages[:cell.stages.index(last) + 1] if trained else (last,))
    artifacts = pipeline.walk(until, Store(store), config.compute, config.tracker, Console(quiet=True))
    folder = artifacts[last.key].path
    return folder, json.loads((folder / "scores.json").read_text()), rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def gpqa(path: Path, questions: int = 12, seed: int = 0) -> Path:
    """A file with the columns of the hub's GPQA; the questions are ours."""
    drawn = random.Random(seed)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for n in range(questions):
            mass = 2 + n
            writer.writerow([f"A ball of {mass} kg falls for {n + 1} s from rest. What is its speed (g = 10 m/s²)?",
                             f"{10 * (n + 1)} m/s", f"{5 * (n + 1)} m/s", f"{10 * (n + 2)} m/s", f"{mass} m/s", "Mechanics"])
    lines = path.read_text().splitlines()
    shuffled = lines[1:]
    drawn.shuffle(shuffled)
    path.write_text("\n".join([lines[0], *shuffled]) + "\n")
    return path


# --- what is asked ---


def task_spec(parse: Any, *overrides: str) -> EvaluateSpec:
    cell = plan(parse(*overrides))
    spec = cell.named("evaluate")[0].spec
    assert isinstance(spec, EvaluateSpec)
    return spec


def test_gpqa_is_asked_without_options_by_the_paper_and_with_them_by_the_standard(parse, tmp_path):
    file = gpqa(tmp_path / "gpqa.csv")
    source = ["eval=gpqa", f"eval.tasks.gpqa.path={file}"]
    free, questions = evaluation.items(task_spec(parse, *source, "eval.protocol=paper"))
    assert [item.text for item in free] == [q.text for q in questions.rows]
    assert {item.kind for item in free} == {AnswerKind.science}
    assert all(item.gold.endswith(" m/s") for item in free)

    shown, _ = evaluation.items(task_spec(parse, *source, "eval.protocol=standard", "model.temperature=0.6"))
    assert [item.id for item in shown] == [item.id for item in free]
    for item, plain in zip(shown, free, strict=True):
        assert item.kind is AnswerKind.choice
        assert item.text.startswith(plain.text)
        assert f"({item.gold}) {plain.gold}" in item.text.splitlines()
        assert [line[:3] for line in item.text.splitlines() if line[:1] == "("] == ["(A)", "(B)", "(C)", "(D)"]


def test_the_order_of_options_depends_on_the_question_alone(parse, tmp_path):
    letters = []
    for seed in (0, 1):  # the same rows in another order
        source = ["eval=gpqa", f"eval.tasks.gpqa.path={gpqa(tmp_path / f'{seed}.csv', seed=seed)}"]
        asked, _ = evaluation.items(task_spec(parse, *source, "eval.protocol=standard", "model.temperature=0.6"))
        letters.append({item.id: (item.gold, item.text) for item in asked})
    assert letters[0] == letters[1]
    code = ("from upft.asking import lettered; print(lettered('q', 'right', ['x', 'y', 'z']))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                         env={**os.environ, "PYTHONHASHSEED": "5"})
    assert out.stdout.strip() == str(asking.lettered("q", "right", ["x", "y", "z"]))


def test_the_right_option_stands_equally_often_at_each_letter():
    found = Counter(asking.lettered(f"{n:016x}", "the right one", ["x", "y", "z"])[1] for n in range(4000))
    assert set(found) == set("ABCD")
    assert stats.chisquare(list(found.values())).pvalue > 0.001


def test_settings_of_every_task_and_protocol(parse):
    asked = {}
    for protocol in ("paper", "standard"):
        config = parse("model=r1_distill", "eval=standard", f"eval.protocol={protocol}", "eval.engine=transformers",
                       "sample.engine=transformers")
        for stage in plan(config).named("evaluate"):
            s = stage.spec
            asked[protocol, s.task] = (s.n, s.sampling.temperature, s.max_tokens, s.context, s.kind.name)
    greedy = (1, 0.0, 32768, 8192, "math")
    assert [asked["paper", t] for t in ("gsm8k", "math500", "aime24")] == 3 * [greedy]
    assert asked["paper", "gpqa"] == (1, 0.0, 32768, 8192, "science")
    assert asked["standard", "gsm8k"] == (1, None, 32768, None, "math")
    assert asked["standard", "math500"] == (4, None, 32768, None, "math")
    assert asked["standard", "aime24"] == (32, None, 32768, None, "math")
    assert asked["standard", "gpqa"] == (4, None, 32768, None, "choice")
    qwen = task_spec(parse, "model=qwen_math", "eval=aime24", "eval.protocol=paper", "eval.engine=transformers",
                     "sample.engine=transformers")
    assert qwen.context == 4096
    assert parse("eval=aime24", "eval.protocol=standard", "eval.n=8", "eval.temperature=0.7").eval.ask("aime24").n == 8


def test_the_papers_context_limits_prompt_and_answer_together(parse, tmp_path):
    base = ["eval.protocol=paper", "eval.max_tokens=190"]
    _, scores, long = evaluated(parse, tmp_path / "a", *base)
    assert scores["unfinished"] == 0
    room = 110
    _, scores, cut = evaluated(parse, tmp_path / "b", *base, f"model.paper_context={room}")
    assert scores["protocol_context"] == room
    assert 0 < scores["unfinished"] < len(cut)
    for whole, short in zip(long, cut, strict=True):
        assert len(short["prompt_ids"]) + len(short["ids"]) <= room
        assert short["ids"] == whole["ids"][:len(short["ids"])]
        assert (short["finish_reason"] == "length") == (len(short["ids"]) < len(whole["ids"]))


def test_temperature_is_the_models_own_where_the_protocol_leaves_it(parse, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 0.35, "top_k": 5}))
    own = [f"model.path={folder}", "eval.tasks.arithmetic.standard.temperature=null"]
    _, scores, _ = evaluated(parse, tmp_path / "store", *own)
    assert (scores["temperature"], scores["top_k"], scores["n"]) == (0.35, 5, 4)
    _, scores, _ = evaluated(parse, tmp_path / "store", *own, "model.temperature=0.5")
    assert scores["temperature"] == 0.5

    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": False}))
    with pytest.raises(ConfigError, match=r"eval.protocol=standard asks arithmetic 4 times") as refusal:
        evaluated(parse, tmp_path / "store", *own)
    assert "model.temperature" in refusal.value.remedy
    _, scores, _ = evaluated(parse, tmp_path / "store", *own, "eval.n=1")
    assert scores["temperature"] == 0


# --- what is kept ---


def test_rows_hold_what_was_asked_and_answered_and_why_it_counts(parse, tmp_path):
    _, scores, answers = evaluated(parse, tmp_path, "eval.n=3")
    ids = dict.fromkeys(a["id"] for a in answers)
    assert [(a["id"], a["index"]) for a in answers] == [(i, n) for i in ids for n in range(3)]
    from upft import models

    tokenizer = models.load_tokenizer(WEIGHTS)
    for a in answers:
        assert tokenizer.decode(a["ids"], skip_special_tokens=True) == a["completion"]
        assert a["question"] in tokenizer.decode(a["prompt_ids"])
        assert (a["tokens"], a["finish_reason"]) == (len(a["ids"]), "stop")
        given = a["completion"].rpartition("\\boxed{")[2].partition("}")[0]
        assert (a["extracted"], a["vote"], a["right"]) == (given, given, given == a["gold"])
        assert a["reason"]
    right = sum(a["right"] for a in answers)
    assert scores["accuracy"] == pytest.approx(right / 90)
    assert 0 < right < 90
    [*_, three] = scores["at_k"]
    by_question = [answers[i:i + 3] for i in range(0, 90, 3)]
    assert three["pass"]["value"] == pytest.approx(sum(any(a["right"] for a in q) for q in by_question) / 30)


def test_an_answer_that_is_still_a_thought_is_none(parse, tmp_path):
    """A template that opens the thought, as R1's does: what never leaves it has not answered."""
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}<think>\n{% endif %}")
    _, scores, answers = evaluated(parse, tmp_path / "store", f"model.path={folder}", "eval.n=1")
    assert any("\\boxed{" in a["completion"] for a in answers)
    assert scores["no_answer"] == len(answers) == 30
    assert scores["accuracy"] == 0


def test_more_answers_sample_only_the_difference(parse, tmp_path, monkeypatch):
    few, _, _ = evaluated(parse, tmp_path / "store", "eval.n=2")
    first = rows(few)
    folder, scores, grown = evaluated(parse, tmp_path / "store", "eval.n=5")
    assert scores["taken_from_other_evaluations"] == 60
    assert json.loads((folder / "ledger.json").read_text())["reused_tokens"] == sum(a["tokens"] for a in first)
    assert [a for a in grown if a["index"] < 2] == first
    _, _, fresh = evaluated(parse, tmp_path / "other", "eval.n=5")
    assert grown == fresh

    def opened(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an engine was opened for answers that are there")

    monkeypatch.setattr("upft.sampler.open_engine", opened)
    _, scores, shorter = evaluated(parse, tmp_path / "store", "eval.n=3")
    assert shorter == [a for a in fresh if a["index"] < 3]
    assert scores["taken_from_other_evaluations"] == 90


def test_a_trained_model_never_takes_the_base_models_answers(parse, tmp_path):
    evaluated(parse, tmp_path, "eval.n=2", "train.lr=0.01")
    _, scores, _ = evaluated(parse, tmp_path, "eval.n=2", "train.lr=0.01", trained=True)
    assert scores["taken_from_other_evaluations"] == 0
    _, scores, _ = evaluated(parse, tmp_path, "eval.n=3", "train.lr=0.01", trained=True)
    assert scores["taken_from_other_evaluations"] == 60
    _, scores, _ = evaluated(parse, tmp_path, "eval.n=3", "train.lr=0.02", trained=True)
    assert scores["taken_from_other_evaluations"] == 0


def test_killed_again_and_again_the_answers_are_the_same(tmp_path):
    def command(store: Path) -> list[str]:
        return [sys.executable, str(ROOT / "run.py"), *SMALL, "eval.n=24", f"run.store={store}", "compute.sample_batch=16"]

    subprocess.run(command(tmp_path / "calm"), check=True, capture_output=True, cwd=ROOT)
    kills, drawn = 0, random.Random(3)
    for _ in range(4):
        process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        log = tmp_path / "killed" / "evaluate"
        end = time.monotonic() + 120
        wanted = drawn.randint(50, 250) * (kills + 1)
        while time.monotonic() < end and process.poll() is None:
            found = list(log.glob("*.partial/**/finished.jsonl"))
            if any(f.read_bytes().count(b"\n") >= wanted for f in found):
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True, cwd=ROOT)
    calm, killed = ({p.parent.name: rows(p.parent) for p in (tmp_path / name / "evaluate").glob("*/scores.json")}
                    for name in ("calm", "killed"))
    assert calm == killed
    assert len(calm) == 2
    assert any(json.loads((p / "scores.json").read_text())["reused_after_interruption"]
               for p in (tmp_path / "killed" / "evaluate").iterdir())


def test_progress_tells_the_accuracy_so_far(parse, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("upft.console.PLAIN_EVERY_S", 0.0)
    config = parse(*SMALL, f"run.store={tmp_path}", "eval.n=2")
    stage = plan(config).named("evaluate")[0]
    pipeline.walk(type(plan(config))((stage,)), Store(tmp_path), config.compute, config.tracker, Console())
    told = [line for line in capsys.readouterr().out.splitlines() if "answering:" in line and "accuracy" in line]
    scores = json.loads(next(tmp_path.glob("evaluate/*/scores.json")).read_text())
    assert told
    assert told[-1].endswith(f"accuracy {scores['accuracy']:.1%} of the first {2 * scores['questions']:,}")


def test_progress_is_not_led_by_the_short_answers_that_end_first(parse, tmp_path):
    """64 questions, asked the longest first. What ends early is wrong throughout, as guesses are: none of it counts before the
    answers that were asked before it have ended too."""
    from upft.stages.evaluate import _Marks

    spec = plan(parse(*SMALL)).named("evaluate")[0].spec
    count = 64
    items = [asking.Item(f"q{i}", "?", "7", spec.kind) for i in range(count)]
    prompts = [Prompt(f"q{i}", tuple(range(i + 1)), 8) for i in range(count)]  # the last is the longest
    asked = Asked.of(prompts, 1, 0)

    class Words:
        def decode(self, ids: list[int], **_: object) -> str:
            return f"\\boxed{{{ids[-1]}}}"

    with Graders() as graders:
        marks = _Marks(graders, replace(spec, n=1), items, asked, Words())

        def answer(number: int, what: int) -> Any:
            return marks.put(number, Rollout(f"q{number}", 0, (what,), "stop")).get("accuracy")

        order = [int(number) for number in asked.order(np.arange(count))]
        assert order == list(range(count))[::-1]
        early, late = order[1::2], order[0::2]
        assert [answer(number, 1) for number in early] == [None] * 32, "0% of those done, and it would be 50% at the end"
        seen = [answer(number, 7) for number in late]
    assert seen[0] == "50.0% of the first 2"
    assert seen[-1] == "50.0% of the first 64"
    assert {one.partition("%")[0] for one in seen} == {"50.0"}


# --- the judge ---


def judged(parse: Any, store: Path, *overrides: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """(answers, the same after the judge, its scores). The embedded model is the judge: it says what it always says."""
    overrides = (*SMALL, f"run.store={store}", "eval.protocol=paper", "eval.tasks.arithmetic.paper.temperature=1.0",
                 "judge=model", f"judge.path={WEIGHTS}", "judge.dtype=float32", "judge.engine=transformers",
                 "judge.max_tokens=60", "judge.prompt='{question} ({gold}) {solution}'", *overrides)
    config = parse(*overrides)
    cell = plan(config)
    judge = cell.named("judge")[0]
    evaluate = judge.inputs["answers"]
    artifacts = pipeline.walk(type(cell)((evaluate, judge)), Store(store), config.compute, config.tracker, Console(quiet=True))
    folder = artifacts[judge.key].path
    return rows(artifacts[evaluate.key].path), rows(folder), json.loads((folder / "scores.json").read_text())


def test_an_answer_counts_when_rule_or_judge_accepts_it(parse, tmp_path):
    before, after, scores = judged(parse, tmp_path, r"judge.accept='boxed\{\d*[02468]\}'")
    assert len(before) == len(after) == 30
    accepted = asked = 0
    for a, b in zip(before, after, strict=True):
        assert b["rule"] == a["right"]
        if a["right"]:
            assert b["judge"] is None
            assert b["right"]
            continue
        asked += 1
        even = b["judge"]["reply"].rpartition("boxed{")[2].partition("}")[0][-1:] in set("02468")
        assert b["judge"]["accepted"] == b["right"] == (even and "boxed{" in b["judge"]["reply"])
        accepted += b["right"]
        assert b["reason"] == ("judge accepts" if b["right"] else a["reason"])
    assert 0 < accepted < asked
    assert scores["judge"] == {"asked": asked, "accepted": accepted, "not_asked": 0, "why_not": {}}
    assert scores["accuracy"] == pytest.approx(sum(b["right"] for b in after) / 30)
    assert (scores["protocol"], scores["task"]) == ("paper", "arithmetic")


def test_the_report_counts_what_the_judge_accepted(parse, tmp_path):
    out = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *SMALL, f"run.store={tmp_path}", "eval.protocol=paper", "judge=model",
         f"judge.path={WEIGHTS}", "judge.dtype=float32", "judge.engine=transformers", "judge.max_tokens=60",
         "judge.prompt='{question} ({gold}) {solution}'", "judge.accept=''"],  # found in every reply
        capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    results = json.loads(next(tmp_path.glob("report/*/results.json")).read_text())
    task = results["tasks"]["arithmetic"]
    assert task["base"]["accuracy"]["value"] == task["trained"]["accuracy"]["value"] == 1.0
    plain = [json.loads(p.read_text()) for p in tmp_path.glob("evaluate/*/scores.json")]
    wrong = sum(30 - round(30 * s["accuracy"]) for s in plain)
    assert wrong == task["base"]["judge_accepted"] + task["trained"]["judge_accepted"] > 0
    assert {s["role"] for s in results["stages"]} >= {"judged:base:arithmetic", "judged:trained:arithmetic", "base:arithmetic"}
    assert "accepted by the judge" in next(tmp_path.glob("report/*/report.html")).read_text()


def test_what_the_judge_cannot_be_asked_is_told(parse, tmp_path):
    _, after, scores = judged(parse, tmp_path, "judge.max_tokens=440", "judge.accept=x")  # of a context of 512
    why = scores["judge"]["why_not"]
    assert why == {"too long for the judge": scores["judge"]["not_asked"]}
    assert scores["judge"]["not_asked"] > 0
    assert all(not b["right"] for b in after if b["judge"] is not None and b["judge"]["reply"] is None)


def test_a_judge_that_cannot_be_loaded_is_refused_before_anything_is_spent(parse, tmp_path):
    folder = tmp_path / "judge"
    shutil.copytree(WEIGHTS, folder)
    (folder / "chat_template.jinja").unlink()
    config = parse(*SMALL, f"run.store={tmp_path / 'store'}", "eval.protocol=paper", "judge=model", f"judge.path={folder}")
    with pytest.raises(ModelError, match="the judge cannot be loaded") as refusal:
        pipeline.main(config, Console(quiet=True))
    assert "judge.path" in refusal.value.remedy
    with pytest.raises(ModelError, match=r"judge\.path="):
        plan(parse(*SMALL, "eval.protocol=paper", "judge=model", f"judge.path={tmp_path / 'nowhere'}"))
    hub = parse(*SMALL, f"run.store={tmp_path / 'store'}", "eval.protocol=paper", "judge=omni_judge",
                f"judge.revision={'a' * 40}")
    with pytest.raises(ModelError, match="the judge cannot be loaded"):
        pipeline.main(hub, Console(quiet=True))
    assert not [p for p in (tmp_path / "store").glob("*/*") if not p.name.startswith(".")]


# --- what is refused ---


def refused(parse: Any, tmp_path: Path, *overrides: str) -> DataError:
    """The refusal; nothing may have been sampled for it."""
    config = parse(*ANY, f"run.store={tmp_path / 'store'}", *overrides)
    with pytest.raises(DataError) as refusal:
        pipeline.main(config, Console(quiet=True))
    assert not list((tmp_path / "store").glob("*/*"))
    assert refusal.value.remedy
    return refusal.value


def test_bad_tasks_are_refused_before_anything_is_sampled(parse, tmp_path, write_jsonl):
    def task(rows: list[dict[str, Any]], *more: str) -> list[str]:
        return ["eval=aime24", f"eval.tasks.aime24.path={write_jsonl(rows)}", *more]

    error = refused(parse, tmp_path, *task([{"problem": "1 + 1?"}]))
    assert "'answer'" in error.what
    error = refused(parse, tmp_path, *task([{"problem": "1 + 1?", "answer": "2"}, {"problem": "1 + 1?", "answer": "3"}]))
    assert "line 2" in error.what
    assert "another answer" in error.what
    error = refused(parse, tmp_path, *task([{"problem": "1 + 1? " * 300, "answer": "2"}]))
    assert "the model's context 512" in error.what
    error = refused(parse, tmp_path, *task([{"problem": "1 + 1?", "answer": "2"}], "model.paper_context=4"))
    assert "the protocol's (model.paper_context) 4" in error.what
    error = refused(parse, tmp_path, *task([{"problem": "Which?", "answer": "both"}], "eval.tasks.aime24.kind=choice"))
    assert "'both'" in error.what
    error = refused(parse, tmp_path, *task([{"problem": "1 + 1?", "answer": "two"}], "eval.tasks.aime24.answer_format=boxed"))
    assert "boxed" in error.what


def test_duplicates_that_agree_are_asked_once(parse, tmp_path, write_jsonl):
    file = write_jsonl([{"problem": "1 + 1?", "answer": "2"}] * 2 + [{"problem": "1 + 2?", "answer": "3"}])
    spec = task_spec(parse, *ANY, "eval=aime24", f"eval.tasks.aime24.path={file}")
    asked, questions = evaluation.items(spec)
    assert (len(asked), questions.duplicates) == (2, 1)


def test_options_that_are_not_different_are_refused(tmp_path):
    file = gpqa(tmp_path / "gpqa.csv", 1)
    file.write_text(file.read_text().replace("5 m/s", "10 m/s", 1) if "5 m/s" in file.read_text() else "")
    spec = QuestionsSpec(ContentRef("", str(file)), "Question", "Correct Answer", AnswerFormat.plain, None, COLUMNS[2:5])
    with pytest.raises(DataError, match="not 4 different ones"):
        datasets.load(spec)
