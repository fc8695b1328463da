"""The stages of the analyses that a cell asks for: samplings, continuations, and what is counted in them.

Floor 2, under the plan, which says how a stage and a set of questions are made. Definitions: docs/analyses.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from upft.analysis import AnalysisConfig
from upft.specs import (
    BranchSpec,
    ConsistencySpec,
    CoverageSpec,
    ErrorsSpec,
    GradeSpec,
    KlSpec,
    QuestionsSpec,
    SampleSpec,
    Spec,
)


class Keyed(Protocol):
    """A stage, as far as it is known here."""

    @property
    def key(self) -> str:
        """Of its artifact."""


S = TypeVar("S", bound=Keyed)


@dataclass(frozen=True)
class Inquiry(Generic[S]):
    """What the plan knows of a cell, of which the analyses' stages are made.

    make: (name, label, spec, inputs) -> stage. questions: the first so many. whole: a sampling of whole traces, one a question,
    of the analyses' temperature. gold: whether the questions have answers. train: whose model is compared with the base.
    """

    make: Callable[[str, str, Spec, Mapping[str, S]], S]
    questions: Callable[[int], QuestionsSpec]
    whole: SampleSpec
    gold: bool
    train: S
    diagnosis: S
    prefix_len: int | None

    def stages(self, asked: AnalysisConfig) -> dict[str, S]:
        """Stages by the role they play in the report: analysis:NAME what was found, analysis:NAME:WHAT what it took."""
        made: dict[str, S] = {}
        for name, stages in (("consistency", self._consistency), ("errors", self._errors), ("coverage", self._coverage),
                             ("kl", self._kl)):
            if getattr(asked, name) is not None:
                for what, stage in stages(asked).items():
                    made[f"analysis:{name}:{what}" if what else f"analysis:{name}"] = stage
        return made

    def _sampled(self, label: str, questions: int, n: int, prefix: int | None = None, train: S | None = None) -> S:
        """Whole traces, or (prefix) the first so many tokens of each; by the base model, or by what training made of it."""
        spec = replace(self.whole, questions=self.questions(questions), n=n, trained=None if train is None else train.key)
        if prefix is not None:
            spec = replace(spec, max_tokens=prefix, trace_ratio=0.0)
        return self.make("sample", label, spec, {} if train is None else {"model": train})

    def _graded(self, label: str, samples: S) -> S:
        return self.make("grade", label, GradeSpec(self.whole.model), {"samples": samples})

    def _branched(self, label: str, inputs: Mapping[str, S], at: list[int], traces: int, n: int, train: S | None = None) -> S:
        spec = BranchSpec(self.whole.model, self.whole.sampling, tuple(at), traces, "grades" in inputs, n,
                          self.whole.trace_max_tokens, None if train is None else train.key)
        return self.make("branch", label, spec, inputs if train is None else {**inputs, "model": train})

    def _consistency(self, asked: AnalysisConfig) -> dict[str, S]:
        given = asked.consistency
        assert given is not None  # as for the others: asked for
        samples = self._sampled("sample traces to count", given.questions, given.n, None if given.whole else given.longest)
        made = {"samples": samples}
        inputs = {"samples": samples}
        if given.whole and given.edges and self.gold:
            made["grades"] = inputs["grades"] = self._graded("grade counted traces", samples)
        spec = ConsistencySpec(given.longest, tuple(given.edges) if "grades" in inputs else ())
        return {**made, "": self.make("consistency", "count prefixes", spec, inputs)}

    def _errors(self, asked: AnalysisConfig) -> dict[str, S]:
        given = asked.errors
        assert given is not None
        samples = self._sampled("sample right and wrong", given.questions, given.n)
        grades = self._graded("grade right and wrong", samples)
        branches = self._branched("continue right and wrong", {"samples": samples, "grades": grades}, given.at, given.traces,
                                  given.continuations)
        outcomes = self._graded("grade continuations", branches)
        found = self.make("errors", "where errors begin", ErrorsSpec(given.margin, self.whole.sampling.seed),
                          {"branches": branches, "outcomes": outcomes})
        return {"samples": samples, "grades": grades, "branches": branches, "outcomes": outcomes, "": found}

    def _coverage(self, asked: AnalysisConfig) -> dict[str, S]:
        given = asked.coverage
        assert given is not None
        made: dict[str, S] = {}
        inputs: dict[str, S] = {}
        models: dict[str, S | None] = {"base": None, "trained": self.train}
        for proposer, train in models.items():
            made[f"prefixes {proposer}"] = self._sampled(f"prefixes of {proposer}", given.questions, given.traces, given.at[-1],
                                                         train)
        for solver, train in models.items():  # one model's continuations after the other's, so that an engine starts once
            for proposer in models:
                label = f"{proposer} by {solver}"
                branches = self._branched(f"continue {label}", {"samples": made[f"prefixes {proposer}"]}, given.at,
                                          given.traces, given.continuations, train)
                made[f"branches {label}"] = inputs[f"branches {label}"] = branches
                made[f"outcomes {label}"] = inputs[f"outcomes {label}"] = self._graded(f"grade {label}", branches)
        return {**made, "": self.make("coverage", "coverage and accuracy", CoverageSpec(self.whole.sampling.seed), inputs)}

    def _kl(self, asked: AnalysisConfig) -> dict[str, S]:
        given = asked.kl
        assert given is not None
        samples = self._sampled("sample traces to compare", given.questions, given.n)
        spec = KlSpec(self.whole.model, given.dtype, self.prefix_len, given.longest, self.whole.sampling.seed)
        inputs = {"samples": samples, "model": self.train}
        if self.prefix_len is None:
            inputs["diagnosis"] = self.diagnosis
        return {"samples": samples, "": self.make("kl", "divergence by position", spec, inputs)}
