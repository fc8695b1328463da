"""Text files that people give: lines in UTF-8, JSON in them.

Floor 0. A byte order mark, which Excel and Windows editors write, is passed over; anything else that is no UTF-8 or no JSON
stops with file and line. Knows no fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upft.errors import DataError

REMEDY = "mend or remove that line"


def lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a file; newline: as of `open`. Raises DataError where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as stream:
            for number, line in enumerate(stream, 1):
                if not encodable(line):  # a byte that is no UTF-8 has become a surrogate
                    raise DataError(f"{path} line {number} is not in UTF-8", "save the file as UTF-8")
                yield number, line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give the path of a file that can be read") from error


def parsed(where: str, text: str, remedy: str = REMEDY) -> Any:
    """A JSON value. Raises DataError that begins with `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the latter: nested by the thousand
        raise DataError(f"{where} is not JSON: {error}", remedy) from error


def encodable(text: str) -> bool:
    """Whether a text is Unicode: no half of a surrogate pair stands alone in it, as JSON escapes can spell it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
