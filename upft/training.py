"""The training's part of the configuration: optimisation and adapters.

Floor 0: no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from upft.choices import (
    Precision,
    Reduction,
)
from upft.errors import ConfigError, demand


@dataclass
class LoraConfig:
    """Low-rank adapters instead of full fine-tuning (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = 16
    """Rank r of each adapter."""
    alpha: float = 32.0
    """Scale: the adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the adapter."""
    targets: list[str] | None = None
    """Names of the linear layers that get one, such as [q_proj, v_proj]; null = every linear layer but the head."""
    merge: bool = False
    """Also save the weights with the adapter added; the evaluations then use those."""

    def __post_init__(self) -> None:
        demand(self.rank >= 1, "train.lora.rank", self.rank, "use 1 or more, such as 16")
        demand(self.alpha > 0, "train.lora.alpha", self.alpha, "use a positive number, such as twice the rank")
        demand(0 <= self.dropout < 1, "train.lora.dropout", self.dropout, "use a share in [0, 1)")
        if self.targets is not None:
            demand(len(self.targets) > 0, "train.lora.targets", self.targets, "name a layer, or null for all")


PURE_BF16_LR = 1e-4
"""Below this rate bf16 weights rounded to the nearest lose most updates: they move in steps of 2^-8 of their size."""


@dataclass
class TrainConfig:
    """Optimisation. AdamW, warm-up then constant rate."""

    epochs: int = MISSING
    """Passes over the rows."""
    lr: float = MISSING
    """Peak learning rate."""
    beta1: float = 0.9
    """AdamW beta 1."""
    beta2: float = 0.95
    """AdamW beta 2."""
    eps: float = 1e-8
    """AdamW epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    warmup_ratio: float = 0.03
    """Share of all steps over which the rate rises linearly."""
    batch_size: int = 64
    """Rows an optimiser step, over all devices."""
    grad_clip: float | None = 1.0
    """Largest gradient norm; null = no clipping."""
    max_length: int = MISSING
    """Longest row, tokens; longer rows are left out and counted."""
    reduction: Reduction = Reduction.sequence
    """Loss of a step: mean over rows of each row's token mean, or mean over tokens."""
    precision: Precision = Precision.bf16_mixed
    """Arithmetic of the forward and backward pass, and format of the weights while they are trained."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; null = all weights. `train=lora` fills it in."""
    seed: int = MISSING
    """Order of the rows, dropout, first adapters, rounding; as it comes the cell's seed. Trainings that differ in it alone
    share their samples and the base model's answers."""

    def __post_init__(self) -> None:
        if self.seed != MISSING:
            demand(self.seed >= 0, "train.seed", self.seed, "use 0 or more")
        if self.epochs != MISSING:
            demand(self.epochs >= 1, "train.epochs", self.epochs, "use 1 or more")
        if self.lr != MISSING:
            demand(0 < self.lr < 1, "train.lr", self.lr, "use a rate in (0, 1); the paper uses 2e-6")
        demand(0 <= self.beta1 < 1, "train.beta1", self.beta1, "use a value in [0, 1)")
        demand(0 <= self.beta2 < 1, "train.beta2", self.beta2, "use a value in [0, 1)")
        demand(self.eps > 0, "train.eps", self.eps, "use a small positive number, such as 1e-8")
        demand(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "use 0 or more")
        demand(0 <= self.warmup_ratio <= 1, "train.warmup_ratio", self.warmup_ratio, "use a share from 0 to 1")
        demand(self.batch_size >= 1, "train.batch_size", self.batch_size, "use 1 or more")
        if self.grad_clip is not None:
            demand(self.grad_clip > 0, "train.grad_clip", self.grad_clip, "use a positive norm, or null")
        if self.max_length != MISSING:
            demand(self.max_length >= 2, "train.max_length", self.max_length, "use 2 or more")
        if self.lora is not None and self.precision in (Precision.bf16, Precision.bf16_stochastic):
            raise ConfigError(f"train.precision={self.precision.name} beside train.lora: adapters are few and stay in fp32",
                              "use train.precision=bf16_mixed (the frozen weights are then in bf16), or fp32")
        if self.precision is Precision.bf16 and self.lr != MISSING:
            demand(self.lr >= PURE_BF16_LR, "train.lr", self.lr,
                   f"with train.precision=bf16 updates this small are rounded away (from {PURE_BF16_LR:g} on they show): "
                   "use train.precision=bf16_stochastic (same memory) or bf16_mixed")
