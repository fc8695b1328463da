"""`python -m upft.compare` on files, folders, keys and reports: the numbers by hand, the errors by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from upft import scoreboard
from upft.hashing import digest
from upft.statistics import accuracy, majority_at_k, paired, pass_at_k
from upft.store import Store

ROOT = Path(__file__).parent.parent
BASE = {"a": [1, 0], "b": [0, 0], "c": [1, 1], "d": [0, 1]}
TRAINED = {"a": [1, 1], "b": [1, 0], "c": [0, 1], "d": [1, 1]}


def rows(right: Mapping[str, list[int]], votes: bool = False) -> list[dict[str, Any]]:
    """Rows of answers.jsonl; a wrong vote is the question's own name."""
    return [{"id": i, "index": n, "question": f"What is [{i}]?", "gold": "5", "right": bool(r),
             "completion": f"{i}{n} says \\boxed{{{5 if r else 6}}}", "extracted": "5" if r else "6", "finish_reason": "stop",
             **({"vote": "5" if r else None} if votes else {})} for i, one in right.items() for n, r in enumerate(one)]


def evaluate(store: Store, right: Mapping[str, list[int]], task: str = "toy", votes: bool = False, stage: str = "evaluate",
             **spec: Any) -> Path:
    """A finished evaluate artifact, put there by the store itself. stage: or another one of graded answers."""
    told = {"task": task, "n": 2, "max_tokens": 64, "sampling": {"temperature": 0.0}, **spec}
    identity = {"stage": stage, "spec": told, "inputs": {}, "of": sorted(right.items())}

    def make(folder: Path) -> None:
        (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(right, votes)))
        (folder / "scores.json").write_text(json.dumps({"task": task, "temperature": told["sampling"]["temperature"],
                                                        **({"protocol": told["protocol"]} if "protocol" in told else {})}))

    return store.build(stage, digest(identity)[:20], identity, make)[0].path


def report(store: Store, judged: tuple[Path, Path] | None = None, **tasks: tuple[Path, Path]) -> Path:
    """A finished report artifact over evaluations. judged: of the task `toy`, what a judge made of them."""
    inputs = {f"{side}:{task}": path.name for task, pair in tasks.items()
              for side, path in zip(("base", "trained"), pair, strict=True)}
    for side, path in zip(("base", "trained"), judged or (), strict=False):
        inputs[f"judged:{side}:toy"] = path.name
    identity = {"stage": "report", "spec": {"tasks": list(tasks)}, "inputs": inputs}
    return store.build("report", digest(identity)[:20], identity, lambda folder: (folder / "results.json").touch())[0].path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    made = Store(tmp_path / "store")
    made.prepare()
    return made


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str, str]]:
    """told(*arguments) -> (what --json holds, standard output with spaces collapsed, standard error)."""

    def run(*arguments: object) -> tuple[dict[str, Any], str, str]:
        file = tmp_path / "numbers.json"
        scoreboard.main([*map(str, arguments), "--json", str(file)])
        out = capsys.readouterr()
        return json.loads(file.read_text()), re.sub(r"\s+", " ", out.out), re.sub(r"\s+", " ", out.err)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*arguments) -> the message of an exit with status 2."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            scoreboard.main([*map(str, arguments)])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert "\n  remedy: " in message
        return message

    return run


def test_numbers_are_those_of_the_statistics(store: Store, told: Callable[..., Any]) -> None:
    a, b = evaluate(store, BASE, votes=True), evaluate(store, TRAINED, votes=True)
    found, shown, warned = told(a, b)
    task, before, after = found["tasks"]["toy"], list(BASE.values()), list(TRAINED.values())
    assert (task["questions"], task["samples"], task["left_out"]) == (4, {"a": 2, "b": 2}, {"a": 0, "b": 0})
    assert list(task["measures"]) == ["accuracy", "maj@2", "pass@2"]
    measured = task["measures"]["accuracy"]
    assert (measured["a"], measured["b"]) == (vars(accuracy(before)), vars(accuracy(after)))
    expected = vars(paired(before, after))
    assert {k: measured["paired"][k] for k in expected} == expected
    assert measured["paired"]["difference"] == pytest.approx(6 / 8 - 4 / 8)
    half = (measured["paired"]["high"] - measured["paired"]["low"]) / 2
    t = stats.t.ppf([0.975, 0.8], 3)
    assert measured["paired"]["smallest_detectable"] == pytest.approx(min(1.0, half * (1 + t[1] / t[0])))
    for side, right in (("a", before), ("b", after)):
        votes = [["5" if r else None for r in one] for one in right]
        assert task["measures"]["maj@2"][side] == vars(majority_at_k(votes, right, 2))
        assert task["measures"]["pass@2"][side] == vars(pass_at_k(right, 2))
    assert (task["gained"], task["lost"]) == (["a", "b", "d"], ["c"])
    assert "toy: 3 questions better under B, 1 worse, 0 alike" in shown
    assert "toy, accuracy 4 x 2 50.0 [" in shown
    assert "+25.0 [" in shown
    assert "inside noise" in shown
    assert warned == ""


def test_greedy_answers_get_mcnemar(tmp_path: Path, write_jsonl: Callable[..., Path], told: Callable[..., Any]) -> None:
    a = write_jsonl([{"id": i, "right": i < 10} for i in range(30)], "a.jsonl")
    b = write_jsonl([{"id": str(i), "index": 0, "right": int(i != 0 and i < 19)} for i in reversed(range(30))], "b.jsonl")
    found, shown, _ = told(a, b)
    measured = found["tasks"]["answers"]["measures"]
    assert list(measured) == ["accuracy"]
    assert measured["accuracy"]["paired"]["test"] == "mid-P McNemar"
    # 9 won, 1 lost: twice P(none of 10) and P(one of 10)
    assert measured["accuracy"]["paired"]["p_value"] == pytest.approx(2 * (1 + 10 / 2) / 2**10)
    assert "gain" in shown
    assert "mid-P McNemar" in shown


def test_only_questions_in_common_count(write_jsonl: Callable[..., Path], told: Callable[..., Any]) -> None:
    a = write_jsonl(rows({**BASE, "x": [1, 1]}), "a.jsonl")
    b = write_jsonl(rows({"y": [0, 0], "z": [0, 0], **TRAINED}), "b.jsonl")
    found, _, warned = told(a, b)
    assert found["tasks"]["answers"]["left_out"] == {"a": 1, "b": 2}
    assert found["tasks"]["answers"]["measures"]["accuracy"]["a"]["value"] == 0.5
    assert "1 questions of A and 2 of B are not in the other" in warned


def test_other_settings_are_told(store: Store, told: Callable[..., Any]) -> None:
    a = evaluate(store, BASE, protocol="paper")
    b = evaluate(store, {i: [*one, 1, 1] for i, one in TRAINED.items()}, protocol="standard", max_tokens=128,
                 sampling={"temperature": 0.6})
    found, _, warned = told(a, b)
    for words in ("protocol=paper, B with standard", "temperature=0.0, B with 0.6", "max_tokens=64, B with 128",
                  "A has n=2 samples a question, B n=4"):
        assert words in warned
    assert list(found["tasks"]["toy"]["measures"]) == ["accuracy", "pass@2"]
    assert found["tasks"]["toy"]["settings"]["b"] == {"protocol": "standard", "temperature": 0.6, "max_tokens": 128,
                                                          "judge": "none"}


def test_a_key_or_its_first_digits(store: Store, told: Callable[..., Any], refused: Callable[..., str]) -> None:
    a, b = evaluate(store, BASE), evaluate(store, TRAINED)
    found, _, _ = told(a.name[:6], b.name, "--store", store.root)
    assert found["tasks"]["toy"]["gained"] == ["a", "b", "d"]
    assert found["a"]["answers"] == [str(a / "answers.jsonl")]
    assert "no evaluation and no report" in refused("abcdef", b.name, "--store", store.root)
    assert "5 hex digits are too few" in refused(a.name[:5].replace(a.name[:5], "0abcd"), b.name, "--store", store.root)
    twin = store.root / "report" / (a.name[:6] + "f" * 14)
    twin.mkdir(parents=True)
    assert f"{a.name[:6]} begins 2 keys" in refused(a.name[:6], b.name, "--store", store.root)


def test_a_report_alone_and_two_reports(store: Store, told: Callable[..., Any], refused: Callable[..., str]) -> None:
    other = {"a": [0, 0], "b": [0, 1], "c": [0, 1], "d": [1, 1]}
    base = evaluate(store, BASE), evaluate(store, BASE, "hard")
    first = report(store, toy=(base[0], evaluate(store, TRAINED)), hard=(base[1], evaluate(store, other, "hard")))
    second = report(store, toy=(base[0], evaluate(store, other)))
    found, shown, _ = told(first)
    assert list(found["tasks"]) == ["toy", "hard"]
    assert (found["a"]["name"], found["b"]["name"]) == (f"base of {first}", f"trained of {first}")
    differences = [found["tasks"][t]["measures"]["accuracy"]["paired"]["difference"] for t in ("toy", "hard")]
    assert differences == [pytest.approx(0.25), pytest.approx(0.0)]
    assert found["macro"]["paired"]["difference"] == pytest.approx(0.125)
    assert found["macro"]["a"]["value"] == pytest.approx(0.5)
    assert "mean of 2 tasks 8" in shown
    found, _, warned = told(first.name[:8], second, "--store", store.root)
    assert list(found["tasks"]) == ["toy"]
    assert found["tasks"]["toy"]["measures"]["accuracy"]["paired"]["difference"] == pytest.approx(4 / 8 - 6 / 8)
    assert found["macro"] is None
    assert "hard left out" in warned
    assert "nothing to compare it with" in refused(base[0])


JUDGE = {"model": {"source": {"id": "org/judge"}}, "max_tokens": 300}


def test_a_reports_judged_and_chosen_answers_are_compared(store: Store, told: Callable[..., Any]) -> None:
    """Those that the report itself counts: not the rule's verdicts where a judge has looked, and a verifier's choice."""
    base, trained = evaluate(store, BASE), evaluate(store, TRAINED)
    kinder = {**BASE, "b": [1, 1]}
    after = evaluate(store, kinder, stage="judge", **JUDGE), evaluate(store, TRAINED, stage="judge", **JUDGE)
    found, _, warned = told(report(store, judged=after, toy=(base, trained)))
    assert list(found["tasks"]["toy"]["answers"].values()) == [str(path / "answers.jsonl") for path in after]
    assert found["tasks"]["toy"]["lost"] == ["b", "c"]
    assert found["tasks"]["toy"]["settings"]["a"]["judge"] == "org/judge"
    assert "max_tokens" not in found["tasks"]["toy"]["settings"]["a"], "the judge's own replies are not the answers"
    assert warned == ""
    chosen = evaluate(store, {i: [1] for i in BASE}, stage="verify")
    found, _, _ = told(report(store, toy=(base, chosen)))
    assert found["tasks"]["toy"]["answers"]["b"] == str(chosen / "answers.jsonl")
    for one in (after[0], chosen):
        found, _, _ = told(base.name[:8], one.name[:8], "--store", store.root)
        assert found["tasks"]["toy"]["answers"]["b"] == str(one / "answers.jsonl")
    _, _, warned = told(base, after[0])
    assert "A was evaluated with judge=none, B with org/judge" in warned


def test_flipped_questions_are_shown(store: Store, told: Callable[..., Any]) -> None:
    a, b = evaluate(store, BASE), evaluate(store, TRAINED)
    _, shown, _ = told(a, b, "--show", 2)
    assert "toy, question a: better under B question: What is [a]? gold: 5" in shown
    assert "A (1 of 2 right; this one wrong, extracted 6) a1 says \\boxed{6}" in shown
    assert "B (2 of 2 right; this one right, extracted 5) a0 says \\boxed{5}" in shown
    assert "question b: better" in shown
    assert "question c" not in shown


@pytest.mark.parametrize(("lines", "words"), [
    (['{"id": 1, "index": 0, "right": true}', "{"], "line 2 is not JSON"),
    (['{"id": 1, "index": 0, "right": true}', "[" * 100_000], "line 2 is not JSON"),
    (['{"id": 1, "index": 0}'], "line 1 has no right"),
    (["[1]"], "line 1 has no id and no right"),
    (['{"id": 1, "index": 0, "right": "yes"}'], "right='yes' is no verdict"),
    (['{"id": 1, "index": 0, "right": 1}', '{"id": 1, "index": 0, "right": 0}'], "id 1 has the index 0 twice"),
    (['{"id": 1, "index": "x", "right": 1}'], "index='x' is no whole number"),
    (['{"id": 1, "right": 1}', '{"id": 1, "right": 1}', '{"id": 2, "right": 1}'], "id 2 has 1 answers, id 1 has 2"),
    ([""], "holds no answer"),
])
def test_bad_files_are_named(tmp_path: Path, write_jsonl: Callable[..., Path], refused: Callable[..., str], lines: list[str],
                             words: str) -> None:
    bad, good = tmp_path / "bad.jsonl", write_jsonl(rows(BASE))
    bad.write_text("\n".join(lines) + "\n")
    message = refused(bad, good)
    assert words in message
    assert str(bad) in message


def test_a_byte_order_mark_and_a_line_separator_in_a_text_are_no_obstacle(tmp_path: Path, told: Callable[..., Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"id": 1, "right": true, "completion": "a\u2028b"}\n{"id": 2, "right": false}\n'.encode())
    assert told(path, path)[0]["tasks"]["answers"]["questions"] == 2


def test_nothing_in_common_and_nothing_there(tmp_path: Path, store: Store, write_jsonl: Callable[..., Path],
                                             refused: Callable[..., str]) -> None:
    a, b = write_jsonl(rows(BASE), "a.jsonl"), write_jsonl(rows({"q": [1, 0]}), "b.jsonl")
    assert "no question id in common" in refused(a, b)
    assert "no such file, folder or key" in refused(a, tmp_path / "nowhere")
    assert "holds neither answers.jsonl nor" in refused(a, tmp_path)
    one = evaluate(store, BASE)
    lonely = report(store, toy=(one, one))
    (store.root / "evaluate").rename(store.root / "gone")
    assert "base:toy" in refused(lonely)
    assert "cannot be written" in refused(a, a, "--json", tmp_path / "no" / "file.json")


def test_a_corrupt_artifact_is_refused(store: Store, refused: Callable[..., str]) -> None:
    a, b = evaluate(store, BASE), evaluate(store, TRAINED)
    with (b / "answers.jsonl").open("a") as stream:
        stream.write(json.dumps(rows({"e": [1]})[0]) + "\n")
    assert "is corrupt: answers.jsonl" in refused(a, b)


def test_a_task_of_another_name_is_warned_of(store: Store, told: Callable[..., Any]) -> None:
    _, _, warned = told(evaluate(store, BASE, "one"), evaluate(store, TRAINED, "two"))
    assert "A answers the task one, B two" in warned


def test_default_store_is_the_one_of_a_run() -> None:
    default = yaml.safe_load((ROOT / "conf" / "run" / "default.yaml").read_text())["store"]
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "upft.compare", "--help"], capture_output=True, text=True,
                          cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert f"(default: {default})" in re.sub(r"\s+", " ", done.stdout)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "numpy", "hydra", "rich"}


@pytest.mark.slow
def test_a_real_cell(tmp_path: Path) -> None:
    """The embedded model through the whole pipeline: the comparison says what the report says."""
    folder = tmp_path / "store"
    run = [sys.executable, str(ROOT / "run.py"), "sample.engine=transformers", "eval.engine=transformers",
           "data.arithmetic.questions=32", "eval.tasks.arithmetic.arithmetic.questions=24", "eval.n=2",
           "train.batch_size=16", "compute.threads=1", f"run.store={folder}"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = [p for p in (folder / "report").iterdir() if p.is_dir()]
    file = tmp_path / "found.json"
    done = subprocess.run([sys.executable, "-m", "upft.compare", made.name[:8], "--store", str(folder), "--json", str(file),
                           "--show", "1"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((made / "results.json").read_text())["tasks"]["arithmetic"]
    found = json.loads(file.read_text())["tasks"]["arithmetic"]
    assert found["questions"] == told["questions"] == 24
    assert found["measures"]["accuracy"]["paired"] == pytest.approx(told["paired"])
    assert found["measures"]["accuracy"]["a"] == pytest.approx(told["base"]["accuracy"])
    assert (len(found["gained"]), len(found["lost"])) == (told["questions_gained"], told["questions_lost"])
    assert "arithmetic" in done.stdout
