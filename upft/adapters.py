"""Low-rank adapters on a causal model: put them in, save them, load them, add them to the weights.

Floor 4; the only room that imports peft. The model stays the Hugging Face model that it was: its class, its
body and its head are found as before, and a merged model has the names it was loaded with. Knows nothing of
optimisers or engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import models
from upft.errors import ConfigError, ModelError, nearest
from upft.specs import HubRef, LoraSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What makes a folder a PEFT folder."""
_NAME = "default"
_OUTER = "base_model.model."
"""PEFT saves its weights under the names they have inside its own wrapper."""


def attach(model: PreTrainedModel, lora: LoraSpec, seed: int) -> None:
    """Put fresh adapters into `model` in place and freeze everything else.

    An adapter adds alpha / rank * B(A(dropout(x))) to a linear layer's output (Hu et al. 2021,
    arXiv:2106.09685); B begins at 0, so the model computes what it did. A is drawn from `seed`, the caller's
    random state stays as it was. The adapters are fp32 whatever the base is in. Raises ConfigError for
    targets that the model does not have, ModelError for a model that carries adapters already.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    if attached(model):
        raise ModelError(f"{type(model).__name__} carries adapters already", "merge them first, or load the base model")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, bias="none",
                        task_type="CAUSAL_LM", target_modules=_targets(model, lora.targets))
    with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else [model.device]):
        torch.manual_seed(seed % 2**63)
        inject_adapter_in_model(config, model)
    for _, parameter in _parameters(model):
        parameter.data = parameter.data.float()
    model.train(model.training)  # a new dropout is in training mode, whatever mode the model is in


def attached(model: PreTrainedModel) -> bool:
    """Whether the model carries adapters."""
    return getattr(model, "peft_config", None) is not None


def save(model: PreTrainedModel, out: Path, source: Path | HubRef | None) -> None:
    """Write the adapters as a PEFT folder, with the tokenizer, chat template and generation config of `source`.

    source: where the base model was loaded from; the folder names it (a hub model with its revision), so that
    it is found when the adapters are loaded. Raises ModelError for a model without adapters.
    """
    from safetensors.torch import save_file

    weights = {_OUTER + name: tensor.detach().to("cpu").contiguous() for name, tensor in _weights(model).items()}
    config = json.loads(json.dumps(_config(model).to_dict(), default=_plain))
    config |= {
        "base_model_name_or_path": str(source.resolve()) if isinstance(source, Path) else source.id if source else None,
        "revision": source.revision if isinstance(source, HubRef) else None,
        "inference_mode": True,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / WEIGHTS, {"format": "pt"})
    (out / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if source is not None:
        models.copy_published(source, out, weights=False)


def load(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapters of a PEFT folder into their base model, in place and frozen.

    Raises ModelError when the folder is no adapter, or one of another model.
    """
    from peft import LoraConfig, PeftConfig, inject_adapter_in_model
    from safetensors.torch import load_file

    rank(folder)  # refuses a folder that is none
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = {name.removeprefix(_OUTER): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except Exception as error:  # a foreign file can break the library anywhere
        raise ModelError(f"adapter {folder} cannot be loaded: {error}", "get it again, or train it again") from error
    if not isinstance(config, LoraConfig):
        raise ModelError(f"adapter {folder} is of type {config.peft_type}", "give a LoRA adapter")
    for key in ("use_dora", "bias", "lora_bias", "modules_to_save"):
        if getattr(config, key) not in (False, None, "none", []):
            raise ModelError(f"adapter {folder} has {key}={getattr(config, key)}",
                             "give a plain LoRA adapter, or merge this one")
    config.inference_mode = True
    was_training = model.training
    try:
        inject_adapter_in_model(config, model)
    except ValueError as error:  # none of its layers is there
        raise _foreign(folder, model, str(error)) from error
    _copy(_weights(model), folder, model, weights)
    model.train(was_training)


def fill(model: PreTrainedModel, folder: Path) -> None:
    """Give the adapters that `attach` put into `model` the weights of a PEFT folder, to train them further.

    Raises ModelError when the folder is no adapter, or one of other layers or rank.
    """
    from safetensors.torch import load_file

    rank(folder)  # refuses a folder that is none
    _copy(_weights(model), folder, model, {n.removeprefix(_OUTER): t for n, t in load_file(folder / WEIGHTS).items()})


def _copy(wanted: Mapping[str, torch.Tensor], folder: Path, model: PreTrainedModel,
          weights: Mapping[str, torch.Tensor]) -> None:
    """Put `weights` where they belong. Raises ModelError where they are not those of the adapters in `model`."""
    if wanted.keys() != weights.keys():
        raise _foreign(folder, model, f"{sorted(wanted.keys() ^ weights.keys())[0]} is in one of them only")
    for name, tensor in wanted.items():
        if tensor.shape != weights[name].shape:
            raise _foreign(folder, model, f"{name} is {list(weights[name].shape)} instead of {list(tensor.shape)}")
        tensor.data = weights[name].to(tensor.device).float()


def merge(model: PreTrainedModel) -> None:
    """Add the adapters to the weights and take them out, in place: an ordinary model again, in fp32.

    The sums are fp32 whatever the base was in, so `models.save_model` rounds them once, to the published
    format. Needs memory for the whole model in fp32. Raises ModelError for a model without adapters.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    _config(model)
    model.float()
    with torch.no_grad():
        for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
            base = layer.get_base_layer()
            base.weight += layer.get_delta_weight(_NAME)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, base)
    del model.peft_config
    model.requires_grad_(True)


def rank(folder: Path) -> int:
    """The highest rank in an adapter folder; needs neither torch nor peft. Raises ModelError when it is none."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} is no adapter: it needs {CONFIG} and {WEIGHTS}",
                         "give a folder that PEFT has written (safetensors)")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / CONFIG} is no LoRA configuration: {error!r}", "mend that file") from error


def _targets(model: PreTrainedModel, wanted: Iterable[str] | None) -> list[str]:
    """Names that PEFT takes for `target_modules`: short ones (q_proj) where they name just the layers meant."""
    import torch
    from transformers.pytorch_utils import Conv1D

    body, head = model.get_decoder(), model.get_output_embeddings()
    inside = {id(module) for module in body.modules()}
    modules = dict(model.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, (torch.nn.Linear, Conv1D))
              and module is not head and id(module) in inside]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear layer that an adapter could sit on",
                         "train all weights: train.lora=null")
    short = sorted(set(known if wanted is None else wanted))
    for name in short:
        if not any(_ends(layer, name) for layer in linear):
            raise ConfigError(f"train.lora.targets=[{', '.join(short)}]: {name!r} is no linear layer in the body of "
                              f"{type(model).__name__} (its layers: {', '.join(known)})",
                              f"{nearest(name, known)} null = all of them")
    chosen = [layer for layer in linear if any(_ends(layer, name) for name in short)]
    named = [layer for layer in modules if any(_ends(layer, name) for name in short)]
    return short if named == chosen else chosen  # else a module outside the body bears the same name


def _ends(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def _config(model: PreTrainedModel) -> Any:
    if not attached(model):
        raise ModelError(f"{type(model).__name__} carries no adapters", "attach or load them first")
    return model.peft_config[_NAME]


def _parameters(model: PreTrainedModel) -> list[tuple[str, torch.nn.Parameter]]:
    """The adapters' parameters by their full names in the model."""
    return [(name, p) for name, p in model.named_parameters() if f".{_NAME}." in name and ".lora_" in name]


def _weights(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """The adapters' parameters by the names PEFT saves them under."""
    _config(model)
    return {name.replace(f".{_NAME}.", "."): parameter for name, parameter in _parameters(model)}


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):  # the order of a set changes from run to run
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in an adapter's configuration")


def _foreign(folder: Path, model: PreTrainedModel, why: str) -> ModelError:
    return ModelError(f"adapter {folder} does not fit {type(model).__name__}: {why}",
                      "use it with the base model that it was trained on (base_model_name_or_path in its configuration)")
