"""The optimiser of each training precision, and an AdamW for weights that are kept in bf16.

Floor 4. A bf16 weight has 8 bits of mantissa: a step smaller than 1/512 of it is rounded away, and at the rates
of fine-tuning nearly all are. `StochasticAdamW` computes in fp32 and rounds up or down by chance, with odds that
make the mean exact, so that small steps add up. Schedules, clipping and checkpoints are not known here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any, overload

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from upft.choices import Precision
from upft.errors import TrainError

CPU_CHUNK = 2**17
"""Elements at a time on a CPU: their fp32 copies stay in its cache."""
GPU_CHUNK = 2**24
"""Elements at a time on a GPU: 128 MiB of random words."""
LARGEST = torch.finfo(torch.bfloat16).max


def build(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], precision: Precision, *, lr: float,
          betas: tuple[float, float], eps: float, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained; weight decay on matrices only (not on norms and biases).

    bf16_stochastic: `StochasticAdamW`, unless no trained parameter is bf16 (LoRA adapters are fp32); else
    PyTorch's, fused. seed: of the rounding. Raises TrainError when nothing is to be trained, and for a bf16
    parameter where the precision promises fp32 ones.
    """
    trained = [(name, p) for name, p in named_parameters if p.requires_grad]
    if not trained:
        raise TrainError("no parameter of the model is to be trained", "set requires_grad on those that are")
    low = [name for name, p in trained if p.dtype is not torch.float32]
    if low and precision in (Precision.fp32, Precision.bf16_mixed):
        raise TrainError(f"train.precision={precision.name}: {low[0]} is not in fp32, as weights that are trained must be",
                         "load the model with dtype=torch.float32, or set train.precision=bf16_stochastic")
    groups: list[dict[str, Any]] = [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0}]
    groups = [g for g in groups if g["params"]]
    if precision is Precision.bf16_stochastic and low:
        return StochasticAdamW(groups, lr=lr, betas=betas, eps=eps, seed=seed)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def round_stochastically(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """fp32 -> bf16: one of the two neighbours, with the odds that make the expectation the value.

    noise: int32 of the same shape, each number uniform on 0..65535; it is added below the bits that stay, and
    what is below is cut off, so a carry happens with just the odds wanted, for either sign. A value that bf16
    has, inf and nan stay themselves; a finite value beyond the largest of bf16 becomes that one, never inf.
    """
    rounded = ((values.view(torch.int32) + noise) & -65536).view(torch.float32)
    beyond = torch.where(values.isinf(), values, values.clamp(-LARGEST, LARGEST))  # clamp leaves nan as it is
    return torch.where(values.abs() <= LARGEST, rounded, beyond).to(torch.bfloat16)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with weights and both moments in bf16, each rounded by chance after a step in fp32.

    The random bits follow from (seed, step, place of the parameter among all, shard of it) alone: a resumed run
    repeats them, every rank that holds the same numbers draws the same, and no other random state is read or
    moved. CPUs and GPUs draw different ones. Needs 6 bytes a parameter beside its gradient and, while it steps,
    fp32 copies of one chunk. A parameter that is not bf16 is updated as by `torch.optim.AdamW`. State: `step`
    (fp32 scalar on the CPU), `exp_avg` and `exp_avg_sq` (like the parameter; a DTensor has DTensors).
    """

    def __init__(self, params: Iterable[Any], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, seed: int) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed})
        self._chunk: int | None = None  # None: by device

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step for each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        place = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group, place)
                place += 1
        return loss

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        beta1, beta2 = group["betas"]
        if p.dtype is not torch.bfloat16:
            adamw([p], [grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]], amsgrad=False, beta1=beta1,
                  beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)
            return
        state["step"] += 1
        step = int(state["step"])
        tensors = [_local(t) for t in (p, grad, state["exp_avg"], state["exp_avg_sq"])]
        flat = [t.reshape(-1) for t in tensors]
        # m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), with the corrections drawn out of the elementwise part
        root = (1 - beta2**step) ** 0.5
        numbers = (1 - beta1, beta2, 1 - beta2, group["eps"] * root, -group["lr"] * root / (1 - beta1**step),
                   -group["lr"] * group["weight_decay"])
        words = np.random.SeedSequence([group["seed"] % 2**64, step, place, *_shard(p)])
        if p.device.type == "cpu":
            _step_on_cpu(flat, numbers, words, self._chunk or CPU_CHUNK)
        else:
            _step_on_gpu(flat, numbers, words, self._chunk or GPU_CHUNK)
        for tensor, values in zip(tensors, flat, strict=True):
            if not tensor.is_contiguous():  # its flat form was a copy
                tensor.copy_(values.view_as(tensor))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(tensor: torch.Tensor) -> list[int]:
    """Which shard of the whole this rank holds; nothing for a tensor that every rank holds whole."""
    if not isinstance(tensor, DTensor):
        return []
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return []
    return [c for c, placed in zip(coordinate, tensor.placements, strict=True) if placed.is_shard()]


Numbers = tuple[float, float, float, float, float, float]
"""1 - beta1, beta2, 1 - beta2, eps, -rate, -rate of decay; eps and rate with the bias corrections in them."""


def _step_on_cpu(flat: list[torch.Tensor], numbers: Numbers, words: np.random.SeedSequence, chunk: int) -> None:
    """A step on bf16 weights, gradients and moments [n], in place, through fp32 buffers used again for each chunk."""
    one_less_beta1, beta2, one_less_beta2, eps, rate, decay = numbers
    bits = np.random.SFC64(words)  # numpy keeps this stream, and draws it three times as fast as torch's generator
    count = flat[0].numel()
    size = min(chunk, count)
    buffers = [torch.empty(size) for _ in range(4)]
    noises = torch.empty(size, dtype=torch.int32)
    for start in range(0, count, chunk):
        parts = [t[start:start + chunk] for t in flat]
        n = len(parts[0])
        new, work, mean, square = (b[:n].copy_(part) for b, part in zip(buffers, parts, strict=True))
        mean.lerp_(work, one_less_beta1)
        square.mul_(beta2).addcmul_(work, work, value=one_less_beta2)
        torch.sqrt(square, out=work).add_(eps)
        if decay != 0:
            new.add_(new, alpha=decay)
        new.addcdiv_(mean, work, value=rate)
        low, high = torch.aminmax(new)  # nan where there is one, as in max; a mean out of bounds takes the weight with it
        ordinary = low.item() >= -LARGEST and high.item() <= LARGEST and square.max().item() <= LARGEST
        for values, out in ((new, parts[0]), (mean, parts[2]), (square, parts[3])):
            noise = noises[:n]
            np.copyto(noise.numpy(), bits.random_raw(-(-n // 4)).view(np.uint16)[:n])  # torch converts uint16 slowly
            if ordinary:
                values.view(torch.int32).add_(noise).bitwise_and_(-65536)  # `round_stochastically`, in place
                out.copy_(values)
            else:
                out.copy_(round_stochastically(values, noise))


def _step_on_gpu(flat: list[torch.Tensor], numbers: Numbers, words: np.random.SeedSequence, chunk: int) -> None:
    """The same in one kernel a chunk, where torch can compile one; works on any device."""
    count, device = flat[0].numel(), flat[0].device
    generator = torch.Generator(device).manual_seed(int(words.generate_state(1, np.uint64)[0]))
    scalars = torch.tensor(numbers, dtype=torch.float32, device=device)  # as numbers they would be compiled in
    bits = torch.empty(min(chunk, count), dtype=torch.int64, device=device)
    kernel = _kernel(device)
    for start in range(0, count, chunk):
        parts = [t[start:start + chunk].data for t in flat]  # .data is no view: of views a compiler looks at the whole
        kernel(*parts, bits[:len(parts[0])].random_(generator=generator).data, scalars)


def _elementwise(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, bits: torch.Tensor,
                 scalars: torch.Tensor) -> None:
    """One step of flat bf16 tensors, in place. bits: int64, 48 random ones below; scalars: [6], see `Numbers`."""
    one_less_beta1, beta2, one_less_beta2, eps, rate, decay = scalars.unbind()
    grad, old, mean = g.float(), p.float(), m.float()
    mean = mean + (grad - mean) * one_less_beta1
    square = v.float() * beta2 + grad * grad * one_less_beta2
    new = old + old * decay
    new = new + rate * mean / (square.sqrt() + eps)
    noise = [((bits >> shift) & 65535).to(torch.int32) for shift in (0, 16, 32)]
    p.copy_(round_stochastically(new, noise[0]))
    m.copy_(round_stochastically(mean, noise[1]))
    v.copy_(round_stochastically(square, noise[2]))


@cache
def _kernel(device: torch.device) -> Callable[..., None]:
    """`_elementwise`, compiled where that works: tried out on a few numbers, for a compiler can be missing or broken."""
    if device.type == "cpu" or find_spec("triton") is None:
        return _elementwise
    compiled: Callable[..., None] = torch.compile(_elementwise, dynamic=True, fullgraph=True)
    try:
        tensors = [torch.zeros(64, dtype=torch.bfloat16, device=device) for _ in range(4)]
        compiled(*tensors, torch.zeros(64, dtype=torch.int64, device=device), torch.ones(6, device=device))
    except Exception as error:  # whatever a foreign compiler raises; the step can do without it
        warnings.warn(f"the optimiser's kernel cannot be compiled ({type(error).__name__}); it runs several times slower",
                      stacklevel=2)
        return _elementwise
    return compiled
