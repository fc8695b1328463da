"""Finished samples on disk, one checksummed line each, so that what was paid for survives whatever happens.

Floor 2: bytes and JSON. A process that is killed loses what was still being sampled and nothing else; the next one
reads the log and asks only for the rest. A line that a dying process or a full disk left incomplete is cut, one
that no longer agrees with its checksum is dropped; both are counted and never trusted. Knows no engine.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "finished.jsonl"
SYNC_S = 2.0
"""How often what was written is forced to the disk. A killed process loses none of it either way (the operating system
has it); a machine that loses power loses this much."""


class SampleLog:
    """An append-only log in `folder`, with one writer at a time (the store's lock sees to that).

    dropped: lines found incomplete or damaged when it was opened.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self.dropped = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = self._cut()
        self._synced = time.monotonic()

    def _cut(self) -> int:
        """Take an incomplete last line away; where the log ends then, bytes."""
        size = end = os.fstat(self._file).st_size
        while end > 0:  # backwards: a log may be larger than the memory
            begin = max(0, end - (1 << 20))
            found = os.pread(self._file, end - begin, begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._file, end)
            self.dropped += 1
        return end

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place, record) of every whole record, in the order written. Counts damaged lines in `dropped`."""
        for place, record in lines(self.path):
            if record is None:
                self.dropped += 1
            else:
                yield place, record

    def at(self, place: int) -> dict[str, Any]:
        """The record at a place that `read` or `append` gave."""
        line, size = b"", 1 << 12
        while not line.endswith(b"\n"):
            piece = os.pread(self._file, size, place + len(line))
            line += piece[:piece.index(b"\n") + 1] if b"\n" in piece else piece
            if not piece:
                break
        record = _parsed(line)
        if record is None:
            raise OSError(errno.EIO, f"{self.path} changed while it was in use")
        return record

    def append(self, record: dict[str, Any]) -> int:
        """Write one record; its place. Raises OSError where the disk is full; the log then ends with the last whole
        record."""
        body = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a disk that fills up takes a part first
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        place, self._end = self._end, self._end + len(line)
        if time.monotonic() - self._synced >= SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()
        return place

    def leave(self, folder: Path) -> None:
        """A copy in an artifact, for who takes up what a shard has made; until the artifact is whole, the log is what there
        is."""
        shutil.copyfile(self.path, folder / FILE)

    def close(self) -> None:
        """Force everything to the disk; a second call does nothing."""
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(place, record) of every line of a log that nobody writes; None for a damaged one."""
    place = 0
    with path.open("rb") as stream:
        for line in stream:
            yield place, _parsed(line)
            place += len(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it does not agree with its checksum."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
