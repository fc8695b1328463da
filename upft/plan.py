"""Config -> the stages of one experiment, each with exactly what its result depends on.

Floor 2. A stage's key is the hash of its spec (`upft.specs`) and of the keys upstream. Knows no torch; reads local files
only to hash them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from upft import config as c
from upft.choices import MethodName
from upft.hashing import SHARED, Hasher, canonical, digest
from upft.inquiry import Inquiry
from upft.method import VerifierConfig
from upft.origins import model_ref, model_spec, questions_spec, resolve_engine
from upft.specs import (
    BuildSpec,
    ContentRef,
    DiagnoseSpec,
    EvaluateSpec,
    GradeSpec,
    HubRef,
    JudgeSpec,
    LoraSpec,
    ModelSpec,
    PairSpec,
    PromptSpec,
    QuestionsSpec,
    ReferenceSpec,
    ReportSpec,
    SampleSpec,
    SamplingSpec,
    Spec,
    TrainSpec,
    VerifySpec,
)

VERSIONS = {"sample": 3, "diagnose": 1, "grade": 1, "build": 4, "pair": 1, "reference": 1, "train": 2, "evaluate": 2,
            "judge": 1, "verify": 1, "branch": 1, "consistency": 2, "errors": 2, "coverage": 3, "kl": 2, "report": 7}
"""Raised by hand when a stage's code changes what it would write for the same spec."""


@dataclass(frozen=True)
class Stage:
    """One node of the plan. `inputs` maps a role (such as `rows`) to the stage whose artifact plays it."""

    name: str
    label: str
    spec: Spec
    inputs: Mapping[str, Stage] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the key is the hash of."""
        return {
            "stage": self.name,
            "version": VERSIONS[self.name],
            "spec": canonical(self.spec),
            "inputs": {role: stage.key for role, stage in sorted(self.inputs.items())},
        }

    @cached_property
    def key(self) -> str:
        """20 hex digits that name the artifact."""
        return digest(self.identity)[:20]


@dataclass(frozen=True)
class Plan:
    """The stages of one cell, each after those it needs."""

    stages: tuple[Stage, ...]

    @property
    def report(self) -> Stage:
        """The last stage."""
        return self.stages[-1]

    def named(self, name: str) -> list[Stage]:
        """All stages of one name, in order."""
        return [stage for stage in self.stages if stage.name == name]


def plan(config: c.Config, hasher: Hasher | None = None) -> Plan:
    """The stages of one experiment.

    Raises ModelError or DataError when a named local folder or file is not there. Hub sources are not
    touched: their pinned revision is their content. hasher: null = the process's own.
    """
    return _Cell(config, hasher or SHARED).plan()


class _Cell:
    """One experiment's stages in the making."""

    def __init__(self, config: c.Config, hasher: Hasher) -> None:
        self.config, self.hasher = config, hasher
        self.model = model_spec(config.model, hasher)
        self.prompt = PromptSpec(config.model.system_prompt, config.model.user_template)
        self.lora = lora_spec(config.train.lora)
        self.length = None if config.method.whole else config.prefix.fixed
        self.made: dict[str, Stage] = {}
        """Stages by the role they play in the report, in order."""

    def plan(self) -> Plan:
        """All of them, each after those it needs."""
        config, tasks = self.config, tuple(self.config.eval.tasks)
        method = config.method
        pilot = self._pilot()
        train: Stage | None = None
        base: dict[str, Stage] = {}
        for number in range(1, method.rounds + 1):
            mark = "" if number == method.rounds else f":{number}"
            train = self._round(mark, number, train, pilot)
            if not base:  # next to the first sampling, so that one engine start serves both
                base = {f"base:{task}": self._evaluate(task, None) for task in tasks}
                self.made |= base
        assert train is not None  # rounds is 1 or more
        for task in tasks:
            answers = self._evaluate(task, train)
            self.made[f"{'generator' if method.verifies else 'trained'}:{task}"] = answers
        if method.verifies:
            self._verifier(method.verifier, train)
        if config.judge is not None:
            judged = {role: stage for role, stage in self.made.items() if role.partition(":")[0] in ("base", "trained")}
            self.made |= judgements(config.judge, judged, self.hasher)
        if config.analysis is not None:
            self.made |= self._inquiry(config.analysis, train).stages(config.analysis)
        report = Stage("report", "report", ReportSpec(
            title=f"{method.title} of {config.model.name} on {config.data.name}", model=config.model.name,
            data=config.data.name, method=method.name, prefix_len=self.length,
            ratio=1.0 if method.whole else config.prefix.ratio, seed=config.seed, tasks=tasks, label=method.title), self.made)
        order: dict[str, Stage] = {}

        def visit(stage: Stage) -> None:
            for upstream in stage.inputs.values():
                visit(upstream)
            order.setdefault(stage.key, stage)

        mark = "" if method.rounds == 1 else ":1"
        for stage in (self.made[f"samples{mark}"], self.made[f"diagnosis{mark}"], *base.values(), report):
            visit(stage)
        return Plan(tuple(order.values()))

    def _inquiry(self, asked: c.AnalysisConfig, train: Stage) -> Inquiry[Stage]:
        """What the analyses need to know of this cell."""
        config, task = self.config, asked.task
        source: c.Source = config.data if task is None else config.eval.tasks[task]
        key = "data" if task is None else f"eval.tasks.{task}"
        limit = None if task is None else config.eval.limit
        sampling = SamplingSpec(
            engine=resolve_engine(config.sample.engine, "sample.engine"), dtype=config.model.dtype,
            temperature=config.sample.temperature if asked.temperature is None else asked.temperature,
            top_p=config.sample.top_p, top_k=config.sample.top_k, seed=config.seed)

        def questions(count: int) -> QuestionsSpec:
            return questions_spec(source, key, self.hasher, count if limit is None else min(count, limit))

        longest = config.sample.trace_max_tokens
        return Inquiry(Stage, questions, SampleSpec(self.model, self.prompt, questions(1), sampling, 1, longest, 1.0, longest,
                                                    False),
                       source.answer_field is not None or source.arithmetic is not None, train, self.made["diagnosis"],
                       config.prefix.fixed)

    def _pilot(self) -> Stage | None:
        """The diagnosis of a pilot sampling, where the prefix length must be known before the sampling proper."""
        config = self.config
        if config.method.whole or self.length is not None or self._finds_its_length or not self._cuts:
            return None
        pilot = self._sampling(f"pilot {config.data.name}", config.diagnose.questions, config.diagnose.n,
                               config.diagnose.longest, True, {})
        self.made["pilot"] = pilot
        return self._diagnosis(pilot, "pilot")

    @property
    def _ratio(self) -> float:
        """Share of the questions that are sampled as whole traces."""
        config = self.config
        if config.method.samples_whole:
            return 1.0
        return config.prefix.ratio if config.sample.trace_ratio is None else config.sample.trace_ratio

    @property
    def _cuts(self) -> bool:
        """Whether anything asks for a prefix's length: whole traces alone have none, the divergence by position does."""
        config = self.config
        return config.prefix.ratio < 1 or (config.analysis is not None and config.analysis.kl is not None)

    @property
    def _finds_its_length(self) -> bool:
        """Whether the sampling needs no prefix length and is fit to find one: whole traces, several a question."""
        return self._ratio == 1 and self.config.sample.n > 1

    def _sampling(self, label: str, limit: int | None, n: int, max_tokens: int | None, logprobs: bool,
                  inputs: Mapping[str, Stage]) -> Stage:
        config, train = self.config, inputs.get("model")
        return Stage("sample", label, SampleSpec(
            model=self.model,
            prompt=self.prompt,
            questions=questions_spec(config.data, "data", self.hasher, limit),
            sampling=SamplingSpec(
                engine=resolve_engine(config.sample.engine, "sample.engine"), dtype=config.model.dtype,
                temperature=config.sample.temperature, top_p=config.sample.top_p, top_k=config.sample.top_k,
                seed=config.seed),
            n=n,
            max_tokens=config.sample.trace_max_tokens if self._ratio == 1 else max_tokens,
            trace_ratio=self._ratio,
            trace_max_tokens=config.sample.trace_max_tokens,
            logprobs=logprobs,
            trained=None if train is None else train.key,
        ), inputs)

    def _diagnosis(self, samples: Stage, of: str = "") -> Stage:
        return Stage("diagnose", f"diagnose {of or 'prefixes'}", DiagnoseSpec(
            self.model, self.config.diagnose.longest, self.config.diagnose.agreement), {"samples": samples})

    def _round(self, mark: str, number: int, before: Stage | None, diagnosis: Stage | None) -> Stage:
        """Sample, choose, build, train: the training. mark: ends the round's roles, nothing in the last one. before: the
        training of the round before."""
        config, method, whole = self.config, self.config.method, self.config.method.whole
        named = f", round {number}" if method.rounds > 1 else ""
        wanted = self.length if config.sample.max_tokens is None else config.sample.max_tokens
        upstream = {} if before is None else {"model": before}
        if diagnosis is not None:
            upstream["diagnosis"] = diagnosis
        samples = self._sampling(f"sample {config.data.name}{named}", None, config.sample.n, wanted, config.sample.logprobs,
                                 upstream)
        found = diagnosis or self._diagnosis(samples)
        self.made |= {f"samples{mark}": samples, f"diagnosis{mark}": found}
        inputs = {"samples": samples}
        if method.graded:
            inputs["grades"] = self.made[f"grades{mark}"] = Stage(
                "grade", f"grade traces{named}", GradeSpec(self.model), {"samples": samples})
        if self.length is None and not whole and config.prefix.ratio < 1:
            inputs["diagnosis"] = found
        neutral = BuildSpec(
            method=MethodName.rft if method.name is MethodName.vstar else method.name,  # V-STaR's generator is RFT's model
            model=self.model, prompt=self.prompt, prefix_len=None, unit=c.CutUnit.token, ratio=1.0,
            suffix="", eos=True, keep_unfinished=config.prefix.keep_unfinished, max_length=config.train.max_length,
            # Where none is graded the first `cap` are the rows, however many there are to choose from.
            traces=method.n if method.graded or method.cap is None else min(method.n, method.cap),
            cap=method.cap, right=method.graded)
        build = Stage("build", f"build whole rows{named}" if whole else
                      f"build rows t={config.prefix.len} p={config.prefix.ratio:g}{named}", neutral if whole else replace(
            neutral, prefix_len=self.length, unit=config.prefix.unit, ratio=config.prefix.ratio,
            suffix=config.prefix.suffix, eos=config.prefix.eos), inputs)
        rows = {"rows": build} if before is None or method.restart else {"rows": build, "model": before}
        train = Stage("train", f"train {neutral.method.name}{named}", self._training(), rows)
        self.made |= {f"rows{mark}": build, f"train{mark}": train}
        return train

    def _training(self) -> TrainSpec:
        t = self.config.train
        return TrainSpec(
            model=self.model, epochs=t.epochs, lr=t.lr, beta1=t.beta1, beta2=t.beta2, eps=t.eps, weight_decay=t.weight_decay,
            warmup_ratio=t.warmup_ratio, batch_size=t.batch_size, grad_clip=t.grad_clip, reduction=t.reduction,
            precision=t.precision, lora=self.lora, seed=t.seed)

    def _verifier(self, verifier: VerifierConfig, generator: Stage) -> None:
        """Train a verifier on pairs of the last round's sampling, and let it choose among the generator's answers."""
        config, precision = self.config, self.config.train.precision
        frozen = self.lora is not None and precision is c.Precision.bf16_mixed  # else they are loaded alike
        pairs = Stage("pair", "pair traces", PairSpec(
            self.model, config.method.n, verifier.pairs, config.prefix.keep_unfinished, config.train.max_length),
            {"samples": self.made["samples"], "grades": self.made["grades"]})
        reference = Stage("reference", "reference", ReferenceSpec(self.model, precision, frozen), {"rows": pairs})
        trained = Stage("train", "train verifier", replace(
            self._training(), epochs=verifier.epochs, lr=verifier.lr, batch_size=verifier.batch_size,
            reduction=c.Reduction.sequence, beta=verifier.beta), {"rows": pairs, "reference": reference})
        self.made |= {"pairs": pairs, "reference": reference, "verifier": trained}
        for task in config.eval.tasks:
            answers = self._evaluate(task, generator, verifier.n, verifier.temperature)
            self.made[f"candidates:{task}"] = answers
            self.made[f"trained:{task}"] = Stage("verify", f"choose answers: {task}", VerifySpec(
                self.model, task, verifier.score, precision, frozen), {"answers": answers, "verifier": trained})

    def _evaluate(self, task: str, train: Stage | None, n: int | None = None, temperature: float | None = None) -> Stage:
        """Ask the base model or a trained one; n, temperature: instead of the protocol's."""
        config, asked, ask = self.config, self.config.eval.tasks[task], self.config.eval.ask(task)
        own = config.model.temperature if ask.temperature is None else ask.temperature
        count = ask.n if n is None else n
        spec = EvaluateSpec(
            model=self.model, prompt=self.prompt, task=task, protocol=config.eval.protocol, wording=ask.prompt,
            kind=c.AnswerKind.choice if ask.options else asked.kind,
            questions=questions_spec(asked, f"eval.tasks.{task}", self.hasher, config.eval.limit,
                                     tuple(asked.wrong_fields) if ask.options else ()),
            sampling=SamplingSpec(
                engine=resolve_engine(config.eval.engine, "eval.engine"), dtype=config.model.dtype,
                temperature=own if temperature is None else temperature,
                top_p=config.eval.top_p, top_k=config.eval.top_k, seed=config.seed),
            n=count, max_tokens=config.eval.max_tokens,
            context=config.model.paper_context if config.eval.protocol is c.Protocol.paper else None)
        who = "base" if train is None else train.label.removeprefix("train ").partition(",")[0]
        many = f" x{count}" if config.method.verifies and train is not None else ""
        return Stage("evaluate", f"evaluate {who}: {task}{many}", spec, {} if train is None else {"model": train})


def judgements(judge: c.JudgeConfig, evaluations: Mapping[str, Stage], hasher: Hasher) -> dict[str, Stage]:
    """`judged:ROLE` -> the judge's look at that evaluation. Raises ModelError for a judge that is no model."""
    if judge.path is not None:
        source: ContentRef | HubRef = model_ref(Path(judge.path), hasher, "judge.path")
    else:
        assert judge.id is not None  # Config.check saw to both
        assert judge.revision is not None
        source = HubRef(judge.id, judge.revision)
    spec = JudgeSpec(ModelSpec(source, judge.trust_remote_code), judge.system_prompt, judge.prompt, judge.accept,
                     resolve_engine(judge.engine, "judge.engine"), judge.dtype, judge.max_tokens)
    return {f"judged:{role}": Stage("judge", f"judge {stage.label.removeprefix('evaluate ')}", spec, {"answers": stage})
            for role, stage in evaluations.items()}


def lora_spec(lora: c.LoraConfig | None) -> LoraSpec | None:
    """The adapters asked for."""
    if lora is None:
        return None
    return LoraSpec(lora.rank, lora.alpha, lora.dropout, None if lora.targets is None else tuple(lora.targets), lora.merge)


