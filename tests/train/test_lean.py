"""Norms and gated MLPs that keep less: the same forward pass bit by bit, the same gradients, fewer bytes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from upft.lean import lean
from upft.matmul import widened

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64}


def made(kind: str, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**SIZES))
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, 1.0, 0.2)
    return model.to(dtype)


def stepped(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """(logits, gradients, bytes kept for the backward pass) of one pass."""
    ids = torch.randint(0, 97, (2, 13), generator=torch.Generator().manual_seed(1))
    kept: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(note, lambda t: t):
        logits = model(input_ids=ids, use_cache=False).logits
    (logits.float().log_softmax(-1)[..., 5].sum()).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-6), (torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_logits_are_equal_and_gradients_agree(kind: str, dtype: torch.dtype, apart: float) -> None:
    model = made(kind, dtype)
    plain = stepped(copy.deepcopy(model))
    with lean(model):
        ours = stepped(model)
    assert torch.equal(ours[0], plain[0])
    assert ours[1].keys() == plain[1].keys()
    for name, truth in plain[1].items():
        assert (ours[1][name] - truth).norm() <= apart * truth.norm(), name


def test_widened_products_beneath_change_nothing() -> None:
    model = made("llama", torch.bfloat16)
    plain = stepped(copy.deepcopy(model))
    with widened(model), lean(model):
        ours = stepped(model)
    for name, truth in plain[1].items():
        assert (ours[1][name].float() - truth.float()).norm() <= 0.03 * truth.float().norm(), name


def test_the_block_leaves_no_trace() -> None:
    model = made("llama", torch.float32)
    with lean(model):
        assert sum("forward" in vars(m) for m in model.modules()) == 2 * 3 + 1  # two norms and an MLP a layer, the last norm
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_module_that_only_looks_like_one_is_left_alone() -> None:
    class ShiftedRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))
            self.variance_epsilon = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    model = torch.nn.Sequential(ShiftedRMSNorm())
    with lean(model):
        assert "forward" not in vars(model[0])


def test_less_is_kept() -> None:
    """Measured where it counts: resident bytes between the forward and the backward pass of one wide MLP."""
    import psutil
    from transformers.models.llama.modeling_llama import LlamaMLP

    mlp = LlamaMLP(LlamaConfig(**{**SIZES, "hidden_size": 64, "intermediate_size": 1024}))
    x = torch.randn(1, 20_000, 64, requires_grad=True)  # 80 MB a tensor of the widest size
    process = psutil.Process()

    def held() -> int:
        before = process.memory_info().rss
        out = mlp(x)
        grown = process.memory_info().rss - before
        out.sum().backward()
        return grown

    plain = held()
    with lean(torch.nn.Sequential(mlp)):
        ours = held()
    assert ours <= 0.7 * plain  # gate and up, of gate, act(gate), up and their product
