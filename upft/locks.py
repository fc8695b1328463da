"""A lock that says who holds it: what one process at a time may do, on one machine or on many.

Floor 1, under the store. The operating system frees the lock of a process that dies. Where it does not (a file server whose
client is gone), a holder that was a SLURM job is taken over when SLURM says that the job is over. Knows nothing of what is
done under a lock.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from upft import slurm

LOOK_AFTER_S = 15.0
"""How often one that waits for a lock looks whether its holder still lives."""
POLL_S = 0.25
"""How often it tries."""
GUARD_S = 15.0
"""How long a guard is waited for, which is held for some milliseconds: by then its holder is gone, and so is any takeover."""


class NamedLock:
    """The lock on `file`. Beside it lie its holder's name (while it is held) and a guard.

    The lock and the name change together under the guard: who holds the guard never sees a lock that is held while the name is
    still that of the one before, which may be dead.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._holder = file, file.with_suffix(".holder")
        self._lock, self._guard = FileLock(file), FileLock(file.with_suffix(".takeover"))
        job = slurm.own_job()
        self._name = f"process {os.getpid()} on {socket.gethostname()}" + (f", job {job}" if job else "")

    def take(self) -> bool:
        """Whether the lock is now ours; does not wait for its holder."""
        with self._guarded():
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                return False
            try:
                self._holder.unlink(missing_ok=True)
                try:
                    self._holder.write_text(self._name, encoding="utf-8")
                except OSError:  # a full disk: a holder without a name, whom nobody takes over from
                    self._holder.unlink(missing_ok=True)
            except BaseException:
                self._lock.release()
                raise
        return True

    def wait(self, on_wait: Callable[[str], None] = lambda who: None) -> None:
        """Take the lock, when it is free; `on_wait` is called once with its holder's name where it is not."""
        if self.take():
            return
        on_wait(self._named() or "another process")
        look = time.monotonic() + LOOK_AFTER_S
        while not self.take():
            if time.monotonic() >= look:
                self._bury()
                look = time.monotonic() + LOOK_AFTER_S
            time.sleep(POLL_S)

    def release(self) -> None:
        """Give it back. The name goes first: left behind, it would be taken for the next holder's, until that has written its
        own."""
        if self._named() == self._name:  # else somebody has taken over
            self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _bury(self) -> None:
        """Free the lock of a job that is over: its lock goes with the file it is on."""
        holder = self._named()
        if not _dead(holder):  # may take SLURM long: not under the guard
            return
        with self._guarded() as alone:
            if alone and self._named() == holder:
                self._file.unlink(missing_ok=True)
                self._holder.unlink(missing_ok=True)

    @contextmanager
    def _guarded(self) -> Iterator[bool]:
        """Whether the guard is ours. Where it is not, somebody died with it (see above), so that nobody can take over any more,
        and locks are as good without it."""
        try:
            self._guard.acquire(timeout=GUARD_S)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self._guard.release()

    def _named(self) -> str:
        try:
            return self._holder.read_text(encoding="utf-8").strip()
        except OSError:
            return ""


def _dead(holder: str) -> bool:
    found = re.search(r", job (\d+\.\d+)$", holder)
    return found is not None and slurm.ended(found[1])
