"""What things are known by: canonical JSON of typed values, SHA-256 of files.

Floor 1. Knows no folder layout.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any


def canonical(value: Any) -> Any:
    """A typed value as plain JSON types: dataclasses by field (unless its metadata says hashed=False), enums
    by name, tuples as lists. Raises TypeError for anything whose meaning is not plain."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (f for f in dataclasses.fields(value) if f.metadata.get("hashed", True))
        return {"type": type(value).__name__, **{f.name: canonical(getattr(value, f.name)) for f in fields}}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of plain values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SETTLED_NS = 2 * 10**9
"""A file younger than this may change again without its time telling: the clocks of file systems tick as slowly as that."""


class Hasher:
    """Content hashes of input files, each read once while its size and time stay as they are."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def file(self, path: Path) -> str:
        """SHA-256 of one file."""
        seen, now = _seen(path), time.time_ns()
        if seen in self._known:
            return self._known[seen]
        found = file_sha256(path)
        if abs(now - seen[2]) > SETTLED_NS and _seen(path) == seen:
            self._known[seen] = found
        return found

    def files(self, paths: Iterable[Path]) -> str:
        """One SHA-256 over several files: names (only where there are several) and contents."""
        ordered = sorted(paths)
        if len(ordered) == 1:
            return self.file(ordered[0])
        return digest([[p.name, self.file(p)] for p in ordered])


SHARED = Hasher()
"""This process's own: what was hashed to plan is not read again to see whether it is still the same."""


def _seen(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns
