"""Graders: answers graded in processes of their own, each within a time limit that nothing outlives.

Floor 3: knows grading and processes; no model, no file. A warden (`upft.graders.warden`), one process, holds the
workers, kills one that takes too long or too much memory, and puts another in its place. Here, in the caller's
process, the answer is found, and compared where reading tells (`grading.settle`); what needs algebra goes to the
warden, without the completion, so that what waits is short.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from upft import grading
from upft.choices import AnswerKind
from upft.errors import GradeError
from upft.grading import Verdict

LIMIT_S = 5.0
"""Processor seconds an answer may take. Counted by the kernel in the worker, so that a busy machine fails nobody."""
AT_ONCE = 1 << 18
"""Bytes read from the warden in one go."""
DEATHS = 3
"""Wardens that may die one after the other without having graded anything."""


class Graders:
    """A pool of grading processes; a context manager.

    workers: None = one for each core this process may use. limit_s: processor seconds for one answer; over it the
    answer is wrong with the reason "time limit" (and after ten times as long by the clock, whatever it waits for).
    The processes start with the first answer that needs them. Used by one thread.
    """

    def __init__(self, workers: int | None = None, limit_s: float = LIMIT_S) -> None:
        self._workers = workers if workers is not None else cores()
        self._limit_s = limit_s
        self._finished: deque[tuple[int, Verdict]] = deque()
        self._asked: dict[int, tuple[int, str, str, AnswerKind]] = {}  # by a ticket of our own: number, answer, gold, kind
        self._ticket = 0
        self._deaths = 0
        self._warden: _Warden | None = None

    def __enter__(self) -> Graders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def put(self, number: int, completion: str, gold: str, kind: AnswerKind = AnswerKind.math) -> None:
        """Have one completion graded; `number` comes back with the verdict. Does not wait for it. Raises GradeError as `rest`
        does."""
        answer = grading.extract(completion, kind)
        if answer is None:
            self._finished.append((number, Verdict(False, None, grading.NO_ANSWER)))
            return
        try:
            certain = grading.settle(answer, gold, kind)
        except Exception as error:  # a completion may hold anything
            certain = False, f"unreadable ({type(error).__name__})"
        if certain is not None:
            self._finished.append((number, Verdict(certain[0], answer, certain[1])))
            return
        self._ticket += 1
        self._asked[self._ticket] = (number, answer, gold, kind)
        if self._warden is None:
            self._start()
        else:
            self._warden.ask(self._ticket, answer, gold, kind)
            self._exchange(0.0)

    def ready(self) -> Iterator[tuple[int, Verdict]]:
        """(number, verdict) of what is finished by now, each once; never waits."""
        if self._asked:
            self._exchange(0.0)
        while self._finished:
            yield self._finished.popleft()

    def rest(self) -> Iterator[tuple[int, Verdict]]:
        """(number, verdict) of all that was put and not given yet; waits for it. Raises GradeError where the
        processes cannot be kept alive."""
        while self._finished or self._asked:
            while self._finished:
                yield self._finished.popleft()
            if self._asked:
                self._exchange(1.0)

    def close(self) -> None:
        """End the processes; what is not graded yet is forgotten."""
        if self._warden is not None:
            self._warden.end()
            self._warden = None
        self._asked.clear()

    def _start(self) -> None:
        self._warden = _Warden(self._workers, self._limit_s)
        for ticket, (_, answer, gold, kind) in self._asked.items():
            self._warden.ask(ticket, answer, gold, kind)
        self._exchange(0.0)

    def _exchange(self, wait_s: float) -> None:
        """Send and receive what can be now; of a warden that died the next one takes over."""
        assert self._warden is not None
        try:
            for ticket, right, reason in self._warden.exchange(wait_s):
                asked = self._asked.pop(ticket, None)
                if asked is not None:
                    self._finished.append((asked[0], Verdict(right, asked[1], reason)))
                    self._deaths = 0
        except ConnectionError as error:
            self._warden.end()
            self._deaths += 1
            if self._deaths > DEATHS:
                self._warden = None
                raise GradeError(f"the grading processes died {self._deaths} times in a row ({error})",
                                 "look for what kills processes here (memory?), free some, and run it again") from error
            self._start()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Warden:
    """Our end of the warden's process."""

    def __init__(self, workers: int, limit_s: float) -> None:
        ours, theirs = socket.socketpair()
        home = str(Path(__file__).parents[2])
        path = os.environ.get("PYTHONPATH")
        environment = {**os.environ, "PYTHONPATH": home + os.pathsep + path if path else home,
                       "PYTHONHASHSEED": "0",  # sympy orders by hashes: the same answer gets the same verdict
                       "OMP_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "upft.graders.warden", str(theirs.fileno()), str(workers), str(limit_s)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment,
                start_new_session=True)  # Ctrl-C at the terminal is for the caller, who then closes us
        ours.setblocking(False)
        self._socket = ours
        self._out, self._in = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ)
        self._end = weakref.finalize(self, _end, os.getpid(), self._process, ours)

    def ask(self, ticket: int, answer: str, gold: str, kind: AnswerKind) -> None:
        """Lay one answer into the post."""
        self._out += json.dumps([ticket, answer, gold, kind.name]).encode() + b"\n"

    def exchange(self, wait_s: float) -> list[tuple[int, bool, str]]:
        """Send what the socket takes, give what it holds; waits up to `wait_s` for something to come. Raises
        ConnectionError when the warden is gone."""
        self._send()
        if wait_s > 0:
            self._selector.modify(self._socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0))
            self._selector.select(wait_s)
            self._send()
        while True:
            try:
                piece = self._socket.recv(AT_ONCE)
            except BlockingIOError:
                break
            if not piece:
                raise ConnectionError(f"status {self._process.poll()}")
            self._in += piece
        *lines, rest = self._in.split(b"\n")
        self._in = bytearray(rest)
        return [tuple(json.loads(line)) for line in lines]

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._out:
                sent = self._socket.send(self._out[:AT_ONCE])
                del self._out[:sent]

    def end(self) -> None:
        """Kill it with its workers."""
        self._selector.close()
        self._end()


def _end(owner: int, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
    """Kill the warden and its workers. Also runs when the pool is forgotten or Python ends."""
    ours.close()
    if os.getpid() != owner:  # a forked child forgot its copy
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
