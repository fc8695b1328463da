"""Finished samples on disk, one checksummed line each, so that what was paid for survives whatever happens.

Floor 2: bytes and JSON. A process that is killed loses what was still being sampled and nothing else; the next one
reads the log and asks only for the rest. A line that a dying process or a full disk left incomplete is cut, one
that no longer agrees with its checksum is dropped; both are counted and never trusted. Knows no engine.
"""

from __future__ import annotations

import json
import os
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
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
            self.dropped += 1
        return end

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole record, in the order written. Counts damaged lines in `dropped`."""
        with self.path.open("rb") as stream:
            for line in stream:
                record = _parsed(line)
                if record is None:
                    self.dropped += 1
                else:
                    yield record

    def append(self, record: dict[str, Any]) -> None:
        """Write one record. Raises OSError where the disk is full; the log then ends with the last whole record."""
        body = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            written = os.write(self._file, line)
            while written < len(line):  # a disk that fills up takes a part first
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)
        if time.monotonic() - self._synced >= SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

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
