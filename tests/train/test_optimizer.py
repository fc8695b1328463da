"""Stochastic rounding by its statistics, and AdamW with it against AdamW in fp32."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable

import pytest
import torch

from upft import optimizer as optimizer_module
from upft.choices import Precision
from upft.errors import TrainError
from upft.optimizer import LARGEST, StochasticAdamW, build, round_stochastically

DRAWS = 100_000


def neighbours(value: float) -> tuple[float, float]:
    """The bf16 numbers around a value, towards 0 and away from it."""
    bits = torch.tensor(value).view(torch.int32) & -65536
    return float(bits.view(torch.float32)), float((bits + 65536).view(torch.float32))


def rounded(value: float, seed: int = 0) -> torch.Tensor:
    noise = torch.randint(0, 65536, (DRAWS,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    return round_stochastically(torch.full((DRAWS,), value), noise)


@pytest.mark.parametrize("value", [1.003, -1.003, 0.999, -0.02001, 3.0e38, -3.0e38, 1.23e-30, 5.0e-39, -5.0e-39, 1e5 + 1])
def test_the_mean_of_rounded_values_is_the_value(value: float) -> None:
    """Only the two neighbours come out, with the odds that make the expectation exact (subnormal numbers included)."""
    value = float(torch.tensor(value))
    near, far = neighbours(value)
    assert near != value, "this value was to be between two"
    out = rounded(value).double()
    assert set(out.unique().tolist()) == {near, far}
    odds = (value - near) / (far - near)
    share = float((out == far).double().mean())
    assert abs(share - odds) < 5 * math.sqrt(odds * (1 - odds) / DRAWS)


def test_every_noise_counts_once() -> None:
    """Over all 65,536 noises a value with k sixteen-bit parts above its neighbour goes up exactly k times."""
    noise = torch.arange(65536, dtype=torch.int32)
    for sign in (1.0, -1.0):
        for k in (1, 2, 777, 32768, 65535):
            value = (torch.tensor(sign).view(torch.int32) + k).view(torch.float32)
            out = round_stochastically(value.expand(65536).contiguous(), noise)
            assert int((out != sign).sum()) == k


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.5, 2.0**-126, LARGEST, -LARGEST, math.inf, -math.inf, 9.1835e-41])
def test_what_bf16_has_stays_itself(value: float) -> None:
    value = float(torch.tensor(value).to(torch.bfloat16))
    assert set(rounded(value).double().unique().tolist()) == {value}
    assert bool((rounded(value).signbit() == torch.tensor(value).signbit()).all()), "0 keeps its sign"


def test_large_numbers_do_not_become_infinite_and_nan_stays() -> None:
    largest = torch.finfo(torch.float32).max
    assert largest > LARGEST
    for sign in (1, -1):
        assert set(rounded(sign * largest).double().unique().tolist()) == {sign * LARGEST}
    odd = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)  # all nan
    for noise in (0, 1, 65535):
        assert bool(round_stochastically(odd, torch.full((4,), noise, dtype=torch.int32)).isnan().all())


def weights(dtype: torch.dtype, count: int = 20_000) -> torch.nn.Parameter:
    """Sizes 0.02 to 1, evenly in the logarithm, both signs; exact in bf16."""
    draw = torch.Generator().manual_seed(1)
    size = 0.02 * 50 ** torch.rand(count, generator=draw)
    sign = torch.randint(0, 2, (count,), generator=draw) * 2.0 - 1
    return torch.nn.Parameter((size * sign).to(torch.bfloat16).to(dtype).reshape(100, -1))


def gradients(steps: int) -> list[torch.Tensor]:
    """Much the same at each step: 0.01 with 30% noise."""
    draw = torch.Generator().manual_seed(2)
    return [0.01 * (1 + 0.3 * torch.randn(100, 200, generator=draw)) for _ in range(steps)]


def train(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, grads: list[torch.Tensor]) -> torch.Tensor:
    """Displacement after the steps: fp64."""
    before = p.detach().double()
    for grad in grads:
        p.grad = grad.to(p.dtype)
        optimizer.step()
    return p.detach().double() - before


SETTINGS = {"lr": 2e-6, "betas": (0.9, 0.95), "eps": 1e-8}


def test_plain_bf16_loses_small_updates_and_stochastic_rounding_does_not() -> None:
    """At the rate of the paper: 200 steps of 2e-6 are 4e-4, a hundredth to a half of a weight's last bit."""
    grads = gradients(200)
    moved = {}
    for precision, dtype in ((Precision.fp32, torch.float32), (Precision.bf16, torch.bfloat16),
                             (Precision.bf16_stochastic, torch.bfloat16)):
        p = weights(dtype)
        moved[precision] = train(p, build([("w", p)], precision, **SETTINGS, weight_decay=0.0, seed=0), grads)
    truth = float(moved[Precision.fp32].mean())
    assert truth == pytest.approx(-200 * 2e-6, rel=0.05), "a steady gradient moves a weight by the rate at each step"
    plain, fair = moved[Precision.bf16], moved[Precision.bf16_stochastic]
    assert float((plain == 0).double().mean()) > 0.99
    assert abs(float(plain.mean())) < 0.01 * abs(truth)
    # A weight's last bit is up to 2^-8 of it, so one displacement is noisy; the mean over 20,000 has this error:
    error = float(fair.std()) / math.sqrt(fair.numel())
    assert error < 0.02 * abs(truth)
    assert abs(float(fair.mean()) - truth) < 4 * error
    for low, high in ((0.02, 0.06), (0.06, 0.25), (0.25, 1.0)):  # small and large weights alike
        band = (weights(torch.float32).abs() >= low) & (weights(torch.float32).abs() < high)
        error = float(fair[band].std()) / math.sqrt(int(band.sum()))
        assert abs(float(fair[band].mean()) - float(moved[Precision.fp32][band].mean())) < 4 * error
    assert 0.05 < float((fair != 0).double().mean()) < 0.95, "some weights jump, the others wait"


def test_moments_are_right_in_the_mean() -> None:
    """After many steps both moments lie about those of fp32, without drift."""
    grads = gradients(100)
    exact, fair = weights(torch.float32), weights(torch.bfloat16)
    reference = torch.optim.AdamW([exact], **SETTINGS, weight_decay=0.0)
    ours = StochasticAdamW([fair], **SETTINGS, seed=5)
    grads = [g.to(torch.bfloat16).float() for g in grads]
    train(exact, reference, grads)
    train(fair, ours, grads)
    for key in ("exp_avg", "exp_avg_sq"):
        got, wanted = ours.state[fair][key], reference.state[exact][key]
        assert got.dtype is torch.bfloat16
        relative = (got.double() / wanted.double() - 1)
        assert float(relative.abs().max()) < 0.06
        assert abs(float(relative.mean())) < 4 * float(relative.std()) / math.sqrt(relative.numel()), key


def take_steps_beside_adamw(kernel: Callable[..., None] | None) -> None:
    """Weight decay, bias corrections and epsilon: each new number is a bf16 neighbour of fp32's, at large steps too.

    kernel: what stands for the kernel of a GPU; None = the loop for CPUs.
    """
    settings = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    exact, fair = weights(torch.float32), weights(torch.bfloat16)
    reference, ours = torch.optim.AdamW([exact], **settings), StochasticAdamW([fair], **settings, seed=0)
    moments = ("exp_avg", "exp_avg_sq")
    with pytest.MonkeyPatch.context() as patch:
        if kernel is not None:
            ours._chunk = 7777
            patch.setattr(optimizer_module, "_step_on_cpu", optimizer_module._step_on_gpu)
            patch.setattr(optimizer_module, "_kernel", lambda device: kernel)
        for grad in gradients(3):
            with torch.no_grad():  # from the same point
                exact.copy_(fair)
                for key in moments if ours.state[fair] else ():
                    reference.state[exact][key].copy_(ours.state[fair][key])
            exact.grad, fair.grad = grad.to(torch.bfloat16).float(), grad.to(torch.bfloat16)
            reference.step()
            ours.step()
            pairs = [(fair, exact), *((ours.state[fair][key], reference.state[exact][key]) for key in moments)]
            surprises = []
            for got, wanted in ((a.detach().float(), b.detach()) for a, b in pairs):
                near = (wanted.view(torch.int32) & -65536).view(torch.float32)
                far = ((wanted.view(torch.int32) & -65536) + 65536).view(torch.float32)
                off = (got != near) & (got != far)  # only where rounding in fp32 itself fell on the other side of one
                assert int(off.sum()) < 5
                assert bool(((got - wanted).abs() <= wanted.abs() * 2.0**-7).all())
                relative = ((got - wanted) / wanted).double()
                assert abs(float(relative.mean())) < 4 * float(relative.std()) / math.sqrt(relative.numel())
                surprises.append(((got == far).float() - (wanted - near) / (far - near)).flatten())
            linked = torch.corrcoef(torch.stack(surprises)) - torch.eye(3)
            assert float(linked.abs().max()) < 5 / math.sqrt(fair.numel()), "weight and moments share their bits"


def test_one_step_is_that_of_adamw_rounded() -> None:
    take_steps_beside_adamw(None)


def test_the_kernel_for_gpus_takes_the_same_step() -> None:
    take_steps_beside_adamw(optimizer_module._elementwise)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler on this machine")
def test_the_kernel_for_gpus_compiles_once_for_all_sizes() -> None:
    """For a CPU, in place of a GPU: chunks of 7777 and 4446 elements, after a trial with 64."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("inductor")
    kernel = torch.compile(optimizer_module._elementwise, dynamic=True, fullgraph=True, backend=counter)
    few = [torch.zeros(64, dtype=torch.bfloat16) for _ in range(4)]
    with torch.no_grad():
        kernel(*few, torch.zeros(64, dtype=torch.int64), torch.ones(6))
    take_steps_beside_adamw(kernel)
    assert counter.frame_count == 1


def some_model() -> torch.nn.Module:
    """Matrices and vectors in bf16, one norm in fp32, one layer frozen."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.LayerNorm(50), torch.nn.Linear(50, 7)).to(torch.bfloat16)
    model[1].float()
    model[2].bias.requires_grad_(False)
    return model


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
    optimizer.step()


def contents(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = [optimizer.state[p][key] for p in model.parameters() if p in optimizer.state for key in sorted(optimizer.state[p])]
    return [t.detach().clone() for t in [*model.parameters(), *state]]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    assert len(a) == len(b)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stochastic(model: torch.nn.Module, seed: int) -> torch.optim.Optimizer:
    return build(model.named_parameters(), Precision.bf16_stochastic, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1,
                 seed=seed)


def run(seed: int, steps: int = 6) -> list[torch.Tensor]:
    model = some_model()
    optimizer = stochastic(model, seed)
    for number in range(steps):
        step(model, optimizer, number)
    return contents(model, optimizer)


def test_the_seed_decides_and_nothing_else() -> None:
    first = run(seed=0)
    assert same(first, run(seed=0))
    assert not same(first, run(seed=1))
    assert same(run(seed=-1), run(seed=2**64 - 1)), "any integer is a seed"


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    ends = []
    for start in (1, 2):
        model = some_model()
        optimizer = stochastic(model, 0)
        torch.manual_seed(start)
        before = torch.get_rng_state()
        step(model, optimizer, 0)
        assert torch.equal(before, torch.get_rng_state())
        ends.append(contents(model, optimizer))
    assert same(*ends)


def test_resumed_from_its_state_dict_it_goes_on_bitwise() -> None:
    """Over a file of numbers, as a checkpoint is: state_dict -> copy -> a new optimiser, which has another seed till then."""
    model = some_model()
    optimizer = stochastic(model, 7)
    for number in range(3):
        step(model, optimizer, number)
    saved_model, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    resumed = some_model()
    resumed.load_state_dict(saved_model)
    other = stochastic(resumed, 8)
    other.load_state_dict(saved)
    assert same(contents(model, optimizer), contents(resumed, other))
    for number in range(3, 6):
        step(resumed, other, number)
    assert same(contents(resumed, other), run(seed=7))


def test_weights_decay_only_in_matrices_and_frozen_ones_are_left_out() -> None:
    for precision in Precision:
        model = some_model() if precision in (Precision.bf16, Precision.bf16_stochastic) else some_model().float()
        optimizer = build(model.named_parameters(), precision, lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.5, seed=0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for p in model.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        assert isinstance(optimizer, StochasticAdamW) == (precision is Precision.bf16_stochastic)
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                kept = (p / before[name]).detach().float()
                assert float(kept.mean()) == pytest.approx(0.95, abs=2e-3), name
            else:
                assert torch.equal(p, before[name]), name
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(before) - 1


def test_parameters_in_fp32_are_updated_as_by_torch() -> None:
    """Beside bf16 ones (norms that a model keeps in fp32), and alone (LoRA), where PyTorch's own optimiser serves."""
    ours, theirs = some_model(), some_model()
    a = stochastic(ours, 0)
    b = torch.optim.AdamW(list(theirs[1].parameters()), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for number in range(4):
        step(ours, a, number)
        for p, q in zip(ours[1].parameters(), theirs[1].parameters(), strict=True):
            q.grad = p.grad
        b.step()
    for p, q in zip(ours[1].parameters(), theirs[1].parameters(), strict=True):
        assert p.dtype is torch.float32
        assert torch.equal(p, q)
    alone = stochastic(some_model().float(), 0)
    assert type(alone) is torch.optim.AdamW
    assert alone.defaults["fused"]


def test_chunks_and_layout_change_no_expectation() -> None:
    """Other chunks are other draws of the same distribution; a transposed weight is updated where it lies."""
    grads = gradients(50)
    means = set()
    for chunk in (None, 333, 9_999):
        p = weights(torch.bfloat16)
        optimizer = StochasticAdamW([p], **SETTINGS, seed=0)
        optimizer._chunk = chunk
        moved = train(p, optimizer, grads)
        means.add(float(moved.mean()))
        assert abs(float(moved.mean()) + 50 * 2e-6) < 4 * float(moved.std()) / math.sqrt(moved.numel()), chunk
    assert len(means) == 3, "each was to draw its own"
    turned = torch.nn.Parameter(weights(torch.bfloat16).detach().t().contiguous().t())
    assert not turned.is_contiguous()
    moved = train(turned, StochasticAdamW([turned], **SETTINGS, seed=0), grads)
    assert abs(float(moved.mean()) + 50 * 2e-6) < 4 * float(moved.std()) / math.sqrt(moved.numel())


def test_steps_and_parameters_draw_different_bits() -> None:
    """Two equal weights with equal gradients part, and a step does not repeat the choices of the one before."""
    a, b = weights(torch.bfloat16), weights(torch.bfloat16)
    optimizer = StochasticAdamW([a, b], **SETTINGS, seed=0)
    grad = gradients(1)[0].to(torch.bfloat16)
    jumps = []
    for _ in range(2):
        before = a.detach().clone()
        a.grad = b.grad = grad
        optimizer.step()
        jumps.append(a.detach() != before)
        assert int((a != b).sum()) > 0
    first, second = (float(j.double().mean()) for j in jumps)
    assert min(first, second) > 0
    both = float((jumps[0] & jumps[1]).double().mean())
    assert both < 0.3 * min(first, second), "the second step repeats the choices of the first"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_gradient_shows_and_stays_where_it_is(bad: float) -> None:
    p = weights(torch.bfloat16)
    p.grad = gradients(1)[0].to(torch.bfloat16)
    p.grad[3, 5] = bad
    StochasticAdamW([p], **SETTINGS, seed=0).step()
    broken = p.detach().isnan()
    assert bool(broken[3, 5])
    assert int(broken.sum()) == 1


@pytest.mark.gpu
def test_on_a_gpu_it_moves_as_far_as_on_a_cpu() -> None:
    p = torch.nn.Parameter(weights(torch.bfloat16).detach().cuda())
    grads = [g.cuda() for g in gradients(200)]
    moved = train(p, StochasticAdamW([p], **SETTINGS, seed=0), grads)
    again = torch.nn.Parameter(weights(torch.bfloat16).detach().cuda())
    assert torch.equal(moved, train(again, StochasticAdamW([again], **SETTINGS, seed=0), grads))
    assert abs(float(moved.mean()) + 200 * 2e-6) < 4 * float(moved.std()) / math.sqrt(moved.numel()) + 0.05 * 4e-4


def test_what_cannot_be_right_is_refused() -> None:
    rest = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "seed": 0}
    for precision in (Precision.fp32, Precision.bf16_mixed):
        with pytest.raises(TrainError, match=r"0\.weight is not in fp32"):
            build(some_model().named_parameters(), precision, **rest)
    frozen = some_model().requires_grad_(False)
    with pytest.raises(TrainError, match="no parameter"):
        build(frozen.named_parameters(), Precision.fp32, **rest)
