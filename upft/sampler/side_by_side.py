"""Several engines of one model that share the requests of a call, each on devices of its own.

Floor 4. Which engine draws a request follows from its place in the call, never from who was free first, so that
the same call is cut in the same way every time. An engine that fails ends the call and stops the others.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from upft.errors import EngineError
from upft.sampler import Completion, Engine, Request, Sampling

BLOCK = 64
"""Requests in a row that go to one engine: traces of one question stay together and share its prompt."""
WAITING = 4096
"""Completions that may wait to be read; then the engines pause."""
KEPT = 4096
"""Requests of one engine that may wait for it to ask for them; then those that are ahead of it wait."""


class SideBySide:
    """See `upft.sampler.Engine`."""

    def __init__(self, engines: Sequence[Engine], block: int = BLOCK, most: int = KEPT) -> None:
        self._engines, self._block, self._most = list(engines), block, most
        self.name, self.per_request_seed = engines[0].name, all(e.per_request_seed for e in engines)
        self.context = min(e.context for e in engines)

    @classmethod
    def of(cls, openers: Sequence[Callable[[], Engine]]) -> Engine:
        """Open all at once; one alone is returned as it is. What one of them raises is raised, the others closed."""
        if len(openers) == 1:
            return openers[0]()
        with ThreadPoolExecutor(len(openers)) as pool:
            opening = [pool.submit(opener) for opener in openers]
        failed = [f.exception() for f in opening if f.exception() is not None]
        if failed:
            for future in opening:
                if future.exception() is None:
                    future.result().close()
            assert failed[0] is not None
            raise failed[0]
        return cls([future.result() for future in opening])

    @property
    def alive(self) -> bool:
        """Whether all of them can be used."""
        return all(engine.alive for engine in self._engines)

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `upft.sampler.Engine`. One call at a time."""
        if not self.alive:
            raise EngineError("one of the engines is closed or dead", "open them again")
        dealer = _Dealer(iter(requests), len(self._engines), self._block, self._most)
        return self._merged([engine.generate(dealer.hand(i), sampling) for i, engine in enumerate(self._engines)], dealer)

    def _merged(self, streams: list[Iterator[Completion]], dealer: _Dealer) -> Iterator[Completion]:
        ready: queue.Queue[Completion | BaseException | None] = queue.Queue(WAITING)
        given_up = threading.Event()

        def put(thing: Completion | BaseException | None) -> bool:
            while not given_up.is_set():
                try:
                    ready.put(thing, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work(stream: Iterator[Completion]) -> None:
            try:
                for completion in stream:
                    if not put(completion):
                        return
            except BaseException as error:  # whatever it is, it belongs to the reader
                put(error)
            else:
                put(None)
            finally:
                if hasattr(stream, "close"):
                    stream.close()

        threads = [threading.Thread(target=work, args=(stream,), name="upft-engine", daemon=True) for stream in streams]
        for thread in threads:
            thread.start()
        running = len(threads)
        try:
            while running:
                thing = ready.get()
                if thing is None:
                    running -= 1
                elif isinstance(thing, BaseException):
                    raise thing
                else:
                    yield thing
        finally:
            given_up.set()
            dealer.stop()
            for thread in threads:
                thread.join()

    def peak_device_bytes(self) -> int:
        """See `upft.sampler.Engine`."""
        return max(engine.peak_device_bytes() for engine in self._engines)

    def close(self) -> None:
        """Close all of them."""
        for engine in self._engines:
            engine.close()


class _GivenUp(Exception):
    """The call has ended: nobody waits for what is still to be drawn."""


class _Dealer:
    """Blocks of a stream of requests in turn. What is another's is kept for it, `most` at a time: an engine that is ahead by
    more waits for the one behind, which the call waits for in any case. No clock decides who gets what."""

    def __init__(self, requests: Iterator[Request], hands: int, block: int, most: int) -> None:
        self._requests, self._hands, self._block, self._most = requests, hands, block, most
        self._kept: list[deque[Request]] = [deque() for _ in range(hands)]
        self._read, self._over = 0, False
        self._moved = threading.Condition()

    def hand(self, mine: int) -> Iterator[Request]:
        """The requests of one engine, in order. Raises _GivenUp after `stop`."""
        own = self._kept[mine]
        while True:
            with self._moved:
                while not own and not self._over:
                    whose = self._read // self._block % self._hands
                    if len(self._kept[whose]) >= self._most:  # never one's own: those are none
                        self._moved.wait()
                        continue
                    request = next(self._requests, None)
                    if request is None:
                        return
                    self._kept[whose].append(request)
                    self._read += 1
                    if whose != mine and len(self._kept[whose]) == 1:
                        self._moved.notify_all()  # its owner may be waiting for a third
                if self._over:
                    raise _GivenUp
                request = own.popleft()
                if len(own) == self._most // 2:  # not at each: who waits would wake as often as requests are taken
                    self._moved.notify_all()
            yield request

    def stop(self) -> None:
        """End the wait of who waits."""
        with self._moved:
            self._over = True
            self._moved.notify_all()
