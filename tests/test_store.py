"""The store: whole or not there, one builder at a time, corruption named, machine-independent keys."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from upft.errors import StoreError
from upft.hashing import canonical, digest
from upft.locks import NamedLock
from upft.provenance import provenance
from upft.store import RESUME, Corrupt, Store

ROOT = Path(__file__).parent.parent
IDENTITY = {"stage": "sample", "spec": {"n": 1}}

BUILDER = """
import sys, time
from pathlib import Path
from upft.store import Store
root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
store = Store(root); store.prepare()
def make(out):
    with log.open("a") as stream:
        stream.write("built\\n")
    for i in range(20):
        (out / f"part{i}").write_text("x" * 1000)
        time.sleep(pause / 20)
artifact, built = store.build("sample", "k", {"spec": 1}, make, on_wait=lambda who: print("waiting for", who, flush=True))
print("built" if built else "hit", flush=True)
"""


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "store")
    made.prepare()
    return made


def build(store: Store, text: str = "data"):
    return store.build("sample", "k", IDENTITY, lambda out: (out / "data.txt").write_text(text))


def test_built_once_then_a_hit(store):
    artifact, built = build(store)
    assert built
    assert json.loads((artifact.path / "spec.json").read_text()) == IDENTITY
    assert json.loads((artifact.path / "provenance.json").read_text())["versions"]["torch"]
    again, built = build(store, "other")
    assert not built
    assert (again.path / "data.txt").read_text() == "data"


def test_failed_build_leaves_no_artifact(store):
    def fail(out: Path) -> None:
        (out / "half").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        store.build("sample", "k", IDENTITY, fail)
    assert store.find("sample", "k") is None
    artifact, built = build(store)
    assert built
    assert not (artifact.path / "half").exists()


@pytest.mark.parametrize(("harm", "names"), [
    (lambda p: (p / "data.txt").write_text("dato"), "data.txt has other contents"),
    (lambda p: (p / "data.txt").write_text("longer"), "data.txt has 6 bytes instead of 4"),
    (lambda p: (p / "data.txt").unlink(), "data.txt is missing"),
    (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda p: (p / "manifest.json").write_text('{"data'), "manifest.json is missing or unreadable"),
    (lambda p: (p / "spec.json").write_text("{}"), "spec.json has 2 bytes"),
])
def test_corrupt_artifact_is_named_and_set_aside(store, harm, names):
    artifact, _ = build(store)
    harm(artifact.path)
    with pytest.raises(Corrupt) as refusal:
        store.find("sample", "k")
    assert str(artifact.path) in refusal.value.what
    assert names in refusal.value.what
    assert "run.repair=true" in refusal.value.remedy
    kept = store.set_aside("sample", "k")
    assert kept.is_dir()
    assert store.find("sample", "k") is None
    assert build(store)[1]


def test_store_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match=r"run\.store=.* cannot be written"):
        Store(blocked / "store").prepare()


def test_full_disk_is_told_as_such(store):
    def full(out: Path) -> None:
        with Path("/dev/full").open("w") as stream:
            stream.write("x" * 100_000)

    with pytest.raises(StoreError, match="No space left") as refusal:
        store.build("sample", "k", IDENTITY, full)
    assert "run.store=DIR" in refusal.value.remedy
    assert store.find("sample", "k") is None


def start(store: Store, log: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(store.root), str(log), str(pause)],
                            stdout=subprocess.PIPE, text=True)


def test_two_builders_at_once_build_once(store, tmp_path):
    log = tmp_path / "log"
    both = [start(store, log, 2.0) for _ in range(2)]
    outs = [p.communicate(timeout=60)[0] for p in both]
    assert log.read_text() == "built\n"
    assert sorted(out.split()[-1] for out in outs) == ["built", "hit"]
    waited = next(out for out in outs if "hit" in out)
    assert f"waiting for process {both[0].pid}" in waited or f"waiting for process {both[1].pid}" in waited


def test_killed_builder_is_taken_over(store, tmp_path):
    log = tmp_path / "log"
    for part in (1, 7, 19):
        victim = start(store, log, 20.0 if part < 19 else 4.0)
        deadline = time.monotonic() + 30
        while not (store.path("sample", "k").with_name("k.partial") / f"part{min(part, 1)}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.02 * part)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        assert store.find("sample", "k") is None, "a half-written artifact was taken for a whole one"
    out = start(store, log, 0.1).communicate(timeout=60)[0]
    assert out.split()[-1] == "built"
    found = store.find("sample", "k")
    assert found is not None
    assert sum((found.path / f"part{i}").stat().st_size for i in range(20)) == 20_000


def test_canonical_form_is_strict():
    assert digest(canonical({"a": 1, "b": (1, 2)})) == digest(canonical({"b": [1, 2], "a": 1}))
    assert digest(canonical(0.1)) != digest(canonical(0.2))
    assert digest(canonical(1)) != digest(canonical(True))
    assert digest(canonical("1")) != digest(canonical(1))
    with pytest.raises(TypeError, match="set has no canonical form"):
        canonical({"a": {1, 2}})
    with pytest.raises(ValueError, match="Out of range"):
        digest(canonical(float("nan")))


@pytest.mark.parametrize(("argv", "told"), [
    (["run.py", "-m", "prefix.len=8,16", "run.store=my store"], "python run.py -m prefix.len=8,16 'run.store=my store'"),
    (["/somewhere/run.py", "seed=0"], "python run.py seed=0"),
    (["/somewhere/upft/stage.py", "abc"], "python -m upft.stage abc"),
])
def test_provenance_tells_the_command(argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance(0.0)["command"] == told


PAID = "finished.jsonl"


@pytest.mark.parametrize("death", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("at", ["_write_json", "_manifest", "_sync", "os.rename"])
def test_what_was_paid_for_outlives_a_death_at_the_very_end(store, monkeypatch, death, at):
    """Between the stage's end and the artifact's name nothing is lost; afterwards nothing of it is left."""
    drawn = []

    def make(out: Path) -> None:
        (out / RESUME).mkdir(exist_ok=True)
        if not (out / RESUME / PAID).exists():
            drawn.append("all")
            (out / RESUME / PAID).write_text("paid for")
        (out / "samples.jsonl").write_text("x")

    def dies(*_: object) -> None:
        raise death

    with monkeypatch.context() as patch:
        patch.setattr(f"upft.store.{at}", dies)
        with pytest.raises((KeyboardInterrupt, StoreError)):
            store.build("sample", "k", IDENTITY, make)
    assert store.find("sample", "k") is None
    artifact, built = store.build("sample", "k", IDENTITY, make)
    assert built
    assert drawn == ["all"]
    assert sorted(p.name for p in artifact.path.iterdir()) == [
        "manifest.json", "provenance.json", "samples.jsonl", "spec.json"]
    assert sorted(json.loads((artifact.path / "manifest.json").read_text())) == [
        "provenance.json", "samples.jsonl", "spec.json"]


def test_a_builder_that_dies_after_the_rename_leaves_a_whole_artifact(store):
    """What it went on from is still there: no part of the artifact, and gone with the next hit."""
    artifact, _ = build(store)
    (artifact.path / RESUME).mkdir()
    (artifact.path / RESUME / PAID).write_text("paid for")
    assert store.find("sample", "k") is not None
    assert not build(store)[1]
    assert not (artifact.path / RESUME).exists()


def test_set_aside_by_two_at_once(store):
    """The second one finds it gone, or whole again, and touches nothing."""
    artifact, _ = build(store)
    assert store.set_aside("sample", "k") is None, "it is whole"
    (artifact.path / "data.txt").write_text("dato")
    assert store.set_aside("sample", "k") is not None
    assert store.set_aside("sample", "k") is None
    assert build(store)[1]


def test_a_holder_held_up_before_it_has_written_its_name_is_not_taken_over(store, monkeypatch):
    """The name of a job that ended long ago lies beside a free lock: it is not the new holder's."""
    monkeypatch.setattr("upft.slurm.ended", lambda job: True)
    monkeypatch.setattr("upft.locks.LOOK_AFTER_S", 0.1)
    (store.root / ".locks" / "sample-k.holder").write_text("process 1 on n1, job 5.0")
    inside, most, write = [], [], Path.write_text

    def slow(self: Path, *args: object, **kwargs: object) -> int:
        if self.suffix == ".holder":
            time.sleep(0.8)  # a file server under load
        return write(self, *args, **kwargs)

    def make(out: Path) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.8)
        inside.pop()

    monkeypatch.setattr(Path, "write_text", slow)
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(Store(store.root).build, "sample", "k", IDENTITY, make) for _ in range(3)]
    assert sorted(one.result()[1] for one in made) == [False, False, True]
    assert most == [1]
    assert not (store.root / ".locks" / "sample-k.holder").exists(), "a name outlives no lock"


def test_a_dead_jobs_lock_is_taken_over_once_and_a_living_ones_never(store, monkeypatch):
    """The lock is held throughout, as a file server does for a client that is gone."""
    monkeypatch.setattr("upft.locks.LOOK_AFTER_S", 0.1)
    over: list[str] = []
    monkeypatch.setattr("upft.slurm.ended", lambda job: job in over)
    gone, waited, built = NamedLock(store.root / ".locks" / "sample-k.lock"), [], []
    assert gone.take()
    (store.root / ".locks" / "sample-k.holder").write_text("process 1 on n1, job 5.0")
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(Store(store.root).build, "sample", "k", IDENTITY, lambda out: built.append(out), waited.append)
                for _ in range(3)]
        time.sleep(1.0)
        assert waited == ["process 1 on n1, job 5.0"] * 3
        assert not built
        over.append("5.0")
    assert sorted(one.result()[1] for one in made) == [False, False, True]
    assert len(built) == 1
    gone.release()


def test_a_suffix_in_chinese_where_the_locale_is_not_utf8(tmp_path):
    script = ("from upft.store import Store\nimport locale, sys\nassert locale.getpreferredencoding(False) != 'UTF-8'\n"
              "store = Store(sys.argv[1]); store.prepare()\n"
              "print(store.build('sample', 'k', {'spec': {'suffix': '\\u5148'}}, lambda out: None)[0].json('spec.json') == "
              "{'spec': {'suffix': '\\u5148'}})")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=plain, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def localised(source: str) -> list[int]:
    """Lines that open a file as text in the locale's encoding. (Ruff's PLW1514 sees few: it must know a path's type.)"""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in ("read_text", "write_text", "open") or ast.unparse(node.func) == "os.open":
            continue
        modes = [*node.args[not method:][:1], *(word.value for word in node.keywords if word.arg == "mode")]
        if name != "open" or all(isinstance(mode, ast.Constant) and "b" not in str(mode.value) for mode in modes):
            found.append(node.lineno)
    return found


def test_no_file_is_opened_in_the_locales_encoding():
    assert localised('p.read_text()\nopen("x")\nopen("x", "rb")\np.open("w")\np.open(mode="wb")\n'
                     'p.open("w", encoding="utf-8")\nos.open(p, 0)\n(a / "b").write_text("")') == [1, 2, 4, 8]
    files = [*(ROOT / "upft").rglob("*.py"), *(ROOT / "hydra_plugins").glob("*.py"), ROOT / "run.py"]
    found = {str(file.relative_to(ROOT)): localised(file.read_text(encoding="utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
