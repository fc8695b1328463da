"""Sampling engines behind one small interface: requests of token ids in, completions of token ids out.

Floor 4. Two engines: vLLM (in a process of its own) and Transformers (embedded). This room knows prompts only
as ids and never sees a question, an answer or a reward. Importing it loads neither torch nor an engine.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from upft import adapters
from upft import config as c
from upft.errors import EngineError, ModelError
from upft.origins import resolve_engine
from upft.specs import HubRef, SamplingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Completion", "Engine", "EnginePool", "Later", "Request", "Sampling", "fitted", "label", "open_engine",
           "request_seed", "resolve_sampling"]


@dataclass(frozen=True)
class Request:
    """One completion to draw. `seed` fixes its random numbers whatever else is sampled beside it."""

    id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What was drawn. finish_reason "stop": `ids` end with a stop token; "length": the limit cut them.

    logprobs: of each id, in the distribution it was drawn from (temperature, top_k and top_p applied; greedy: the
    model's own); None unless asked for. cached: prompt tokens that were not computed, another request having done so.
    """

    id: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None = None
    cached: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, the same for all requests of one call.

    temperature: 0 = greedy. top_p: nucleus mass in (0, 1]. top_k: most likely tokens kept, 0 = all.
    stop_ids: tokens that end a completion. seed: of the run, for an engine that cannot seed requests.
    logprobs: whether each sampled token's log-probability is given.
    """

    temperature: float
    top_p: float
    top_k: int
    stop_ids: frozenset[int]
    seed: int
    logprobs: bool = False


class Engine(Protocol):
    """A loaded model that draws completions."""

    @property
    def name(self) -> str:
        """`vllm` or `transformers`."""

    @property
    def per_request_seed(self) -> bool:
        """Whether each request's own seed decides its random numbers."""

    @property
    def context(self) -> int:
        """Longest prompt plus completion, tokens."""

    @property
    def alive(self) -> bool:
        """Whether it can still be used: neither closed nor dead."""

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Draw every request once and yield completions as they finish, in any order.

        A sequence is judged whole at once; anything else is read as room for it comes up, so that millions of
        requests need not be held. The result depends on (requests, sampling) alone, not on earlier calls. Raises
        EngineError where a prompt leaves no room for a token, and where the engine runs out of memory or dies.
        """

    def peak_device_bytes(self) -> int:
        """Most memory that processes of its own have held on one GPU since it was opened; 0 where they held none, or it cannot
        be told. Between two calls."""

    def close(self) -> None:
        """Give back memory and processes; a second call does nothing."""


class Later:
    """An engine that is opened when it has something to draw. told: the summary of an artifact that the same kind of
    engine made of the same model; what it says need not be asked of the engine. See `Engine`."""

    def __init__(self, opened: Callable[[], Engine], told: Mapping[str, Any] | None = None) -> None:
        self._open, self._told = opened, told if told is not None and "context" in told else None

    @property
    def name(self) -> str:
        """See `Engine`."""
        return str(self._told["engine"]) if self._told is not None else self._open().name

    @property
    def per_request_seed(self) -> bool:
        """See `Engine`."""
        return bool(self._told["per_request_seed"]) if self._told is not None else self._open().per_request_seed

    @property
    def context(self) -> int:
        """See `Engine`."""
        return int(self._told["context"]) if self._told is not None else self._open().context

    @property
    def alive(self) -> bool:
        """Whether it can be used: opening it is left to the first use."""
        return True

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """See `Engine`."""
        return self._open().generate(requests, sampling)

    def peak_device_bytes(self) -> int:
        """See `Engine`; the pool knows whether there is one to ask."""
        return 0

    def close(self) -> None:
        """Nothing: the engine belongs to its pool."""


def label(model: Path | HubRef, adapter: Path | None = None) -> str:
    """How messages name a model."""
    name = str(model) if isinstance(model, Path) else f"{model.id}@{model.revision[:8]}"
    return name if adapter is None else f"{name} with adapter {adapter}"


def open_engine(kind: c.Engine, model: Path | HubRef, dtype: c.Dtype, compute: c.ComputeConfig,
                trust_remote_code: bool = False, adapter: Path | None = None) -> Engine:
    """Load a model, with the LoRA adapter of a PEFT folder on it, into an engine; `auto` is vLLM where it is installed.

    Raises ModelError for a folder that is no model (no adapter), EngineError where the engine cannot start.
    """
    if isinstance(model, Path) and not (model / "config.json").is_file():
        what = "has no config.json" if model.is_dir() else "is no folder"
        raise ModelError(f"{model} is no model: it {what}",
                         "give a folder written by save_pretrained (config.json, *.safetensors, tokenizer)")
    if adapter is not None:
        adapters.rank(adapter)  # refuses a folder that is none
    from upft.sampler import devices
    from upft.sampler.side_by_side import SideBySide

    if resolve_engine(kind, "engine") is c.Engine.vllm:
        from upft.sampler.vllm_engine import VllmEngine

        return SideBySide.of([partial(VllmEngine, model, dtype, compute, trust_remote_code, adapter, share)
                              for share in devices.shares(compute)])
    from upft.sampler.transformers_engine import TransformersEngine

    return SideBySide.of([partial(TransformersEngine, model, dtype, compute, trust_remote_code, adapter, gpu)
                          for gpu in devices.gpus(compute)])


class EnginePool:
    """At most one open engine, kept while the same model is asked for, so that stages share its start."""

    def __init__(self, compute: c.ComputeConfig) -> None:
        self._compute = compute
        self._key: tuple[c.Engine, Path | HubRef, c.Dtype, bool, Path | None] | None = None
        self._engine: Engine | None = None
        self._asked = False

    def get(self, kind: c.Engine, source: Path | HubRef, dtype: c.Dtype,
            trust_remote_code: bool = False, adapter: Path | None = None) -> Engine:
        """The engine for this model and adapter; another one is closed first. Raises what `open_engine` raises."""
        self._asked = True
        key = (resolve_engine(kind, "engine"), source, dtype, trust_remote_code, adapter)
        if self._engine is not None and self._key == key and self._engine.alive:
            return self._engine
        self.close()
        _give_back()
        self._engine = open_engine(key[0], source, dtype, self._compute, trust_remote_code, adapter)
        self._key = key
        return self._engine

    def peak_device_bytes(self) -> int:
        """Most memory on one GPU that the open engine has held outside this process, where it was asked for since the last call
        of this; else 0. What a stage's clock (`ledger.Meter`) does not see."""
        asked, self._asked = self._asked, False
        return self._engine.peak_device_bytes() if asked and self._engine is not None else 0

    def later(self, told: Mapping[str, Any] | None, kind: c.Engine, source: Path | HubRef, dtype: c.Dtype,
              trust_remote_code: bool = False, adapter: Path | None = None) -> Later:
        """As `get`, opened only when it has to draw, or to say what `told` does not."""
        return Later(partial(self.get, kind, source, dtype, trust_remote_code, adapter), told)

    def close(self) -> None:
        """Close the open engine, if any; `get` opens the next one."""
        engine, self._engine, self._key = self._engine, None, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _give_back() -> None:
    """Free the GPU memory that stages before have left in this process's cache: a model that trained, scored or was compared
    here is gone, but PyTorch keeps what it held, and an engine in another process would find too little."""
    gc.collect()  # models hold themselves in cycles
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def request_seed(question_id: str, index: int, run_seed: int) -> int:
    """Seed of a question's `index`-th completion: 63 bits of a hash, so that neighbours share nothing."""
    text = json.dumps([question_id, index, run_seed], separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def fitted(requests: Iterable[Request], context: int, model: str) -> Iterator[Request]:
    """The requests with max_tokens clipped to what the context leaves after the prompt.

    Raises EngineError for an empty prompt, one that leaves no room for a token, and max_tokens below 1: for a
    sequence at once, else when the request is read.
    """
    one = partial(_fitted, context=context, model=model)
    return iter([one(r) for r in requests]) if isinstance(requests, Sequence) else map(one, requests)


def _fitted(request: Request, context: int, model: str) -> Request:
    room = context - len(request.prompt_ids)
    if not request.prompt_ids or request.max_tokens < 1:
        raise EngineError(f"request {request.id}: {len(request.prompt_ids)} prompt tokens and max_tokens="
                          f"{request.max_tokens}", "give at least one prompt token and max_tokens >= 1")
    if room < 1:
        raise EngineError(f"request {request.id}: its prompt of {len(request.prompt_ids)} tokens fills"
                          f" the context of {context} tokens of {model}",
                          "shorten or leave out that question, or use a model with a longer context")
    return request if request.max_tokens <= room else replace(request, max_tokens=room)


def resolve_sampling(spec: SamplingSpec, source: Path | HubRef,
                     tokenizer: PreTrainedTokenizerBase, logprobs: bool = False) -> Sampling:
    """Fill in what the spec leaves to the model, from its generation_config.json.

    temperature: the file's value where the spec says null, 1 where the file wants sampling and names none, 0 (greedy) where
    it does not. top_p and top_k: the file's value where the spec says null, else 1 and 0 (no filter; a default of the
    transformers library never stands in for a value the model's authors did not write). Stop tokens: every
    EOS id of the file (of config.json where there is no such file) and the tokenizer's. Raises ModelError
    where no EOS is known, for then no completion would ever finish.
    """
    written = _model_json(source, "generation_config.json")
    settings = written if written is not None else {}
    eos = (written if written is not None else _model_json(source, "config.json") or {}).get("eos_token_id")
    stop_ids = {int(i) for i in (eos if isinstance(eos, list) else [eos]) if i is not None}
    if tokenizer.eos_token_id is not None:
        stop_ids.add(int(tokenizer.eos_token_id))
    if not stop_ids:
        raise ModelError(f"{label(source)} names no end-of-sequence token: no completion would ever finish",
                         "write eos_token_id into its generation_config.json, or an EOS into its tokenizer")
    top_p, top_k = settings.get("top_p"), settings.get("top_k")
    recommended = float(settings.get("temperature") or 1.0) if settings.get("do_sample") else 0.0
    return Sampling(
        temperature=recommended if spec.temperature is None else spec.temperature,
        top_p=spec.top_p if spec.top_p is not None else 1.0 if top_p is None else float(top_p),
        top_k=spec.top_k if spec.top_k is not None else 0 if top_k is None else int(top_k),
        stop_ids=frozenset(stop_ids), seed=spec.seed, logprobs=logprobs)


def _model_json(source: Path | HubRef, name: str) -> dict[str, Any] | None:
    """A JSON file of the model as written; None where the model has none."""
    path = source / name if isinstance(source, Path) else _hub_file(source, name)
    if path is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{name} of {label(source)} is not JSON: {error}", "mend that file") from error
    if not isinstance(content, dict):
        raise ModelError(f"{name} of {label(source)} holds no JSON object", "mend that file")
    return content


def _hub_file(ref: HubRef, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(ref.id, name, revision=ref.revision))
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{name} of {label(ref)} cannot be fetched: {error}",
                         "check the network, or give the model as a folder (model.path=DIR)") from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{label(ref)} cannot be read from the hub: {error}",
                         "check model.id and model.revision, and that the hub token may read it") from error
