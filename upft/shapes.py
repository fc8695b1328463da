"""The size of a causal language model, read from its config.json: what costs are computed from.

Floor 3: no weights and no torch, so that a plan can be priced on any machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from upft.specs import HubRef


@dataclass(frozen=True)
class Shape:
    """parameters: those that multiply each token (no input embedding; a tied head counts once)."""

    parameters: int
    layers: int
    hidden: int
    context: int


def read_shape(source: Path | HubRef) -> Shape | None:
    """Shape of a Llama-like decoder (grouped attention, gated MLP); None where it cannot be told."""
    try:
        if isinstance(source, HubRef):
            from huggingface_hub import hf_hub_download

            text = Path(hf_hub_download(source.id, "config.json", revision=source.revision)).read_text(encoding="utf-8")
        else:
            text = (source / "config.json").read_text(encoding="utf-8")
        return shape_of(json.loads(text))
    except Exception:  # a cost estimate is not worth failing for: no network, an unusual config
        return None


def shape_of(config: dict[str, int]) -> Shape:
    """Shape from a config.json's fields. Raises KeyError when one is missing."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    mlp = 3 * hidden * config["intermediate_size"]
    return Shape(parameters=layers * (attention + mlp) + hidden * config["vocab_size"], layers=layers, hidden=hidden,
                 context=config["max_position_embeddings"])
