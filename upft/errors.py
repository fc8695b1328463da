"""Named errors that carry their remedy.

Floor 0: knows nothing but Python. Every error a person can cause or mend is an `UpftError`; anything else
that reaches the door is a defect and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import Enum
from typing import ClassVar


class UpftError(Exception):
    """What went wrong, and what to do about it.

    what: names the key and the value at fault. remedy: the next thing to type or change. status: what a command that ends
    with it exits with: 2 where the same command would end so again, 1 where something broke down that had begun.
    """

    status: ClassVar[int] = 1

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}\n  remedy: {self.remedy}"

    def __reduce__(self) -> tuple[type[UpftError], tuple[str, str]]:
        return type(self), (self.what, self.remedy)  # crosses process borders whole


class ConfigError(UpftError):
    """A key or value of the configuration is wrong."""

    status = 2


class DataError(UpftError):
    """A file of questions cannot be used."""

    status = 2


class ModelError(UpftError):
    """A model folder or hub id cannot be used."""

    status = 2


class StoreError(UpftError):
    """The artifact store cannot be read or written."""


class EngineError(UpftError):
    """A sampling engine could not start, or died."""


class GradeError(UpftError):
    """Answers cannot be graded."""

    status = 2


class TrainError(UpftError):
    """Training cannot go on."""


class Stopped(UpftError):
    """A training was told to stop, has written a checkpoint and goes on from it when it is started again."""


class SlurmError(UpftError):
    """SLURM refuses, or does not answer."""


class SweepError(UpftError):
    """Cells of a sweep have failed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a command ends what it has started, as at Ctrl+C, before it ends."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`did you mean 'x'?` for the known names closest to `name`; every known name where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(n) for n in close) + "?"
    return "known: " + ", ".join(names)


def demand(holds: bool, key: str, value: object, remedy: str) -> None:
    """Raise a ConfigError that names key, value and remedy unless the rule holds."""
    if not holds:
        raise ConfigError(f"{key}={_shown(value)} is out of range", remedy)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return value.name if isinstance(value, Enum) else str(value)
