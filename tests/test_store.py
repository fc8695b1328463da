"""The store: whole or not there, one builder at a time, corruption named, machine-independent keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from upft.errors import StoreError
from upft.hashing import canonical, digest
from upft.provenance import provenance
from upft.store import Corrupt, Store

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
