"""What changes between planning and running: files under their hashes, shards under two jobs at once."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft import hashing, pipeline, shards
from upft.console import Console
from upft.errors import DataError
from upft.hashing import Hasher
from upft.plan import Stage, plan
from upft.store import RESUME, Corrupt, Store

WEIGHTS = Path(pipeline.__file__).parent / "toy" / "weights"
QUIET = Console(quiet=True)
ENGINES = ["sample.engine=transformers", "eval.engine=transformers", "data=jsonl", "data.name=q"]


def write(path: Path, word: str) -> None:
    path.write_text("".join(json.dumps({"question": f"{word} is {i} + 1?"}) + "\n" for i in range(4)))


class Case:
    """A sampling of a cell on files of its own."""

    def __init__(self, parse: Callable[..., Any], folder: Path) -> None:
        self.data, self.model, self.parse = folder / "q.jsonl", folder / "model", parse
        shutil.copytree(WEIGHTS, self.model)
        write(self.data, "What")
        self.store = Store(folder / "store")
        self.store.prepare()
        self.stage = self.planned()

    def planned(self, hasher: Hasher | None = None) -> Stage:
        self.config = self.parse(*ENGINES, f"data.path={self.data}", f"model.path={self.model}", f"run.store={self.store.root}")
        return plan(self.config, hasher).named("sample")[0]

    def run(self) -> Path:
        return pipeline.alone(self.stage, self.store, self.config.compute, self.config.tracker, QUIET).path


@pytest.fixture
def case(parse: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(pipeline, "_run", lambda stage, inputs, out, host: (out / "samples.jsonl").write_text("x"))
    return Case(parse, tmp_path)


@pytest.mark.parametrize("what", ["data", "weights", "a new file", "gone"])
def test_a_file_that_changed_while_the_job_was_queued(case: Case, what: str) -> None:
    named = case.data
    if what == "data":
        write(case.data, "Whit")  # as long as before
    elif what == "gone":
        case.data.unlink()
    else:
        named, file = case.model, case.model / ("model.safetensors" if what == "weights" else "added_tokens.json")
        file.write_bytes(file.read_bytes()[:-1] + b"!" if file.exists() else b"{}")
    with pytest.raises(DataError, match="cannot be read" if what == "gone" else "has changed since it was planned") as caught:
        case.run()
    assert str(named) in caught.value.what
    assert case.store.find("sample", case.stage.key) is None
    if what != "gone":
        assert case.planned().key != case.stage.key, "planned anew it is another stage"
        case.stage = case.planned()
        case.run()


def test_a_file_that_changes_while_the_stage_runs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the artifact nor what it could go on from may be believed."""
    def run(stage: Stage, inputs: Any, out: Path, host: Any) -> None:
        (out / RESUME).mkdir()
        (out / RESUME / "finished.jsonl").write_text("of one content, or of the other")
        write(case.data, "Whit")

    monkeypatch.setattr(pipeline, "_run", run)
    with pytest.raises(DataError, match="has changed since it was planned"):
        case.run()
    assert case.store.find("sample", case.stage.key) is None
    assert not (case.store.unfinished("sample", case.stage.key) / RESUME).exists()


def test_a_file_that_is_only_touched_or_written_again_as_it_was(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(case.model / "model.safetensors")
    write(case.data, "What")
    assert case.run().is_dir()


def test_a_file_is_read_once_a_process_to_be_hashed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning, looking before and after: weights of 15 GB are not read three times."""
    read: Counter[str] = Counter()
    sha256 = hashing.file_sha256

    def counted(path: Path) -> str:
        read[path.name] += 1
        return sha256(path)

    for file in (case.data, *case.model.iterdir()):
        os.utime(file, (1e9, 1e9))  # settled long ago
    monkeypatch.setattr(hashing, "file_sha256", counted)
    case.stage = case.planned()
    case.run()
    assert read["model.safetensors"] == read["q.jsonl"] == 1


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path) -> None:
    """Two contents of one size within one tick of the file system's clock."""
    file, hasher = tmp_path / "x", Hasher()
    file.write_text("one")
    stat = file.stat()
    first = hasher.file(file)
    file.write_text("two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hasher.file(file) != first


def test_two_jobs_meet_one_corrupt_shard(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is faster by a hair."""
    one = shards.of(case.stage, 2)[0]
    artifact, _ = case.store.build(one.name, one.key, one.identity, lambda out: (out / "finished.jsonl").write_text("x"))
    (artifact.path / "finished.jsonl").write_text("y")
    find = Store.find

    def raced(self: Store, stage: str, key: str) -> Any:
        try:
            return find(self, stage, key)
        except Corrupt:
            assert self.set_aside(stage, key) is not None
            raise

    monkeypatch.setattr(Store, "find", raced)
    assert case.run().is_dir()
    assert len(list((case.store.root / ".corrupt").iterdir())) == 1


def test_a_hit_takes_away_what_a_builder_left_that_died_after_the_rename(case: Case) -> None:
    path = case.run()
    (path / RESUME).mkdir()
    assert case.run() == path
    assert not (path / RESUME).exists()
