"""One experiment end to end on the embedded model: hits, kills, twins, corruption; on real parts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=96",
         "eval.tasks.arithmetic.arithmetic.questions=40", "eval.n=2", "train.batch_size=16", "compute.threads=1"]
VOLATILE = {"provenance.json", "ledger.json", "manifest.json", "metrics.jsonl", "results.json", "report.html",
            "README.md", "report.md", "cost.csv", "cost.tex"}
"""Files that hold clocks, or are made from files that do."""

pytestmark = pytest.mark.slow


def command(store: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *SMALL, f"run.store={store}", *more]


def run(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(store, *more), capture_output=True, text=True, cwd=ROOT, timeout=600)


def artifacts(store: Path) -> dict[str, Path]:
    """stage/key -> folder of every finished artifact."""
    return {f"{p.parent.name}/{p.name}": p for p in sorted(store.glob("[a-z]*/*"))
            if p.is_dir() and not p.name.endswith(".partial")}


def contents(store: Path) -> dict[str, bytes]:
    """Bytes of every file whose content the plan decides; of summaries, all but a clock and what was found of an earlier
    run."""
    happened = {"train.json": ["seconds"], "samples.json": ["reused_after_interruption", "dropped_log_lines"],
                "scores.json": ["reused_after_interruption", "dropped_log_lines"]}

    def read(file: Path) -> bytes:
        if file.name not in happened:
            return file.read_bytes()
        told = json.loads(file.read_text())
        for key in happened[file.name]:
            assert told.pop(key) >= 0
        return json.dumps(told).encode()

    return {f"{name}/{f.relative_to(folder)}": read(f) for name, folder in artifacts(store).items()
            for f in sorted(folder.rglob("*"))
            if f.is_file() and f.name not in VOLATILE and "figures" not in f.parts}


def table(output: str) -> str:
    """What a run prints after its stages."""
    return output[output.index("UPFT"):] if "UPFT" in output else output


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[Path, str]:
    """A store filled by one uninterrupted run, and what the run printed."""
    store = tmp_path_factory.mktemp("reference") / "store"
    out = run(store)
    assert out.returncode == 0, out.stderr
    return store, out.stdout


def test_one_command_gives_every_artifact_and_a_report(reference):
    store, said = reference
    found = artifacts(store)
    assert sorted(name.split("/")[0] for name in found) == ["build", "diagnose", "evaluate", "evaluate", "report", "sample",
                                                            "train"]
    report = next(p for name, p in found.items() if name.startswith("report/"))
    assert (report / "report.html").is_file()
    assert str(report / "report.html") in said.replace("\n", "")
    for folder in found.values():
        spec = json.loads((folder / "spec.json").read_text())
        assert spec["stage"] == folder.parent.name
        assert json.loads((folder / "ledger.json").read_text())["seconds"] > 0
        assert json.loads((folder / "provenance.json").read_text())["versions"]["torch"]


def test_only_what_the_method_needs_is_sampled(reference):
    store, _ = reference
    folder = next(p for n, p in artifacts(store).items() if n.startswith("sample/"))
    samples = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    assert len(samples) == 96
    assert max(len(s["ids"]) for s in samples if s["kind"] == "prefix") <= 8
    assert max(len(s["ids"]) for s in samples if s["kind"] == "trace") > 8
    assert json.loads((folder / "ledger.json").read_text())["sampled_tokens"] == sum(len(s["ids"]) for s in samples)
    summary = json.loads((folder / "samples.json").read_text())
    assert 0 < summary["trace_requests"] < 25


def test_second_run_is_all_hits_with_the_same_table_and_no_torch(reference):
    store, first = reference
    before = contents(store)
    code = ("import sys, runpy; sys.argv = sys.argv[1:]\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally: print('heavy:', sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code, *command(store)[1:]], capture_output=True, text=True, cwd=ROOT,
                         timeout=120)
    assert out.returncode == 0, out.stderr
    assert "7 stages, 0 to run" in out.stdout
    assert "heavy: []" in out.stdout
    assert table(out.stdout).split("heavy:")[0].strip() == table(first).strip()
    assert contents(store) == before


def test_another_prefix_length_reuses_base_evaluation(reference):
    store, _ = reference
    before = set(artifacts(store))
    out = run(store, "prefix.len=4", "sample.max_tokens=8")
    assert out.returncode == 0, out.stderr
    new = sorted(name.split("/")[0] for name in set(artifacts(store)) - before)
    assert new == ["build", "evaluate", "report", "train"]


def test_two_identical_commands_at_once_do_the_work_once(reference, tmp_path):
    store = tmp_path / "store"
    both = [subprocess.Popen(command(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(2)]
    outs = [p.communicate(timeout=600) for p in both]
    assert [p.returncode for p in both] == [0, 0], [e for _, e in outs]
    expected = contents(reference[0])
    got = contents(store)
    assert got == {name: expected[name] for name in got}
    done = [line.split()[-3] for out, _ in outs for line in out.splitlines() if line.strip().startswith("done")]
    assert len(done) == len(set(done)) == 7, "a stage was built twice"


def test_kill_9_at_random_moments_then_the_same_result(reference, tmp_path):
    rng = random.Random(20261123)
    expected = contents(reference[0])
    kills = 0
    for round_ in range(3):
        store = tmp_path / f"store{round_}"
        for _ in range(4):
            process = subprocess.Popen(command(store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
                                       start_new_session=True)
            try:
                process.wait(timeout=rng.uniform(1.5, 8.0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
            for name, folder in artifacts(store).items():
                assert (folder / "manifest.json").is_file(), f"{name} is half written"
        out = run(store)
        assert out.returncode == 0, out.stderr
        got = contents(store)
        assert len(artifacts(store)) == 7
        assert got == {name: expected[name] for name in got}
    assert kills >= 4, "the runs were over before they could be killed"


def test_corrupt_artifact_stops_is_named_and_is_rebuilt_on_request(reference, tmp_path):
    import shutil

    store = tmp_path / "store"
    shutil.copytree(reference[0], store)
    shutil.rmtree(store / "report")
    folder = next(p for n, p in artifacts(store).items() if n.startswith("build/")
                  and json.loads((p / "spec.json").read_text())["spec"]["prefix_len"] == 8)
    original = (folder / "rows.arrow").read_bytes()
    (folder / "rows.arrow").write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    out = run(store)
    assert out.returncode == 1
    assert "Traceback" not in out.stderr
    assert str(folder) in out.stderr.replace("\n", "")
    assert "run.repair=true" in out.stderr
    out = run(store, "run.repair=true")
    assert out.returncode == 0, out.stderr
    assert "set aside" in out.stderr.replace("\n", " ")
    assert (folder / "rows.arrow").read_bytes() == original
    assert len(list((store / ".corrupt").iterdir())) == 1


def test_duplicates_and_long_questions_are_said_and_counted(tmp_path):
    questions = [f"Ana has {n} pens. She buys 4 more. How many pens does Ana have now?" for n in range(3, 20)]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": q}) + "\n" for q in [*questions, questions[0], "pens and " * 600]))
    store = tmp_path / "store"
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), "data=jsonl", f"data.path={path}", f"run.store={store}",
                          "sample.engine=transformers", "eval.engine=transformers", "eval.limit=5", "compute.threads=1"],
                         capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    said = " ".join(out.stderr.split())
    assert "1 duplicate questions" in said
    assert "1 questions do not fit the model's context of 512" in said
    summary = json.loads(next(store.glob("sample/*/samples.json")).read_text())
    assert (summary["questions"], summary["duplicates"], summary["too_long"]) == (17, 1, 1)


def test_plan_shows_stages_and_rows_without_weights(reference, tmp_path):
    store = tmp_path / "nothing"
    bare = tmp_path / "bare"  # config and tokenizer of a model, and weights that nothing can load
    bare.mkdir()
    for file in (ROOT / "upft" / "toy" / "weights").iterdir():
        (bare / file.name).write_bytes(b"no weights" if file.suffix == ".safetensors" else file.read_bytes())
    out = run(store, "plan=true", "run.ids=true", f"model.path={bare}")
    assert out.returncode == 0, out.stderr
    assert "⟦‹8 sampled tokens›⟧⟦<|eos|>⟧" in out.stdout
    assert "Please provide the initial step" in out.stdout
    assert "⟦‹up to 192 sampled tokens, with the stop token›⟧" in out.stdout
    assert out.stdout.count("miss") == 7
    assert not store.exists()
    done = run(reference[0], "plan=true", "run.ids=true")
    assert done.stdout.count("hit") >= 7
    folder = next(p for n, p in artifacts(reference[0]).items() if n.startswith("build/")
                  and json.loads((p / "spec.json").read_text())["spec"]["prefix_len"] == 8)
    for example in json.loads((folder / "rows.json").read_text())["examples"]:
        supervised = "".join(text for text, yes in example["segments"] if yes)
        assert f"⟦{supervised}⟧" in done.stdout
        assert str(example["input_ids"])[1:-1] in done.stdout.replace("\n", "")


def test_multirun_shares_the_sampling(reference, tmp_path):
    store = tmp_path / "store"
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", "sweep=tiny_prefix_length", *SMALL, f"run.store={store}",
                          "prefix.len=4,8"], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert out.returncode == 0, out.stderr
    counts: dict[str, int] = {}
    for name in artifacts(store):
        counts[name.split("/")[0]] = counts.get(name.split("/")[0], 0) + 1
    assert counts.pop("sweeps") == 1  # the report on both cells
    assert counts == {"sample": 1, "diagnose": 1, "build": 2, "train": 2, "evaluate": 3, "report": 2}
