"""The embedded engine: a decode loop of its own around a Hugging Face causal language model.

Floor 4. Runs in this process, on a CPU or one GPU. Requests of like length share a batch; each keeps its own
random numbers, so a completion does not depend on its neighbours (but for the rounding of the logits).
Refuses to know where requests come from.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upft import adapters, manners
from upft import config as c
from upft.choices import Accelerator
from upft.errors import EngineError
from upft.models import load_model
from upft.sampler import Completion, Request, Sampling, fitted, label
from upft.sampler.drawing import draw_scored, uniforms
from upft.sampler.growing_cache import growing_cache
from upft.specs import HubRef

_KEEP = 0.75
"""Finished rows are dropped once at most this share of the batch is alive: dropping copies the cache."""


_WINDOW = 16
"""Batches' worth of a stream of requests that are put in order together."""


class TransformersEngine:
    """A model in this process. See `upft.sampler.Engine`."""

    name = "transformers"
    per_request_seed = True

    def __init__(self, model: Path | HubRef, dtype: c.Dtype, compute: c.ComputeConfig,
                 trust_remote_code: bool = False, adapter: Path | None = None, gpu: int = 0) -> None:
        """Load the weights, and the adapter, onto the `gpu`-th GPU where there are any. Raises ModelError where they
        cannot be loaded, EngineError where the GPU asked for is not there."""
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
        device = _device(compute.accelerator, gpu)
        weights = load_model(model, getattr(torch, dtype.name), trust_remote_code)
        if adapter is not None:
            adapters.load(weights, adapter)
            if dtype is c.Dtype.float32:  # faster; in bfloat16 the sum would round most of the adapter away
                adapters.merge(weights)
        self._take(weights.to(device), label(model, adapter), compute.sample_batch)

    @classmethod
    def over(cls, model: Any, name: str,
             sample_batch: int = c.ComputeConfig.sample_batch) -> TransformersEngine:
        """An engine over a model that is in memory already, where and as it is; `name` is for messages."""
        engine = cls.__new__(cls)
        engine._take(model, name, sample_batch)
        return engine

    def _take(self, model: Any, name: str, sample_batch: int) -> None:
        self._model: Any = model
        self._label, self._batch, self._device = name, sample_batch, model.device
        self.context = int(model.config.get_text_config().max_position_embeddings)

    @property
    def alive(self) -> bool:
        """False once closed."""
        return self._model is not None

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `upft.sampler.Engine`."""
        if self._model is None:
            raise EngineError(f"the engine of {self._label} is closed", "open another one")
        ready = fitted(requests, self.context, self._label)
        at_once = len(requests) if isinstance(requests, Sequence) else _WINDOW * self._batch
        return self._windows(ready, max(1, at_once), sampling)

    def _windows(self, requests: Iterator[Request], at_once: int, sampling: Sampling) -> Iterator[Completion]:
        while window := list(islice(requests, at_once)):
            # Like limits and lengths stand together (little padding, rows end together), equal prompts side by
            # side (read once); the longest first, so that a batch too large for the memory fails at once.
            window.sort(key=lambda r: (r.max_tokens, len(r.prompt_ids), r.prompt_ids, r.id, r.seed), reverse=True)
            yield from self._batches(window, sampling)
            if self._device.type == "cpu":
                manners.give_back()  # caches of many sizes leave holes

    def _batches(self, requests: list[Request], sampling: Sampling) -> Iterator[Completion]:
        model = self._model
        training = model.training
        model.eval()  # a model in training would drop out
        try:
            for start in range(0, len(requests), self._batch):
                together = requests[start:start + self._batch]
                batch = _Batch(model, together, sampling, self._device, self._label)
                while batch.rows_left:
                    yield from batch.step()
        except RuntimeError as error:
            # CUDA's error is a class of its own, the CPU allocator's is known by its words alone.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise EngineError(f"out of memory while sampling {len(together)} requests together with"
                              f" {self._label}: {str(error).splitlines()[0]}",
                              f"lower compute.sample_batch (now {self._batch})") from error
        finally:
            model.train(training)

    def peak_device_bytes(self) -> int:
        """See `upft.sampler.Engine`: it has no process but this one."""
        return 0

    def close(self) -> None:
        """Drop the model and give GPU memory back."""
        if self._model is not None:
            self._model = None
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


class _Batch:
    """Requests decoded together. Rows of the tensors below are `_at`: indices of requests not dropped yet."""

    def __init__(self, model: Any, requests: list[Request], sampling: Sampling, device: torch.device,
                 name: str) -> None:
        self._model, self._requests, self._sampling, self._device = model, requests, sampling, device
        known = inspect.signature(model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        count, self._longest = len(requests), max(r.max_tokens for r in requests)
        self._stop = torch.tensor(sorted(sampling.stop_ids), dtype=torch.long, device=device)
        self._limits = torch.tensor([r.max_tokens for r in requests], device=device)
        self._lengths = torch.tensor([len(r.prompt_ids) for r in requests], device=device)
        self._ids = torch.zeros(count, self._longest, dtype=torch.long, device=device)
        self._scores = torch.zeros(count, self._longest, device=device) if sampling.logprobs else None
        self._at = torch.arange(count, device=device)
        self._alive = torch.ones(count, dtype=torch.bool, device=device)
        self._uniform: Tensor | None = None
        if sampling.temperature != 0:
            drawn = np.zeros((self._longest, count), dtype=np.float32)  # [step, row]
            for row, request in enumerate(requests):
                drawn[:request.max_tokens, row] = uniforms(request.seed, request.max_tokens)
            self._uniform = torch.from_numpy(drawn).to(device)
        self._done_steps = 0
        self.rows_left = count
        self._logits = self._prefill()
        if bool(self._logits.isnan().any()):
            raise EngineError(f"{name} gives NaN logits", "use model.dtype=float32, or check the weights")

    @torch.inference_mode()
    def _prefill(self) -> Tensor:
        """Read the prompts, each distinct one once; logits of the first token, `[batch, vocab]`."""
        distinct: dict[tuple[int, ...], int] = {}
        row_of = []
        self._cached: list[int] = []
        for request in self._requests:
            self._cached.append(len(request.prompt_ids) if request.prompt_ids in distinct else 0)
            row_of.append(distinct.setdefault(request.prompt_ids, len(distinct)))
        width = max(map(len, distinct))
        ids = np.zeros((len(distinct), width), dtype=np.int64)
        mask = np.zeros((len(distinct), width + self._longest), dtype=np.int64)
        for row, prompt in enumerate(distinct):
            ids[row, width - len(prompt):] = prompt
            mask[row, width - len(prompt):] = 1
        self._width = width
        self._mask = torch.from_numpy(mask).to(self._device)  # ones ahead: a step takes a longer view
        positions = (self._mask[:, :width].cumsum(-1) - 1).clamp_(min=0)
        self._cache = growing_cache(self._model.config)
        logits = self._forward(torch.from_numpy(ids).to(self._device), self._mask[:, :width], positions)
        if len(distinct) < len(row_of):
            rows = torch.tensor(row_of, device=self._device)
            self._cache.batch_select_indices(rows)
            self._mask, logits = self._mask[rows], logits[rows]
        return logits

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Draw one token for every row and read it; the completions that it finished."""
        step, s = self._done_steps, self._sampling
        uniform = None if self._uniform is None else self._uniform[step]
        tokens, scores = draw_scored(self._logits, uniform, s.temperature, s.top_k, s.top_p, self._scores is not None)
        self._ids[self._at, step] = tokens
        if self._scores is not None and scores is not None:
            self._scores[self._at, step] = scores
        self._done_steps = step + 1
        stopped = torch.isin(tokens, self._stop)
        ended = (stopped | (self._limits <= step + 1)) & self._alive
        finished: list[Completion] = []
        if bool(ended.any()):
            finished = self._finish(ended, stopped)
            self._alive &= ~ended
            self.rows_left -= len(finished)
            if self.rows_left == 0:
                return finished
            if self.rows_left <= _KEEP * len(tokens):
                tokens = self._drop(tokens)
        self._logits = self._forward(tokens[:, None], self._mask[:, :self._width + step + 1],
                                     (self._lengths + step)[:, None])
        return finished

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Append `ids: [batch, new]` to the cache; logits at the last of them, `[batch, vocab]`."""
        out = self._model(input_ids=ids, attention_mask=mask, position_ids=positions,
                          past_key_values=self._cache, use_cache=True, **self._only_last)
        logits: Tensor = out.logits[:, -1]
        return logits

    def _finish(self, ended: Tensor, stopped: Tensor) -> list[Completion]:
        rows = ended.nonzero().squeeze(-1)
        at, stops = self._at[rows], stopped[rows].tolist()
        drawn = self._ids[at, :self._done_steps].tolist()
        scores = [None] * len(drawn) if self._scores is None else map(tuple, self._scores[at, :self._done_steps].tolist())
        return [Completion(self._requests[index].id, tuple(ids), "stop" if stop else "length", score, self._cached[index])
                for index, ids, stop, score in zip(at.tolist(), drawn, stops, scores, strict=True)]

    def _drop(self, tokens: Tensor) -> Tensor:
        """Take finished rows out of every tensor; the tokens of the rows that stay."""
        keep = self._alive.nonzero().squeeze(-1)
        self._cache.batch_select_indices(keep)
        self._at, self._alive, self._mask = self._at[keep], self._alive[keep], self._mask[keep]
        self._limits, self._lengths = self._limits[keep], self._lengths[keep]
        if self._uniform is not None:
            self._uniform = self._uniform[:, keep]
        return tokens[keep]


def _device(accelerator: Accelerator, gpu: int) -> torch.device:
    if accelerator is not Accelerator.cpu and torch.cuda.is_available():
        return torch.device("cuda", gpu)
    if accelerator is Accelerator.gpu:
        raise EngineError("compute.accelerator=gpu: torch sees no GPU here",
                          "use compute.accelerator=auto or cpu, or install a CUDA build of torch")
    return torch.device("cpu")
