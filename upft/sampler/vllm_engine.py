"""The vLLM engine, seen from this side: starts its process, speaks with it, notices when it dies.

Floor 4. vLLM runs in `vllm_worker`, so that it gives memory back when closed and can die without taking this
process along; vLLM is never imported here. Knows how the process ends, not how tokens are drawn.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from upft import adapters
from upft import config as c
from upft.errors import EngineError, ModelError
from upft.sampler import Completion, Request, Sampling, fitted, label
from upft.sampler.wire import Closed, Wire
from upft.specs import HubRef

_BLOCK = 256
"""Requests a message."""
_AHEAD = 3
"""Messages of requests that the process may hold untouched, so that it never waits for this one."""
_CLOSE_S = 10.0
"""How long a worker may take to close before it is killed."""
_TAIL_LINES = 12
_ROOT = Path(__file__).resolve().parents[2]


class VllmEngine:
    """A model in a vLLM process. See `upft.sampler.Engine`."""

    name = "vllm"
    per_request_seed = True

    def __init__(self, model: Path | HubRef, dtype: c.Dtype, compute: c.ComputeConfig,
                 trust_remote_code: bool = False, adapter: Path | None = None, share: Mapping[str, str] | None = None) -> None:
        """Start the process, load the model and the adapter beside it; about 12 s on a CPU for a small model
        (30 s with an adapter), more with compilation. share: environment that shows it its part of the machine.

        Raises ModelError for a model that vLLM cannot take, EngineError where the process cannot start.
        """
        rank = None if adapter is None else adapters.rank(adapter)
        self._label, self._compute = label(model, adapter), compute
        self._on_cpu: bool | None = None
        self._run = 0
        self._busy = False
        self._folder = Path(tempfile.mkdtemp(prefix="upft-vllm-"))
        self._log = self._folder / "worker.log"
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "upft.sampler.vllm_worker", str(theirs.fileno()), str(os.getpid()),
                 str(self._folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
                env=_environment(compute) | dict(share or {}), start_new_session=True)
        self._wire = Wire(ours)
        self._end = weakref.finalize(self, _end, os.getpid(), self._process, self._wire, self._folder)
        where = str(model.resolve()) if isinstance(model, Path) else model.id
        revision = None if isinstance(model, Path) else model.revision
        try:
            self._send({
                "op": "open", "model": where, "revision": revision, "dtype": dtype.name,
                "trust_remote_code": trust_remote_code, "accelerator": compute.accelerator.name,
                "tensor_parallel": compute.tensor_parallel, "enforce_eager": compute.enforce_eager,
                "gpu_memory_utilization": compute.gpu_memory_utilization,
                "adapter": None if adapter is None else str(adapter.resolve()), "rank": rank})
            ready = self._receive()["ready"]
        except BaseException:
            self.close()
            raise
        self._on_cpu = ready["cpu"]
        self.context: int = ready["context"]
        self._fits: int = ready["fits"]

    @property
    def alive(self) -> bool:
        """False once closed or dead."""
        return self._end.alive and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """Id of the vLLM process, which is also that of its process group."""
        return self._process.pid

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `upft.sampler.Engine`. One call at a time: read the iterator to its end or close it."""
        if not self._end.alive:
            raise EngineError(f"the engine of {self._label} is closed", "open another one")
        if self._busy:
            raise EngineError(f"the engine of {self._label} is sampling already",
                              "read the completions of the call before to their end first")
        ready = map(self._held, fitted(requests, self.context, self._label))
        return self._stream(iter(list(ready)) if isinstance(requests, Sequence) else ready, sampling)

    def _held(self, request: Request) -> Request:
        """The request, if vLLM's cache can hold it."""
        needed = len(request.prompt_ids) + request.max_tokens
        if needed > self._fits:
            raise EngineError(f"request {request.id} may grow to {needed} tokens, and vLLM's key-value"
                              f" cache holds sequences of {self._fits}",
                              self._more_cache() + ", or lower max_tokens")
        return request

    def _stream(self, requests: Iterator[Request], sampling: Sampling) -> Iterator[Completion]:
        """The process takes a block of requests when it has room for it and says so, and gets the next one then. When
        that is depends on what it has sampled and on no clock, so the same call is cut alike each time."""
        self._run += 1
        run, sent, credit, more = self._run, 0, _AHEAD, True
        names: dict[int, str] = {}
        self._busy = True
        try:
            self._send({"op": "generate", "run": run, "temperature": sampling.temperature, "top_p": sampling.top_p,
                        "top_k": sampling.top_k, "seed": sampling.seed, "stop_ids": sorted(sampling.stop_ids),
                        "logprobs": sampling.logprobs})
            while more or names:
                while more and credit:
                    block = list(islice(requests, _BLOCK))
                    more, credit = len(block) == _BLOCK, credit - 1
                    names.update((sent + i, r.id) for i, r in enumerate(block))
                    self._send({"op": "requests", "run": run, "first": sent, "last": not more,
                                "requests": [(r.prompt_ids, r.max_tokens, r.seed) for r in block]})
                    sent += len(block)
                if not names:
                    continue
                message = self._receive()
                if message.get("run") != run:  # of a call that was given up
                    continue
                credit += message["took"]
                for number, ids, reason, cached, scores in message["done"]:
                    yield Completion(names.pop(number), tuple(ids), reason, None if scores is None else tuple(scores), cached)
        finally:
            self._busy = False
            if (more or names) and self._end.alive:
                with suppress(Closed):
                    self._wire.send({"op": "cancel", "run": run})

    def peak_device_bytes(self) -> int:
        """See `upft.sampler.Engine`. vLLM takes compute.gpu_memory_utilization of a GPU whatever it needs."""
        if self._busy or not self.alive:
            return 0
        with suppress(EngineError):  # it has died since: what it has drawn counts all the same
            self._send({"op": "peak"})
            while True:
                message = self._receive()
                if "peak" in message:  # others are of a call that was given up
                    return int(message["peak"])
        return 0

    def close(self) -> None:
        """End the process and everything it started; asks first, then kills."""
        if self._end.alive and self._process.poll() is None:
            with suppress(Closed, subprocess.TimeoutExpired):
                self._wire.send({"op": "close"})
                self._process.wait(_CLOSE_S)
        self._end()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._wire.send(message)
        except Closed:
            raise self._died(None) from None

    def _receive(self) -> dict[str, Any]:
        """The next answer. Raises EngineError (or ModelError) when the process refuses, fails or is gone."""
        while True:
            try:
                message = self._wire.receive(1.0)
            except Closed:
                raise self._died(None) from None
            if message is None:
                # Its own children may hold the line open after it died.
                if self._process.poll() is not None:
                    raise self._died(None)
                continue
            if "refused" in message:
                refused = message["refused"]
                self._end()
                kind = ModelError if refused["kind"] == "model" else EngineError
                raise kind(refused["what"], refused["remedy"])
            if "failed" in message:
                raise self._died(message["failed"])
            return message

    def _died(self, failure: str | None) -> EngineError:
        """The error for a process that failed or is gone; ends what is left of it."""
        try:
            code: int | None = self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            code = None
        try:
            lines = self._log.read_text(errors="replace", encoding="utf-8").splitlines()
        except OSError:
            lines = []
        self._end()
        when = "while loading" if self._on_cpu is None else "while sampling with"
        if failure is not None:
            what = f"vLLM failed {when} {self._label}: {failure}"
        elif code == -signal.SIGKILL:
            what = (f"the vLLM process died {when} {self._label}: it was killed (signal 9), most likely by"
                    " the operating system for want of memory")
        elif code is not None and code < 0:
            what = f"the vLLM process died {when} {self._label}: it crashed with {signal.Signals(-code).name}"
        else:
            what = f"the vLLM process died {when} {self._label}: it ended with status {code}"
        if lines:
            what += "\n  its last lines:\n" + "\n".join(f"    {line[:300]}" for line in lines[-_TAIL_LINES:])
        other = "or use the other engine (sample.engine, eval.engine)"
        return EngineError(what, self._remedy(failure) + other)

    def _remedy(self, failure: str | None) -> str:
        """What to change after a death without words (None) or vLLM's own words."""
        if failure is None:
            return self._less_memory() + ", "
        if "for the cache blocks" in failure or "auto-fit" in failure:  # its own share leaves no cache
            return self._more_cache() + ", "
        return self._less_memory() + ", " if "memory" in failure.lower() else "see vLLM's own words above, "

    def _less_memory(self) -> str:
        on_cpu = (f"lower compute.cpu_kv_cache_gib (now {self._compute.cpu_kv_cache_gib}) or free memory on"
                  " this machine")
        on_gpu = (f"lower compute.gpu_memory_utilization (now {self._compute.gpu_memory_utilization:g}), free"
                  f" the GPU or raise compute.devices (now {self._compute.devices})")
        if self._on_cpu is None:
            return f"on a CPU {on_cpu}; on a GPU {on_gpu}"
        return on_cpu if self._on_cpu else on_gpu

    def _more_cache(self) -> str:
        if self._on_cpu:
            return f"raise compute.cpu_kv_cache_gib (now {self._compute.cpu_kv_cache_gib})"
        return (f"raise compute.gpu_memory_utilization (now {self._compute.gpu_memory_utilization:g}) or"
                f" compute.devices (now {self._compute.devices})")


def _environment(compute: c.ComputeConfig) -> dict[str, str]:
    ours = str(_ROOT)
    path = os.environ.get("PYTHONPATH")
    env = os.environ | {
        "PYTHONPATH": ours if not path else ours + os.pathsep + path,
        # The core in the worker itself: one process to start, watch and end.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(compute.cpu_kv_cache_gib),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if compute.threads is not None:
        env["OMP_NUM_THREADS"] = str(compute.threads)
    return env


def _end(owner: int, process: subprocess.Popen[bytes], wire: Wire, folder: Path) -> None:
    """Kill what is left of the worker's group. Also runs when the engine is forgotten or Python ends."""
    wire.close()
    if os.getpid() != owner:  # a forked child forgot its copy
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
