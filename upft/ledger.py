"""What a stage cost: tokens, floating-point operations, seconds, memory.

Floor 3: counts and clocks only. The paper counts response tokens; the honest count adds the prompts, and
both can be read from here.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

from upft.shapes import Shape

FILE = "ledger.json"


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
    """Wall-clock."""
    device_seconds: float = 0.0
    """Wall-clock times GPUs held; 0 on a CPU."""
    peak_memory_bytes: int = 0
    """Largest resident memory of the process and its children."""
    peak_device_bytes: int = 0
    """Largest GPU memory allocated."""

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
    """Seconds and peak memory of a `with` block.

    Resident memory is that of this process and its children, looked at every `every_s` seconds; GPU memory
    is PyTorch's own peak where PyTorch is loaded and sees a GPU.
    """

    def __init__(self, every_s: float = 0.05) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self.peak_device_bytes = 0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = 0.0

    def __enter__(self) -> Meter:
        self._began = time.perf_counter()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            self.peak_device_bytes = int(torch.cuda.max_memory_allocated())

    def _watch(self) -> None:
        me = psutil.Process()
        children: list[psutil.Process] = []
        looked = 0.0
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
            if self._stop.wait(self._every_s):
                return

    def fill(self, ledger: Ledger, devices: int = 0) -> None:
        """Put the readings into a ledger; `devices` is how many GPUs were held."""
        ledger.seconds = self.seconds
        ledger.device_seconds = self.seconds * devices
        ledger.peak_memory_bytes = self.peak_bytes
        ledger.peak_device_bytes = self.peak_device_bytes
