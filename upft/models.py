"""Causal language models and their tokenizers: load, take apart into body and head, save.

Floor 4. torch and transformers are imported inside the functions that need them, so that a stage that only
tokenises pays for nothing else. What is on disk or on the hub is judged here and becomes a ModelError with a
remedy; how a model is trained or sampled from is not known here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from upft.errors import ModelError
from upft.specs import ContentRef, HubRef

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PUBLISHED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
"""What a saved model takes over from its source byte for byte: all that is neither weights nor a model card."""
LEFT = ("*.index.json", "scores.json")
"""What fits those patterns and is left behind: it belongs to the source's own weights."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "tokenizer_config.json")
"""A folder with none of these has no tokenizer."""


def resolve(ref: ContentRef | HubRef) -> Path | HubRef:
    """Where to load from: a folder on this machine, or the hub."""
    return Path(ref.path) if isinstance(ref, ContentRef) else ref


def trained_as(source: Path | HubRef, trained: Path | None) -> tuple[Path | HubRef, Path | None]:
    """(model, adapter) of a training's artifact: its weights, or `source` with an adapter that was not merged. `source` alone
    where there is no training."""
    if trained is None:
        return source, None
    return (trained / "model", None) if (trained / "model").is_dir() else (source, trained / "adapter")


def load_tokenizer(source: Path | HubRef, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template. Raises ModelError when either is missing or unreadable."""
    from transformers import AutoTokenizer

    with _mended(source, "tokenizer"), _quiet():
        if isinstance(source, Path) and not any((source / name).is_file() for name in TOKENIZERS):
            raise ModelError(f"{_key(source)} has no tokenizer: no {' or '.join(TOKENIZERS)} in it",
                             "save the tokenizer into the same folder with tokenizer.save_pretrained")
        tokenizer = AutoTokenizer.from_pretrained(
            _name(source), revision=_revision(source), trust_remote_code=trust_remote_code)
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several named ones: a conversation takes the one called default
        template = template.get("default")
    if not template:
        remedy = ("download the model, put its template into chat_template.jinja in that folder and give model.path=DIR"
                  if isinstance(source, HubRef) else
                  f"put the model's template into {source / 'chat_template.jinja'}, or under \"chat_template\" in its "
                  "tokenizer_config.json")
        raise ModelError(f"{_key(source)} has no chat template: a question cannot be put to it", remedy)
    return tokenizer


def load_model(source: Path | HubRef, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model with all weights in `dtype`, on the CPU, in evaluation mode; PyTorch's fused attention where it has it.

    Raises ModelError when a file is missing or unreadable, and when the checkpoint lacks a weight: the
    library would fill it with random numbers and go on.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {"revision": _revision(source), "trust_remote_code": trust_remote_code}
    with _mended(source, "model"), _quiet():
        config = AutoConfig.from_pretrained(_name(source), **where)

        def load(attention: str) -> tuple[PreTrainedModel, dict]:
            return AutoModelForCausalLM.from_pretrained(
                _name(source), config=config, dtype=dtype, attn_implementation=attention, use_safetensors=True,
                ignore_mismatched_sizes=True, output_loading_info=True, **where)  # mismatches are raised below, by name

        try:
            model, info = load("sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = load("eager")  # an architecture that cannot use it says so by this error
    for what in ("missing_keys", "mismatched_keys"):
        if info[what]:
            names = sorted(str(k) for k in info[what])
            raise ModelError(f"{_key(source)}: {len(names)} weights are {what.removesuffix('_keys')} in its checkpoint"
                             f" ({names[0]}{', ...' if len(names) > 1 else ''})",
                             "the folder is incomplete or its config.json is another model's: get it again")
    return model


@contextmanager
def _mended(source: Path | HubRef, what: str) -> Iterator[None]:
    """Whatever the library raises over files that others wrote becomes one ModelError."""
    if isinstance(source, Path) and not source.is_dir():
        raise ModelError(f"{_key(source)}: there is no such folder", "give the folder of a Hugging Face model")
    try:
        yield
    except (MemoryError, ModelError):
        raise
    except Exception as error:  # a foreign file can break the library anywhere: OSError, KeyError, SafetensorError, ...
        text = str(error).strip() or type(error).__name__
        first, *more = text.splitlines()
        said = f"{first} {more[0].strip()}" if first.rstrip().endswith(":") and more else first
        if "trust_remote_code" in text:
            remedy = "read that code; if you trust it, set model.trust_remote_code=true"
        elif isinstance(source, Path):
            remedy = ("mend the folder or give another one: model.path=DIR (written by save_pretrained, weights as "
                      "*.safetensors)")
        else:
            remedy = (f"check id and revision, the network and (for a gated model) HF_TOKEN; without a network, give "
                      f"a downloaded copy of {source.id}: model.path=DIR")
        raise ModelError(f"{_key(source)}: its {what} cannot be loaded: {said}", remedy) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and no hints: a stage speaks for itself, and what is wrong is raised."""
    from transformers.utils import logging as noise

    level, bars = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if bars:
            noise.enable_progress_bar()


def _key(source: Path | HubRef) -> str:
    return f"model.path={source}" if isinstance(source, Path) else f"model.id={source.id} (revision {source.revision})"


def _name(source: Path | HubRef) -> str:
    return str(source) if isinstance(source, Path) else source.id


def _revision(source: Path | HubRef) -> str | None:
    return None if isinstance(source, Path) else source.revision


@dataclass(frozen=True)
class Parts:
    """A causal model in two parts, so that the head can be applied to chosen positions only.

    body(input_ids=..., use_cache=False) gives `last_hidden_state`: [batch, seq, hidden];
    head(hidden: [n, hidden]) gives logits: [n, vocabulary]. output: the module whose parameters the head uses.
    """

    body: torch.nn.Module
    head: Callable[[torch.Tensor], torch.Tensor]
    vocabulary: int
    output: torch.nn.Module


def take_apart(model: PreTrainedModel) -> Parts:
    """Body and head such that head(body(x)) is model(x).

    Some models scale or cap their logits behind the head. Which of the known ways is in use is told from the
    config and proved on a few tokens; raises ModelError when none reproduces the model's own logits.
    """
    import torch

    output = model.get_output_embeddings()
    body = model.get_decoder()
    name = type(model).__name__
    if output is None or body is model:
        raise ModelError(f"{name}: its transformer body and its output head cannot be told apart",
                         "use a causal language model of the Hugging Face layout (AutoModelForCausalLM)")
    config = model.config.get_text_config()

    def number(key: str) -> float | None:
        value = getattr(config, key, None)
        return float(value) if isinstance(value, (int, float)) and value != 0 else None

    def numbers(*keys: str) -> list[float]:
        return [value for key in keys if (value := number(key)) is not None]

    caps: list[float | None] = [*numbers("final_logit_softcapping", "logits_soft_cap")] or [None]
    scales = numbers("logit_scale", "lm_head_multiplier", "output_multiplier")
    if (divisor := number("logits_scaling")) is not None:
        scales += [1 / divisor, divisor]  # Granite divides by it, HyperCLOVA X multiplies

    def head_of(scale: float, cap: float | None) -> Callable[[torch.Tensor], torch.Tensor]:
        def head(hidden: torch.Tensor) -> torch.Tensor:
            logits = output(hidden)
            logits = logits if scale == 1 else logits * scale
            return logits if cap is None else torch.tanh(logits / cap) * cap

        return head

    was_training = model.training
    model.eval()
    with torch.no_grad():
        ids = torch.arange(1, 9, device=model.device)[None] % output.weight.shape[0]
        logits = model(input_ids=ids, use_cache=False).logits.float()
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        finite = logits.isfinite()  # broken weights are the training's to report, not an odd architecture
        truth = logits[finite]
        close = 0.02 if model.dtype in (torch.bfloat16, torch.float16) else 1e-4
        fitting = [head for cap in caps for scale in [*scales, 1.0]
                   for head in [head_of(scale, cap)]
                   if truth.numel() == 0
                   or bool((head(hidden).float()[finite] - truth).abs().max() <= close * truth.abs().max())]
    model.train(was_training)
    if fitting:
        return Parts(body, fitting[0], int(logits.shape[-1]), output)
    raise ModelError(f"{name}: its logits are neither those of its output head nor a known scaling or capping of them",
                     "this architecture cannot be trained here yet; use another model")


def head_parameters(model: PreTrainedModel) -> int:
    """Parameters of the output head."""
    return sum(p.numel() for p in model.get_output_embeddings().parameters())


def multiplied_parameters(model: PreTrainedModel) -> int:
    """Parameters that multiply each token: all but the input embedding; one tied to the head counts once, as head."""
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    tied = output is not None and output.weight is table
    return sum(p.numel() for p in model.parameters()) - (0 if tied else table.numel())


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, out: Path,
               source: Path | HubRef | None) -> None:
    """Write an ordinary Hugging Face folder: weights as safetensors and all that belongs to them.

    With a `source` (where the model was loaded from) its config, generation config, tokenizer and chat
    template are taken over as published, and the weights get the number format it was published in. Without
    one they are written from `model` and `tokenizer`.
    """
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    folder = None if source is None else _folder(source)
    dtype = model.dtype if folder is None else _published_dtype(folder) or model.dtype
    exact = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    cast: dict[tuple, torch.Tensor] = {}  # tied weights must stay one tensor, or both would be written
    state = {}
    for name, tensor in model.state_dict().items():
        wanted = dtype if tensor.is_floating_point() and not any(part in name for part in exact) else tensor.dtype
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), wanted)
        state[name] = cast.setdefault(place, tensor.detach().to("cpu", wanted))
    generation, model.generation_config = model.generation_config, GenerationConfig()
    try:  # save_pretrained refuses published configs such as a temperature beside do_sample=false
        with _quiet():
            model.save_pretrained(out, state_dict=state, max_shard_size="5GB")
    finally:
        model.generation_config = generation
    (out / "generation_config.json").unlink(missing_ok=True)
    if source is not None:
        copy_published(source, out)
        return
    if generation is not None:
        (out / "generation_config.json").write_text(generation.to_json_string(), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(out)


def copy_published(source: Path | HubRef, out: Path, weights: bool = True) -> None:
    """Copy what belongs to a model beside its weights: tokenizer, chat template, configs, licence.

    weights=False is for a folder that gets no weights of a whole model: it must not say that it is one.
    """
    left = LEFT if weights else (*LEFT, "config.json")
    folder = _folder(source)
    for pattern in PUBLISHED:
        for file in folder.glob(pattern):
            if file.is_file() and not any(file.match(one) for one in left):
                shutil.copyfile(file, out / file.name)


def _folder(source: Path | HubRef) -> Path:
    """The folder of a source; for the hub, that of its snapshot in the cache, where loading has put it."""
    if isinstance(source, Path):
        return source
    from huggingface_hub import hf_hub_download

    with _mended(source, "config.json"):
        return Path(hf_hub_download(source.id, "config.json", revision=source.revision)).parent


def _published_dtype(folder: Path) -> torch.dtype | None:
    """The number format in config.json, or else that of the first floating-point weight; None if neither tells."""
    import torch
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype")
    if named is not None:
        return getattr(torch, str(named).removeprefix("torch."))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  (it is no dict)
                tensor = weights.get_slice(key)[:1] if weights.get_slice(key).get_shape() else weights.get_tensor(key)
                if tensor.is_floating_point():
                    return tensor.dtype
    return None
