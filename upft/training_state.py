"""What a training's state is made of: trained weights, the optimiser's moments, random generators; as flat tensors.

Floor 4. How they are written is not known here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch


def flatten_model(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """`model.NAME` -> what training changes: the parameters that are trained, and the buffers that belong to the state."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()
            if name in trained or (name not in parameters and isinstance(tensor, torch.Tensor))}


def flatten_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """`optim.NAME.KEY` -> the optimiser's state, made first where it is not there yet (see `initialise`)."""
    initialise(optimizer)
    return {f"optim.{name}.{key}": tensor for name, p in model.named_parameters() if p in optimizer.state
            for key, tensor in optimizer.state[p].items()}


def initialise(optimizer: torch.optim.Optimizer) -> None:
    """Give an AdamW that has not stepped yet the state of its first step, so that there is something to load into."""
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")  # where torch keeps the count of steps
        for p in group["params"]:
            if p.requires_grad and not optimizer.state[p]:
                optimizer.state[p].update(
                    step=torch.zeros((), dtype=torch.float32, device=p.device if on_device else "cpu"),
                    exp_avg=torch.zeros_like(p, memory_format=torch.preserve_format),
                    exp_avg_sq=torch.zeros_like(p, memory_format=torch.preserve_format))


def random_state() -> dict[str, torch.Tensor]:
    """The state of the random generators of this process: torch's (with the current GPU's), Python's and numpy's."""
    _, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    out = {"torch": torch.get_rng_state(), "python": torch.tensor(words, dtype=torch.int64),
           "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
           "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]]),
           "numpy_gauss": torch.tensor(legacy["gauss"], dtype=torch.float64)}
    if torch.cuda.is_available():
        out["cuda"] = torch.cuda.get_rng_state()
    return out


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave. A GPU's state is left alone where there is none now, or was none then."""
    torch.set_rng_state(state["torch"])
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    *key, pos, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(key, dtype=np.uint32), pos, has_gauss, float(state["numpy_gauss"])))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
