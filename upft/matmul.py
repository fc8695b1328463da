"""bf16 linear layers on CPUs whose bf16 matrix product is slower than their fp32 one.

Floor 4. A bf16 product multiplies bf16 numbers, adds up in fp32 and rounds once. Widening the operands, using
the fp32 product and rounding once does the same but for the order of the sum; on CPUs without fast bf16
instructions it takes half the time or less (docs/log.md). Whether to do so follows from the CPU's name and
features, not from a measurement, so that the same machine always rounds the same way.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def bf16_is_fast() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones.

    AMX does; so does AMD's AVX512-BF16 (two products a cycle). Intel's AVX512-BF16 without AMX issues half as
    many, and where there is none PyTorch emulates it. Other architectures are left to PyTorch.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0]
    except OSError:
        return True
    flags = described.partition("flags")[2].partition("\n")[0].split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in described)


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """The model's linear layers compute bf16 products in fp32 in this block (those that are plain nn.Linear)."""
    changed: list[torch.nn.Linear] = []
    for layer in model.modules():
        if type(layer) is torch.nn.Linear:
            layer.forward = _forward(layer)  # type: ignore[assignment,method-assign]
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward  # the class's own shows again


def _forward(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if low is not torch.bfloat16:
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        with torch.autocast("cpu", enabled=False):
            out = _Widened.apply(x.to(low), layer.weight)
            return out if layer.bias is None else out + layer.bias.to(low)

    return forward


class _Widened(torch.autograd.Function):
    """x @ weight.T with both rounded to bf16. x: [..., in] bf16; weight: [out, in], bf16 or fp32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return (x.float() @ _wide(weight).t()).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        g = grads[0].float()
        to_x = (g @ _wide(weight)).to(x.dtype) if ctx.needs_input_grad[0] else None
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (g.reshape(-1, g.shape[-1]).t() @ x.reshape(-1, x.shape[-1]).float()).to(weight.dtype)
        return to_x, to_weight


def _wide(weight: torch.Tensor) -> torch.Tensor:
    return weight.float() if weight.dtype is torch.bfloat16 else weight.bfloat16().float()
