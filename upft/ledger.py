"""What a stage cost: tokens, floating-point operations, seconds, memory.

Floor 3: counts and clocks only. The paper counts response tokens; the honest count adds the prompts, and
both can be read from here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from upft.shapes import Shape

FILE = "ledger.json"
SPENT = "spent.json"
SPENT_S = 2.0
"""How often what an attempt has taken is written. One that is killed loses this much of its time."""
TAKEN = ("seconds", "device_seconds", "peak_memory_bytes", "peak_device_bytes")
"""What a stage's clock reads; the rest of a ledger is counted."""


@dataclass
class Ledger:
    """Costs of one stage. Token counts are exact; flops follow the formula of `model_flops`."""

    prompt_tokens: int = 0
    """Prompt tokens read while sampling or answering (each request's prompt once)."""
    cached_tokens: int = 0
    """Of these, tokens that were not computed because another request with the same beginning had been."""
    sampled_tokens: int = 0
    """Tokens sampled."""
    reused_tokens: int = 0
    """Of these, tokens taken over from another sampling, which had paid for them."""
    discarded_tokens: int = 0
    """Sampled tokens that no training row uses: cut off, left out, or of traces that were not chosen."""
    scored_tokens: int = 0
    """Tokens (prompt + completion) read to find the log-probability of a completion, by a reference model or a verifier."""
    supervised_tokens: int = 0
    """Tokens trained on, over all epochs (the paper's "trained" counts each once)."""
    forward_tokens: int = 0
    """Real tokens (prompt + completion) that went through training's forward pass, over all epochs."""
    shared_tokens: int = 0
    """Of these, tokens that were computed once for several rows (a common system prompt), but for the first time."""
    padding_tokens: int = 0
    """Padding tokens that went through training's forward pass."""
    flops: float = 0.0
    """Floating-point operations, by formula."""
    seconds: float = 0.0
    """Wall-clock, of all attempts where a stage was interrupted, with what they lost."""
    device_seconds: float = 0.0
    """Wall-clock times GPUs held, each attempt with its own; 0 on a CPU."""
    peak_memory_bytes: int = 0
    """Largest resident memory of the process and its children."""
    peak_device_bytes: int = 0
    """Largest GPU memory on one GPU: allocated by PyTorch, or reserved by vLLM."""

    def write(self, folder: Path) -> None:
        """Write ledger.json into an artifact."""
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """Read ledger.json from an artifact."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))

    def plus(self, other: Ledger) -> Ledger:
        """Sums of counts and times, the larger of the peaks."""
        out = {}
        for f in dataclasses.fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            out[f.name] = max(a, b) if f.name.startswith("peak") else a + b
        return Ledger(**out)


class Sampling:
    """What a method would have sampled for itself, whatever sampling its traces were taken from.

    prompt_tokens: each request's prompt. flops: each question's prompt read once; None where the model's size is not known.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        self.prompt_tokens = self.sampled_tokens = 0
        self.flops: float | None = None if shape is None else 0.0
        self._shape = shape

    def add(self, prompt: int, completions: Sequence[int]) -> None:
        """A question: tokens of its prompt, and of each completion."""
        self.prompt_tokens += prompt * len(completions)
        self.sampled_tokens += sum(completions)
        if self._shape is not None and self.flops is not None:
            read = -(len(completions) - 1) * forward_flops(self._shape, prompt)
            self.flops += read + sum(forward_flops(self._shape, prompt + size) for size in completions)

    def told(self) -> dict[str, float | None]:
        """As JSON."""
        return {"prompt_tokens": self.prompt_tokens, "sampled_tokens": self.sampled_tokens, "flops": self.flops}


def forward_flops(shape: Shape, tokens: int) -> float:
    """Operations to read or write `tokens` tokens from the first on (`model_flops`)."""
    return model_flops(shape.parameters, shape.layers, shape.hidden, tokens, tokens / 2, backward=False)


def model_flops(parameters: int, layers: int, hidden: int, tokens: int, mean_context: float, backward: bool) -> float:
    """Operations to process `tokens` tokens that attend to `mean_context` positions on average.

    2 a parameter and token, plus 4 * layers * hidden * context for attention scores and values; training
    costs three times the forward pass (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; the attention term
    as in PaLM, arXiv:2204.02311, appendix B). `parameters` counts those that multiply (no input embedding).
    """
    forward = tokens * (2.0 * parameters + 4.0 * layers * hidden * mean_context)
    return 3.0 * forward if backward else forward


def training_flops(body: int, head: int, layers: int, hidden: int, tokens: int, pairs: int, supervised: int,
                   trained: int | None = None) -> float:
    """Operations of training on `tokens` tokens, of which `supervised` reach the head.

    body, head: parameters that multiply. pairs: of tokens that see each other. trained: parameters that are
    trained where not all are (adapters; body and head are then the others, which need no gradient of their
    own, so theirs is 4 instead of 6 a token).
    Formula and sources as in `model_flops`; padding and recomputed activations are not counted.
    """
    attention = 3.0 * 4.0 * layers * hidden * pairs
    if trained is None:
        return 6.0 * (body * tokens + head * supervised) + attention
    return 4.0 * (body * tokens + head * supervised) + 6.0 * trained * tokens + attention


class Meter:
    """Seconds and peak memory of a `with` block, and of the attempts at it that ended before their time.

    kept: folder that outlives an attempt; what attempts have taken by now is in its spent.json, written every SPENT_S seconds
    and at the end, whatever that is. Who waits for another process's attempt must not have entered yet. devices: GPUs held.
    Resident memory is that of this process and its children, looked at every `every_s` seconds; GPU memory is PyTorch's own
    peak in this process, on one GPU (a vLLM process is asked for its own, `EnginePool.peak_device_bytes`).
    """

    def __init__(self, kept: Path | None = None, devices: int = 0, every_s: float = 0.05) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self.peak_device_bytes = 0
        self._file = None if kept is None else kept / SPENT
        self._before = Ledger() if self._file is None else _spent(self._file)
        self._devices = devices
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = 0.0

    def __enter__(self) -> Meter:
        self._began = time.perf_counter()
        if cuda := _cuda():
            for gpu in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(gpu)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._read()
        self._keep()

    def _read(self) -> None:
        self.seconds = time.perf_counter() - self._began
        if cuda := _cuda():
            self.peak_device_bytes = max(int(cuda.max_memory_allocated(gpu)) for gpu in range(cuda.device_count()))

    def _watch(self) -> None:
        me = psutil.Process()
        children: list[psutil.Process] = []
        looked, kept = 0.0, time.monotonic()
        while True:
            now = time.monotonic()
            if now - looked > 1.0:  # listing children walks /proc, so less often than reading memory
                children, looked = me.children(recursive=True), now
            total = 0
            for process in (me, *children):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._file is not None and now - kept >= SPENT_S:
                self._read()
                self._keep()
                kept = now
            if self._stop.wait(self._every_s):
                return

    def _keep(self) -> None:
        """Write what all attempts have taken by now: whole or not at all, so that a kill leaves what was written before."""
        if self._file is None:
            return
        spent = self.spent()
        work = self._file.with_suffix(".partial")
        with suppress(OSError):  # on a full disk the work itself says so
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with work.open("w", encoding="utf-8") as stream:
                json.dump({name: getattr(spent, name) for name in TAKEN}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(work, self._file)

    def spent(self) -> Ledger:
        """What this attempt and those before it have taken."""
        return self._before.plus(Ledger(seconds=self.seconds, device_seconds=self.seconds * self._devices,
                                        peak_memory_bytes=self.peak_bytes, peak_device_bytes=self.peak_device_bytes))

    def fill(self, ledger: Ledger) -> None:
        """Put the readings into a ledger."""
        spent = self.spent()
        for name in TAKEN:
            setattr(ledger, name, getattr(spent, name))


def _spent(file: Path) -> Ledger:
    """What a file says that earlier attempts have taken; nothing where there is none, or it is no such file."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return Ledger(**{name: type(getattr(Ledger(), name))(value) for name, value in told.items()
                         if name in TAKEN})
    except (OSError, ValueError, TypeError, AttributeError):
        return Ledger()


def _cuda() -> Any:
    """`torch.cuda` where this process uses a GPU; None also where there is one that it does not use: to ask would take memory
    on it."""
    cuda = sys.modules.get("torch.cuda")
    used = getattr(cuda, "is_initialized", None)  # not there while another thread imports it
    return cuda if used is not None and used() else None
