"""Norms and gated MLPs that keep less for the backward pass, put into a Hugging Face model while it trains.

Floor 4. The library's RMSNorm keeps an fp32 copy of its input and the normed tokens beside what the next layer
keeps; its gated MLP keeps five tensors of the widest size, of which two decide the others. Here a norm keeps its
input and one number a token, an MLP its two products; the rest is computed again when the backward pass
comes by (elementwise: a few percent of a step's time, about half of its activations). Forward passes are the
same bit by bit, which is not guessed but proved on a few numbers before a module is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

PROVED_ON = 4
"""Tokens of the proof."""


@contextmanager
def lean(model: torch.nn.Module) -> Iterator[None]:
    """The model's norms and gated MLPs keep less in this block; what does not prove equal stays as it is."""
    changed: list[torch.nn.Module] = []
    for module in model.modules():
        made = _norm(module) or _gated(module)
        if made is not None and _same(module, made):
            module.forward = made
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own shows again


def _norm(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward pass for an RMSNorm of Transformers, else None."""
    eps = getattr(module, "variance_epsilon", None)
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    if not isinstance(eps, float) or not isinstance(weight, torch.nn.Parameter):
        return None

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        out = _Norm.apply(hidden_states, module.weight, eps)
        assert isinstance(out, torch.Tensor)
        return out

    return forward


class _Norm(torch.autograd.Function):
    """weight * round(x / rms(x)). x: [..., n]; weight: [n]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed, g = x.to(torch.float32).mul_(scale) if x.dtype is not torch.float32 else x * scale, grads[0].to(torch.float32)
        to_weight = (g * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        to_x = None
        if ctx.needs_input_grad[0]:
            g = g * weight
            along = (g * normed).mean(-1, keepdim=True)
            to_x = g.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype)
        return to_x, to_weight, None


def _gated(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A forward pass for down(act(gate(x)) * up(x)), else None."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    if not all(isinstance(part, torch.nn.Module) for part in parts):
        return None
    gate_proj, up_proj, down_proj, act = (part for part in parts if part is not None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up = gate_proj(x), up_proj(x)
        recipe = _Recipe(gate.detach(), up.detach(), act)
        product = _Gate.apply(gate, up, recipe)
        assert isinstance(product, torch.Tensor)
        place, size = product.data_ptr(), product.numel()  # not the product: autograd holds on to these two functions

        def keep(tensor: torch.Tensor) -> Any:
            again = tensor.data_ptr() == place and tensor.numel() == size and tensor.is_contiguous()
            return (recipe, tensor.shape) if again else tensor

        def take(kept: Any) -> torch.Tensor:
            return kept if isinstance(kept, torch.Tensor) else kept[0]().view(kept[1])

        with torch.autograd.graph.saved_tensors_hooks(keep, take):
            out = down_proj(product)
        assert isinstance(out, torch.Tensor)
        return out

    return forward


class _Recipe:
    """How to compute act(gate) * up again, and the way back through it."""

    def __init__(self, gate: torch.Tensor, up: torch.Tensor, act: torch.nn.Module) -> None:
        self._gate, self._up, self._act = gate, up, act
        self._opened: tuple[torch.Tensor, torch.Tensor] | None = None

    def __call__(self) -> torch.Tensor:
        """The product, for what comes behind it in the backward pass; `slopes` follows at once and need not repeat it."""
        self._opened = self._open()
        return self._opened[1].detach() * self._up

    def product(self) -> torch.Tensor:
        """Forward."""
        with torch.no_grad():
            return self._act(self._gate) * self._up

    def slopes(self, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of gate and up, given that of the product."""
        leaf, opened = self._opened if self._opened is not None else self._open()
        self._opened = None
        (to_gate,) = torch.autograd.grad(opened, leaf, grad * self._up)
        return to_gate, grad * opened.detach()

    def _open(self) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = self._gate.detach().requires_grad_()
            return leaf, self._act(leaf)


class _Gate(torch.autograd.Function):
    """act(gate) * up, keeping gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, recipe: _Recipe) -> torch.Tensor:
        ctx.recipe = recipe
        out = recipe.product()
        assert isinstance(out, torch.Tensor)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        recipe, ctx.recipe = ctx.recipe, None  # else it would hold its two tensors until the last layer is done
        return (*recipe.slopes(grads[0]), None)


def _same(module: torch.nn.Module, made: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether a new forward pass gives what the module gives, bit by bit."""
    first = next(iter(module.parameters()))
    width = first.shape[-1]  # of an MLP the input of its first layer; of a norm its only size
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, PROVED_ON, width, generator=draw).to(first.device, first.dtype)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.equal(module.forward(x), made(x))  # not called as a module: hooks are for real passes
    except (RuntimeError, TypeError):  # it wants another input: not the module it looks like
        return False
    finally:
        module.train(was_training)
