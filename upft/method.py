"""The training method's part of the configuration, and what each method asks of the stages before training.

Floor 0: no torch. Sources and choices: docs/methods.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from upft.choices import MethodName, Score
from upft.errors import ConfigError, demand


@dataclass
class VerifierConfig:
    """V-STaR's verifier: trained with DPO on right and wrong traces, it chooses among several answers."""

    beta: float = 0.1
    """DPO's beta: how dear it is to leave the reference model."""
    pairs: int | None = 1
    """Most pairs of a right and a wrong trace a question; null = as many as both sides have."""
    lr: float = MISSING
    """Peak learning rate of the verifier."""
    epochs: int = MISSING
    """Passes over the pairs."""
    batch_size: int = MISSING
    """Pairs an optimiser step."""
    n: int = 16
    """Answers a question that it chooses from."""
    temperature: float = 0.6
    """Softmax temperature of these answers."""
    score: Score = Score.likelihood
    """What answers are ranked by."""

    def __post_init__(self) -> None:
        demand(self.beta > 0, "method.verifier.beta", self.beta, "use a positive number, such as 0.1")
        if self.pairs is not None:
            demand(self.pairs >= 1, "method.verifier.pairs", self.pairs, "use 1 or more, or null for all")
        if self.lr != MISSING:
            demand(0 < self.lr < 1, "method.verifier.lr", self.lr, "use a rate in (0, 1)")
        if self.epochs != MISSING:
            demand(self.epochs >= 1, "method.verifier.epochs", self.epochs, "use 1 or more")
        if self.batch_size != MISSING:
            demand(self.batch_size >= 1, "method.verifier.batch_size", self.batch_size, "use 1 or more")
        demand(self.n >= 2, "method.verifier.n", self.n, "use 2 or more: of one answer there is nothing to choose")
        demand(self.temperature > 0, "method.verifier.temperature", self.temperature,
               "use a temperature above 0: greedy answers would all be the same")


@dataclass
class MethodConfig:
    """The training method."""

    name: MethodName = MISSING
    """upft = prefixes, sft = one whole trace, rft = whole traces that are right, vstar = rft and a verifier."""
    n: int = MISSING
    """Traces a question that rows are chosen from (sample.n takes it unless given)."""
    label_filter: bool = False
    """UPFT: prefixes of traces that end right only."""
    cap: int | None = 1
    """Most rows a question; null = as many as there are."""
    rounds: int = 1
    """Times to sample and train; each round samples from the model of the one before."""
    restart: bool = True
    """Each round trains the base model anew; false = it goes on training the model that sampled."""
    verifier: VerifierConfig = MISSING
    """V-STaR's verifier; of no account for the others."""

    def __post_init__(self) -> None:
        if self.n != MISSING:
            demand(self.n >= 1, "method.n", self.n, "use 1 or more")
        if self.cap is not None:
            demand(self.cap >= 1, "method.cap", self.cap, "use 1 or more, or null for all")
        demand(self.rounds >= 1, "method.rounds", self.rounds, "use 1 or more")
        if self.name != MISSING and self.label_filter and self.name is not MethodName.upft:
            raise ConfigError(f"method.label_filter=true with method.name={self.name.name}: it is UPFT's",
                              "use method=upft; whole traces that are right are method=rft")

    @property
    def graded(self) -> bool:
        """Whether traces are kept by their answers, so that the questions need gold ones."""
        return self.label_filter or self.name in (MethodName.rft, MethodName.vstar)

    @property
    def verifies(self) -> bool:
        """Whether a verifier chooses among answers."""
        return self.name is MethodName.vstar

    @property
    def whole(self) -> bool:
        """Whether every row is a whole trace."""
        return self.name is not MethodName.upft

    @property
    def samples_whole(self) -> bool:
        """Whether every trace must be sampled to its end: to be a row, or to be graded."""
        return self.whole or self.label_filter

    @property
    def title(self) -> str:
        """Its name as people write it."""
        name = {MethodName.vstar: "V-STaR"}.get(self.name, self.name.name.upper())
        filtered = " + label filter" if self.label_filter else ""
        return f"{name}{filtered}" + (f", {self.rounds} rounds" if self.rounds > 1 else "")
