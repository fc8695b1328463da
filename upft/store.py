"""Content-addressed artifacts: `ROOT/<stage>/<key>/`.

Floor 1. An artifact is written in a temporary sibling and renamed, so that a folder under its final name is
whole. A manifest of sizes and SHA-256 sums lies beside the data; a folder that disagrees with it is corrupt:
named, and on request set aside. One builder at a time holds the artifact's lock (`upft.locks`); the next one takes over from
one that dies. Knows nothing of what a stage does.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft.errors import StoreError
from upft.hashing import file_sha256
from upft.locks import NamedLock
from upft.provenance import provenance

MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""Ends the name of a folder that is being filled."""
RESUME = "resume"
"""Folder in which a stage keeps what it can go on from. While it is there, what a dead builder left is not wiped; it goes when
the artifact has its name, and is no part of it."""
COMMANDS = ".commands"
"""Folder of what makes an artifact, KEY.txt."""
CHECKED_IN_FULL = 64 * 2**20
"""Files up to this many bytes are hashed whenever an artifact is opened; larger ones are checked by size."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says that takes no more."""


@dataclass(frozen=True)
class Artifact:
    """A finished, checked artifact."""

    stage: str
    key: str
    path: Path

    def json(self, name: str) -> Any:
        """Contents of a JSON file in it."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


class Corrupt(StoreError):
    """An artifact disagrees with its manifest."""


class Store:
    """Artifacts below `root`."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def prepare(self) -> None:
        """Make the folders. Raises StoreError when the store cannot be written."""
        try:
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            probe = self.root / ".locks" / f".probe-{socket.gethostname()}-{os.getpid()}"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise StoreError(f"run.store={self.root} cannot be written: {error.strerror}",
                             "choose another folder with run.store=DIR, or mend its permissions") from error

    def path(self, stage: str, key: str) -> Path:
        """Where an artifact lies, whether or not it is there."""
        return self.root / stage / key

    def unfinished(self, stage: str, key: str) -> Path:
        """Where its builder works."""
        return self.root / stage / f"{key}{PARTIAL}"

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact was finished; what is in it is not looked at."""
        return (self.path(stage, key) / MANIFEST).is_file()

    def find(self, stage: str, key: str) -> Artifact | None:
        """The artifact when it is there and whole, None when it is not there. Raises Corrupt."""
        path = self.path(stage, key)
        if not path.is_dir():
            return None
        problem = _problem(path)
        if problem is not None:
            raise Corrupt(f"artifact {path} is corrupt: {problem}",
                          "run the same command with run.repair=true to set it aside and build it again")
        return Artifact(stage, key, path)

    def related(self, stage: str, like: Mapping[str, Any]) -> list[Artifact]:
        """Finished, whole artifacts of a stage whose identity agrees with `like` wherever `like` says something, by key."""
        found = []
        for path in sorted((self.root / stage).glob("*/spec.json")):
            if path.parent.suffix == PARTIAL:
                continue
            try:
                identity = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if _agrees(identity, like) and _problem(path.parent) is None:
                found.append(Artifact(stage, path.parent.name, path.parent))
        return found

    def set_aside(self, stage: str, key: str) -> Path | None:
        """Move a corrupt artifact out of the way, keeping it; where it went. None where another process was faster: it is gone,
        or whole again."""
        path = self.path(stage, key)
        if _problem(path) is None:
            return None
        target = self.root / ".corrupt" / f"{stage}-{key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return None
        return target

    def tidy(self, artifact: Artifact) -> None:
        """Take away what a builder that died at the very end has left in a finished artifact."""
        shutil.rmtree(artifact.path / RESUME, ignore_errors=True)

    def remove(self, stage: str, key: str) -> None:
        """Take an artifact away, or what a builder left of one. One that somebody is building stays."""
        lock = self._named_lock(stage, key)
        if not lock.take():
            return
        try:
            shutil.rmtree(self.path(stage, key), ignore_errors=True)
            shutil.rmtree(self.unfinished(stage, key), ignore_errors=True)
        finally:
            lock.release()

    def note_command(self, key: str, command: str) -> None:
        """Keep the command that makes an artifact and what it is made from, for whoever builds it; an empty one is none."""
        if not command:
            return
        file = self.root / COMMANDS / f"{key}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(command + "\n", encoding="utf-8")

    def command(self, key: str) -> str | None:
        """The command noted for an artifact."""
        try:
            return (self.root / COMMANDS / f"{key}.txt").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def build(self, stage: str, key: str, identity: Mapping[str, Any], make: Callable[[Path], None],
              on_wait: Callable[[str], None] = lambda who: None, command: str | None = None) -> tuple[Artifact, bool]:
        """(artifact, built): the artifact from the store, or made by `make(folder)` and put there. command: what makes it, null
        = what was typed.

        While another process builds the same one this waits (calling `on_wait` once with its name) and then
        takes the hit. What `make` raises leaves no artifact behind.
        """
        found = self.find(stage, key)
        if found is not None:
            self.tidy(found)
            return found, False
        with self._lock(stage, key, on_wait):
            found = self.find(stage, key)  # somebody may have finished it while we waited
            if found is not None:
                self.tidy(found)
                return found, False
            final = self.path(stage, key)
            work = self.unfinished(stage, key)
            if work.exists() and not (work / RESUME).is_dir():
                shutil.rmtree(work)  # left by a builder that died: it held the lock, and we hold it now
            work.mkdir(parents=True, exist_ok=True)
            started = time.time()
            try:
                make(work)
            except OSError as error:
                if error.errno in FULL:
                    raise self._unwritable(stage, error) from error
                raise
            try:
                _write_json(work / "spec.json", dict(identity))
                _write_json(work / "provenance.json", provenance(started) | ({} if command is None else {"command": command}))
                _write_json(work / MANIFEST, _manifest(work))
                _sync(work)
                os.rename(work, final)
                _sync_folder(final.parent)
            except OSError as error:
                raise self._unwritable(stage, error) from error
            made = Artifact(stage, key, final)
            self.tidy(made)  # not before it has its name: what was paid for is in there until then
            return made, True

    def _unwritable(self, stage: str, error: OSError) -> StoreError:
        return StoreError(f"cannot write the {stage} artifact below run.store={self.root}: {error.strerror}",
                          "free some space or choose another folder with run.store=DIR, then run the same command")

    def _named_lock(self, stage: str, key: str) -> NamedLock:
        return NamedLock(self.root / ".locks" / f"{stage}-{key}.lock")

    @contextmanager
    def _lock(self, stage: str, key: str, on_wait: Callable[[str], None]) -> Iterator[None]:
        lock = self._named_lock(stage, key)
        try:
            lock.wait(on_wait)
        except OSError as error:
            if error.errno in FULL:
                raise self._unwritable(stage, error) from error
            raise
        try:
            yield
        finally:
            lock.release()


def _agrees(value: Any, like: Any) -> bool:
    if isinstance(like, Mapping):
        return isinstance(value, dict) and all(k in value and _agrees(value[k], v) for k, v in like.items())
    return bool(value == like)


def _manifest(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
            for p in _files(folder) if p.name != MANIFEST}


def _files(folder: Path) -> list[Path]:
    """The files of an artifact, which `RESUME` is no part of."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != RESUME)


def _problem(path: Path) -> str | None:
    """What is wrong with an artifact's folder; None when it agrees with its manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        entries = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, size, sha256 in entries:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if size <= CHECKED_IN_FULL and file_sha256(file) != sha256:
            return f"{name} has other contents than were written"
    return None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """Force data to disk before the rename, so that a power cut cannot leave a whole name on torn data."""
    for path in _files(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
