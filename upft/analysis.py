"""The analyses' part of the configuration: what is asked about a model besides whether training helped.

Floor 0: no torch. Definitions, formulas and sources: docs/analyses.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from upft.choices import Dtype
from upft.errors import demand


@dataclass
class ConsistencyConfig:
    """Prefix self-consistency: how many different prefixes a model's traces of one question have, against their length."""

    questions: int = MISSING
    """Questions looked at, the first ones."""
    n: int = MISSING
    """Traces a question (the paper: up to 1000)."""
    whole: bool = MISSING
    """Sample traces to their end, so that questions can be told apart by difficulty; false = `longest` tokens of each."""
    longest: int = MISSING
    """Longest prefix counted, tokens."""
    edges: list[float] = MISSING
    """Shares of right traces at which a harder group of questions ends and an easier one begins; [] = one group."""

    def __post_init__(self) -> None:
        _at_least("consistency", questions=(self.questions, 2), n=(self.n, 2), longest=(self.longest, 1))
        if self.edges != MISSING:
            rising = all(a < b for a, b in zip([0.0, *self.edges], [*self.edges, 1.0], strict=True))
            demand(rising, "analysis.consistency.edges", self.edges, "use rising shares between 0 and 1, such as [0.25,0.75]")


@dataclass
class ErrorsConfig:
    """Where errors begin: continuations rolled out from the first tokens of right and of wrong traces."""

    questions: int = MISSING
    """Questions sampled, the first ones; those with right and wrong traces are looked at."""
    n: int = MISSING
    """Traces a question to choose from."""
    traces: int = MISSING
    """Most right, and most wrong, traces a question that continuations start from."""
    at: list[int] = MISSING
    """Prefix lengths to start from, tokens."""
    continuations: int = MISSING
    """Continuations of each different prefix."""
    margin: float = MISSING
    """The critical length is the first at which right traces' prefixes end right more often than wrong ones' by this share."""

    def __post_init__(self) -> None:
        _at_least("errors", questions=(self.questions, 2), n=(self.n, 2), traces=(self.traces, 1),
                  continuations=(self.continuations, 1))
        _rising("errors", self.at)
        if self.margin != MISSING:
            demand(0 < self.margin < 1, "analysis.errors.margin", self.margin, "use a share in (0, 1), such as 0.1")


@dataclass
class CoverageConfig:
    """Coverage and accuracy: what training moved, which prefixes are proposed or what becomes of them."""

    questions: int = MISSING
    """Questions looked at, the first ones."""
    traces: int = MISSING
    """Prefixes a question that each model proposes."""
    at: list[int] = MISSING
    """Lengths at which a solution is split in prefix and rest, tokens."""
    continuations: int = MISSING
    """Continuations of each different prefix by each model."""

    def __post_init__(self) -> None:
        _at_least("coverage", questions=(self.questions, 2), traces=(self.traces, 1), continuations=(self.continuations, 1))
        _rising("coverage", self.at)


@dataclass
class KlConfig:
    """Where training acts: divergence of the trained model from the base by token position, over the base model's traces."""

    questions: int = MISSING
    """Questions looked at, the first ones."""
    n: int = MISSING
    """Traces a question."""
    longest: int = MISSING
    """Last position of the curve, tokens; sums are over whole traces."""
    dtype: Dtype = MISSING
    """Number format in which both models compute, whatever model.dtype is. The rounding of bfloat16 is a floor under the
    divergence of models that lie close together."""

    def __post_init__(self) -> None:
        _at_least("kl", questions=(self.questions, 2), n=(self.n, 1), longest=(self.longest, 1))


@dataclass
class AnalysisConfig:
    """The analyses of a cell; each that is null is left out."""

    task: str | None = None
    """Whose questions are looked at: one of eval.tasks; null = the training questions."""
    temperature: float | None = None
    """Softmax temperature of the analyses' samples; null = sample.temperature."""
    consistency: ConsistencyConfig | None = None
    """`analysis=consistency` fills it in."""
    errors: ErrorsConfig | None = None
    """`analysis=errors` fills it in."""
    coverage: CoverageConfig | None = None
    """`analysis=coverage` fills it in."""
    kl: KlConfig | None = None
    """`analysis=kl` fills it in."""

    def __post_init__(self) -> None:
        if self.temperature is not None:
            demand(self.temperature > 0, "analysis.temperature", self.temperature,
                   "use a temperature above 0 (greedy traces of one question are all the same), or null")

    @property
    def graded(self) -> list[str]:
        """Names of the analyses asked for that need gold answers."""
        return [name for name in ("errors", "coverage") if getattr(self, name) is not None]


def _at_least(name: str, **given: tuple[int, int]) -> None:
    for field, (value, least) in given.items():
        if value != MISSING:
            demand(value >= least, f"analysis.{name}.{field}", value, f"use {least} or more")


def _rising(name: str, at: list[int]) -> None:
    if at != MISSING:
        demand(len(at) > 0 and all(a < b for a, b in zip([0, *at], at, strict=False)), f"analysis.{name}.at", at,
               "use rising numbers of tokens from 1 on, such as [1,2,4,8]")
