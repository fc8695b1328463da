"""The warden: a process that forks workers, feeds them answers, and ends those that overstay.

    python -m upft.graders.warden FD WORKERS LIMIT_S

Speaks JSON lines over the socket FD: [ticket, answer, gold, kind] in, [ticket, right, reason] out. Imports
math-verify once and forks, so that a worker costs milliseconds; has one thread, so that forking is safe. Never
computes anything itself, so that it always listens: when the other end is gone, it kills its workers and ends.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from upft.choices import AnswerKind
from upft.grading.compare import compare

AHEAD = 8
"""Most answers that lie with one worker: they fit into its socket, so that the warden never waits."""
RETIRES = 2000
"""Answers after which a worker is replaced: sympy's caches grow."""
MEMORY_BYTES = 2 << 30
"""Address space a worker may add to what it was born with."""
PATIENCE = 10.0
"""Limits of processor time that may pass by the clock before a worker that does not work is killed, too."""

Item = list[Any]


class Worker:
    """One forked process. items: what lies with it, the one in work first."""

    def __init__(self, limit_s: float, others: list[socket.socket]) -> None:
        self.socket, theirs = socket.socketpair()
        self.items: deque[Item] = deque()
        self.served = 0
        self.since = time.monotonic()
        self.received = bytearray()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for other in [*others, self.socket]:
                    other.close()
                _work(theirs, limit_s)
            finally:
                os._exit(0)
        theirs.close()
        self.socket.setblocking(False)

    def give(self, items: list[Item]) -> None:
        """Lay answers before it. Raises OSError when it is gone."""
        if not self.items:
            self.since = time.monotonic()
        self.items.extend(items)
        self.served += len(items)
        data = b"".join(json.dumps(item).encode() + b"\n" for item in items)
        self.socket.settimeout(10.0)
        self.socket.sendall(data)
        self.socket.setblocking(False)

    def bury(self) -> int:
        """Kill it if it lives; its wait status."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        self.socket.close()
        return status


class Warden:
    """The loop; `workers` processes, `limit_s` processor seconds an answer."""

    def __init__(self, up: socket.socket, workers: int, limit_s: float) -> None:
        self.up, self.count, self.limit_s = up, workers, limit_s
        self.waiting: deque[Item] = deque()
        self.workers: list[Worker] = []
        self.incoming, self.outgoing = bytearray(), bytearray()
        self.selector = selectors.DefaultSelector()
        up.setblocking(False)
        self.selector.register(up, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the other end is gone."""
        while True:
            self.selector.modify(self.up, selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outgoing else 0))
            for key, _ in self.selector.select(0.5 if any(w.items for w in self.workers) else None):
                if key.data is None:
                    if not self._listen():
                        return
                else:
                    self._collect(key.data)
            self._watch()
            self._share()
            self._answer()

    def end(self) -> None:
        """Take all workers along."""
        for worker in self.workers:
            worker.bury()

    def _listen(self) -> bool:
        try:
            while piece := self.up.recv(1 << 18):
                self.incoming += piece
            return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        *lines, rest = self.incoming.split(b"\n")
        self.incoming = bytearray(rest)
        self.waiting.extend(json.loads(line) for line in lines)
        return True

    def _collect(self, worker: Worker) -> None:
        """Pass on what a worker has finished; replace it when it is dead."""
        gone = False
        try:
            while True:
                piece = worker.socket.recv(1 << 16)
                if not piece:
                    gone = True
                    break
                worker.received += piece
        except BlockingIOError:
            pass
        except OSError:
            gone = True
        *lines, rest = worker.received.split(b"\n")
        worker.received = bytearray(rest)
        for line in lines:
            worker.items.popleft()
            self.outgoing += line + b"\n"
            worker.since = time.monotonic()
        if gone:
            self._replace(worker)

    def _replace(self, worker: Worker, reason: str | None = None) -> None:
        """A dead or overdue worker takes the answer in work with it; the others go back to the queue."""
        self.selector.unregister(worker.socket)
        self.workers.remove(worker)
        status = worker.bury()
        if worker.items:
            if reason is None:
                timed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
                reason = "time limit" if timed else "grader died"
            self._verdict(worker.items.popleft()[0], reason)
            self.waiting.extendleft(reversed(worker.items))

    def _verdict(self, ticket: int, reason: str) -> None:
        self.outgoing += json.dumps([ticket, False, reason]).encode() + b"\n"

    def _watch(self) -> None:
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.items and now - worker.since > PATIENCE * self.limit_s:
                self._replace(worker, "time limit")
            elif not worker.items and worker.served >= RETIRES:
                self._replace(worker)

    def _share(self) -> None:
        while self.waiting:
            free = [w for w in self.workers if w.served < RETIRES]
            lazy = min(free, key=lambda w: len(w.items), default=None)
            if (lazy is None or lazy.items) and len(self.workers) < self.count:
                lazy = Worker(self.limit_s, [self.up, *(w.socket for w in self.workers)])
                self.workers.append(lazy)
                self.selector.register(lazy.socket, selectors.EVENT_READ, lazy)
            fair = max(1, min(AHEAD, len(self.waiting) // (2 * self.count)))
            if lazy is None or len(lazy.items) >= max(1, fair // 2):
                return
            room = min(fair - len(lazy.items), len(self.waiting))
            try:
                lazy.give([self.waiting.popleft() for _ in range(room)])
            except OSError:
                self._replace(lazy)

    def _answer(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.outgoing:
                sent = self.up.send(self.outgoing[:1 << 18])
                del self.outgoing[:sent]


def _work(up: socket.socket, limit_s: float) -> None:
    """A worker's life: read all that lies there, grade, answer. The kernel ends it when an answer takes more than
    `limit_s` seconds of processor time, in Python or in C: SIGPROF keeps its default action."""
    _die_with_parent()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # OSError: no /proc, no limit
        born = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (born + MEMORY_BYTES, born + MEMORY_BYTES))
    stream = up.makefile("rb", buffering=1 << 18)
    for line in stream:
        ticket, answer, gold, kind = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit_s)
        right, reason = compare(answer, gold, AnswerKind[kind], limits=False)
        signal.setitimer(signal.ITIMER_PROF, 0)
        up.sendall(json.dumps([ticket, right, reason]).encode() + b"\n")


def _die_with_parent() -> None:
    """Linux: be killed when the warden is, even inside a call into C."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(arguments: list[str]) -> None:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    up = socket.socket(fileno=int(arguments[0]))
    compare("x+1", "1+x")  # imports math-verify and sympy, and builds the parser, before any fork
    gc.collect()
    gc.freeze()
    warden = Warden(up, int(arguments[1]), float(arguments[2]))
    try:
        warden.run()
    finally:
        warden.end()


if __name__ == "__main__":
    main(sys.argv[1:])
