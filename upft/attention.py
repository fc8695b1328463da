"""Attention of packed rows, put into a Hugging Face model while it trains.

Floor 4. A registered attention function takes the place of the model's own; each forward pass is given a
`RowsTensors` that says which tokens see which (`upft.packed`). On a GPU PyTorch's variable-length kernel
(flash-attn's where that is installed), elsewhere PyTorch's fused attention over padded tiles (`upft.tiles`); everything
but the attention runs on tokens without padding. Whether a model's architecture can be served like this is not
guessed but proved on a few tokens (`fits`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from upft.packed import pack
from upft.prefix import UNSUPERVISED, Row
from upft.tiles import RowsTensors, attend_tiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

NAME = "upft_packed_rows"
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 0.02, torch.bfloat16: 0.08}
"""How far the proof's hidden states may differ, relative to their largest."""
KNOWN = {"position_ids", "use_cache", "output_attentions", "is_causal", "sliding_window", "packed_rows"}
"""Keyword arguments of an attention function that change nothing or are honoured; another one must be None."""


class Unserved(Exception):
    """An architecture's attention has a part that packed rows cannot be given; `fits` turns it into its reason."""


@torch.compiler.disable  # its tiles differ from batch to batch: compiled around, not into
def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
           attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
           packed_rows: RowsTensors | None = None, sliding_window: int | None = None,
           **others: Any) -> tuple[torch.Tensor, None]:
    """An attention function of Transformers. query: [1, heads, tokens, d]; key, value: [1, kv heads, tokens, d].

    Returns [1, tokens, heads, d]. Without packed_rows: PyTorch's fused causal attention, as the model has it.
    Raises Unserved for what an architecture asks beyond that (soft caps, sinks, biases).
    """
    if packed_rows is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others)
        return out
    unknown = sorted(name for name, argument in others.items() if name not in KNOWN and argument is not None)
    if unknown:
        raise Unserved(f"attention with {', '.join(unknown)}")
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))  # [tokens, heads, d]
    if packed_rows.tiles is not None:
        return attend_tiles(q, k, v, packed_rows, scaling, dropout, sliding_window)[None], None
    if packed_rows.key_index is not None:
        k, v = k.index_select(0, packed_rows.key_index), v.index_select(0, packed_rows.key_index)
    return _kernel()(q, k, v, packed_rows, scaling, sliding_window)[None], None


@cache
def _kernel() -> Callable[..., torch.Tensor]:
    """The variable-length kernel of this machine: (q, k, v, rows, scaling, window) -> [tokens, heads, d].

    In both, causality counts from the last query and the last key of a segment: with ancestors in front of
    the keys, a query sees them all.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        from torch.nn.attention.varlen import varlen_attn

        def torch_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: RowsTensors, scaling: float | None,
                         window: int | None) -> torch.Tensor:
            out = varlen_attn(q, k, v, rows.starts, rows.key_starts, rows.longest, rows.longest_keys, scale=scaling,
                              window_size=(-1 if window is None else window - 1, 0), enable_gqa=q.shape[1] != k.shape[1])
            assert isinstance(out, torch.Tensor)
            return out

        return torch_kernel

    def flash_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: RowsTensors, scaling: float | None,
                     window: int | None) -> torch.Tensor:
        return flash_attn_varlen_func(q, k, v, rows.starts, rows.key_starts, rows.longest, rows.longest_keys,
                                      softmax_scale=scaling, causal=True,
                                      window_size=(-1, -1) if window is None else (window - 1, 0))

    return flash_kernel


def kernel_serves(device: torch.device, dtype: torch.dtype, model: PreTrainedModel) -> bool:
    """Whether the GPU's variable-length kernel can be used: half precision, heads up to 256 wide, no dropout."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and width <= 256
            and float(getattr(config, "attention_dropout", 0.0) or 0.0) == 0.0)


@contextmanager
def installed(model: PreTrainedModel) -> Iterator[None]:
    """The model attends through `attend` in this block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Rows carry their own order; a pass without them is unpadded, so causality says all."""


def fits(model: PreTrainedModel, body: torch.nn.Module, tiled: bool) -> str | None:
    """None where packed rows get from this model what each row gets alone, else the reason they do not.

    Proved with rows that share a beginning and rows that do not, long enough to leave a short sliding window.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    config = model.config.get_text_config()
    vocabulary = int(config.vocab_size)
    longest = int(getattr(config, "max_position_embeddings", 64) or 64)
    draw = np.random.default_rng(0)
    common = draw.integers(0, vocabulary, min(9, longest - 6)).tolist()
    rows = [Row(str(i), "proof", ids, [UNSUPERVISED, *ids[1:]]) for i, ids in enumerate(
        [[*common, *draw.integers(0, vocabulary, n).tolist()] for n in (3, 5)]
        + [draw.integers(0, vocabulary, n).tolist() for n in (4, min(13, longest))])]
    packed = pack(rows)
    was_training = model.training
    model.eval()
    device = model.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else model.dtype
    try:
        with torch.no_grad(), installed(model):
            got = body(input_ids=torch.from_numpy(packed.input_ids)[None].to(device),
                       position_ids=torch.from_numpy(packed.positions)[None].to(device), use_cache=False,
                       packed_rows=RowsTensors.of(packed, tiled).to(device)).last_hidden_state[0].float()
        with torch.no_grad():
            for i, row in enumerate(rows):
                alone = body(input_ids=torch.tensor([row.input_ids], device=device),
                             use_cache=False).last_hidden_state[0].float()
                mine = got.index_select(0, torch.from_numpy(packed.predictor[packed.row == i]).to(device))
                truth = alone[:-1]
                if not bool(((mine - truth).abs().max() <= CLOSE[dtype] * truth.abs().max()).item()):
                    return "rows that lie end to end do not get what each gets alone"
    except (Unserved, TypeError) as error:  # a forward pass that takes no further arguments raises TypeError
        return str(error)
    finally:
        model.train(was_training)
    return None
