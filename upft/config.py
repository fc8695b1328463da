"""The whole configuration as typed dataclasses (their choices are in `upft.choices`).

Floor 0: no torch, no transformers. YAML chooses, these classes judge. Science settings (they change a
result, so they enter artifact keys) live in `model data sample prefix method train eval judge seed`; machine
settings (they must not) live in `compute tracker run`, in `upft.machine`. A rule about one field stands in the class that
owns it, a rule between fields on the class that owns both. Nothing here rewrites a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from upft.analysis import AnalysisConfig, ConsistencyConfig, CoverageConfig, ErrorsConfig, KlConfig
from upft.choices import (
    AnswerFormat,
    AnswerKind,
    CutUnit,
    Dtype,
    Engine,
    Precision,
    Protocol,
    Reduction,
)
from upft.errors import ConfigError, demand
from upft.machine import ComputeConfig, RunConfig, TrackerConfig
from upft.method import MethodConfig
from upft.sources import ArithmeticConfig, DataConfig, Source
from upft.tasks import AskConfig, EvalConfig, JudgeConfig, TaskConfig, check_nucleus
from upft.training import PURE_BF16_LR, LoraConfig, TrainConfig

__all__ = ["AUTO", "PURE_BF16_LR", "AnalysisConfig", "AnswerFormat", "AnswerKind", "ArithmeticConfig", "AskConfig",
           "ComputeConfig", "Config", "ConsistencyConfig", "CoverageConfig", "CutUnit", "DataConfig", "DiagnoseConfig",
           "Dtype", "Engine", "ErrorsConfig", "EvalConfig", "JudgeConfig", "KlConfig", "LoraConfig", "MethodConfig",
           "ModelConfig", "Precision", "PrefixConfig", "Protocol", "Reduction", "RunConfig", "SampleConfig", "Source",
           "TaskConfig", "TrackerConfig", "TrainConfig"]

AUTO = "auto"
"""prefix.len that the diagnosis finds."""


@dataclass
class ModelConfig:
    """The base model, its prompt, and the paper's settings for it."""

    name: str = MISSING
    """Label in reports."""
    id: str | None = None
    """Hub model id."""
    revision: str | None = None
    """Hub commit, 40 hex digits."""
    path: str | None = None
    """Local Hugging Face folder (wins over id); its content enters the key."""
    dtype: Dtype = Dtype.bfloat16
    """Number format the engines sample with."""
    system_prompt: str | None = None
    """System turn; null = none (the chat template may still write its own)."""
    user_template: str = "{question}"
    """User turn; `{question}` is replaced by the question (and a prefix row's task suffix)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    prefix_len: int = 32
    """Paper's prefix length for this model (prefix.len takes it unless given)."""
    lr: float = 2e-6
    """Paper's learning rate (train.lr takes it unless given)."""
    precision: Precision = Precision.bf16_mixed
    """Arithmetic of training (train.precision takes it unless given)."""
    max_length: int = 3072
    """Paper's longest sequence for this model, tokens."""
    engine: Engine = Engine.auto
    """Which program samples and answers (sample.engine and eval.engine take it unless given)."""
    trace_max_tokens: int = 2048
    """Longest whole trace to sample, tokens (sample.trace_max_tokens takes it unless given)."""
    answer_max_tokens: int = 8192
    """Longest answer in evaluation, tokens, the model's context permitting (eval.max_tokens takes it unless given)."""
    paper_context: int | None = None
    """Longest prompt plus answer under the paper's evaluation protocol, tokens; null = the model's own context."""
    temperature: float | None = None
    """Temperature where a protocol leaves it to the model; null = as its generation config recommends."""

    def __post_init__(self) -> None:
        demand("{question}" in self.user_template, "model.user_template", self.user_template,
                "put {question} where the question goes")
        if self.revision is not None:
            demand(re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None, "model.revision", self.revision,
                    "give the commit's 40 hex digits (a branch or tag may move)")
        if self.paper_context is not None:
            demand(self.paper_context >= 2, "model.paper_context", self.paper_context, "use 2 or more, or null")
        if self.temperature is not None:
            demand(self.temperature >= 0, "model.temperature", self.temperature, "use 0 (greedy) or more, or null")

    def check_source(self) -> None:
        """Raise ConfigError unless a folder or a pinned hub id is named."""
        if self.path is None and self.id is None:
            raise ConfigError("model.path=null and model.id=null: no model", "give model.path=DIR or model.id=ORG/NAME")
        if self.path is None and self.revision is None:
            raise ConfigError(f"model.revision=null while model.id={self.id}", "pin it: model.revision=COMMIT")


@dataclass
class SampleConfig:
    """How the model's own solutions are drawn."""

    engine: Engine = Engine.auto
    """auto = vLLM where it is installed, else Transformers."""
    n: int = MISSING
    """Traces a question; more than method.n are kept for other methods that share the sampling."""
    temperature: float = 0.6
    """Softmax temperature; 0 = greedy."""
    top_p: float | None = None
    """Nucleus mass; null = the model's generation config."""
    top_k: int | None = None
    """Most likely tokens kept, 0 = all; null = the model's generation config."""
    max_tokens: int | None = None
    """Tokens sampled for a question that carries a prefix; null = prefix.len. Raise it so that a sweep over
    prefix lengths shares one sampling."""
    trace_ratio: float | None = None
    """Share of questions sampled as whole traces; null = what the method needs (UPFT: prefix.ratio). Raise it to share a
    sampling among ratios or methods."""
    trace_max_tokens: int = MISSING
    """Longest whole trace, tokens."""
    logprobs: bool = False
    """Keep each sampled token's log-probability, in the distribution it was drawn from."""

    def __post_init__(self) -> None:
        if self.n != MISSING:
            demand(self.n >= 1, "sample.n", self.n, "use 1 or more")
        demand(self.temperature >= 0, "sample.temperature", self.temperature, "use 0 (greedy) or more")
        check_nucleus("sample", self.top_p, self.top_k)
        if self.max_tokens is not None:
            demand(self.max_tokens >= 1, "sample.max_tokens", self.max_tokens, "use 1 or more, or null")
        if self.trace_ratio is not None:
            demand(0 <= self.trace_ratio <= 1, "sample.trace_ratio", self.trace_ratio, "use 0 to 1, or null")
        if self.trace_max_tokens != MISSING:
            demand(self.trace_max_tokens >= 1, "sample.trace_max_tokens", self.trace_max_tokens, "use 1 or more")


@dataclass
class PrefixConfig:
    """What a training row carries."""

    len: Any = MISSING  # a number or `auto`: OmegaConf takes no union here
    """Prefix length t, tokens; `auto` = what the diagnosis of a pilot sampling suggests (see the group diagnose)."""
    unit: CutUnit = CutUnit.token
    """What t counts: sampled tokens, or words first as the paper's code does (newlines become spaces)."""
    ratio: float = 0.1
    """Structure-tuning ratio p: share of questions that carry a whole trace."""
    suffix: str = MISSING
    """Task suffix appended to the question of a prefix row."""
    eos: bool = True
    """End a prefix row with a supervised EOS (the paper's code does)."""
    keep_unfinished: bool = False
    """Train on whole traces that were cut by the length limit (without EOS); false = leave them out."""

    def __post_init__(self) -> None:
        if self.len not in (MISSING, AUTO):
            demand(type(self.len) is int, "prefix.len", self.len, "use a whole number of tokens (the paper: 8 to 32), or auto")
            demand(self.len >= 1, "prefix.len", self.len, "use 1 or more (the paper: 8 to 32)")
        demand(0 <= self.ratio <= 1, "prefix.ratio", self.ratio, "use a share from 0 to 1 (the paper: 0.1)")


    @property
    def fixed(self) -> int | None:
        """The length where it is given; None where the diagnosis finds it."""
        return None if self.len == AUTO else int(self.len)


@dataclass
class DiagnoseConfig:
    """Before training: how alike a model's solutions of one question begin, and what prefix length follows from it.

    The samples at hand are looked at in every run. With prefix.len=auto a pilot sampling comes first: `questions`
    questions, `n` traces each, of which the main sampling then uses what it can.
    """

    questions: int = 64
    """Questions of the pilot."""
    n: int = 16
    """Traces a question in the pilot."""
    longest: int = 64
    """Longest prefix looked at, tokens; also what the pilot samples of a question that carries a prefix."""
    agreement: float = 0.2
    """The suggested length is the longest at which this share of pairs of a question's traces still agree."""

    def __post_init__(self) -> None:
        demand(self.questions >= 2, "diagnose.questions", self.questions, "use 2 or more")
        demand(self.n >= 2, "diagnose.n", self.n, "use 2 or more: one trace agrees with nothing")
        demand(self.longest >= 1, "diagnose.longest", self.longest, "use 1 or more")
        demand(0 < self.agreement < 1, "diagnose.agreement", self.agreement, "use a share in (0, 1)")


@dataclass
class Config:
    """One experiment ("cell")."""

    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    train: TrainConfig = MISSING  # before method, and method before sample: what is wrong in one is not to be told of a
    method: MethodConfig = MISSING  # group that only takes its value over
    sample: SampleConfig = MISSING
    prefix: PrefixConfig = MISSING
    diagnose: DiagnoseConfig = MISSING
    eval: EvalConfig = MISSING
    judge: JudgeConfig | None = None
    analysis: AnalysisConfig | None = None
    compute: ComputeConfig = MISSING
    tracker: TrackerConfig = MISSING
    run: RunConfig = MISSING
    seed: int = 0
    """Seed of everything drawn at random; the training may have its own, train.seed."""
    plan: bool = False
    """Print the stages and the first rows instead of running."""

    def check(self) -> None:
        """Rules between groups. Raises ConfigError."""
        demand(self.seed >= 0, "seed", self.seed, "use 0 or more")
        self.model.check_source()
        self.data.check_source("data")
        self.eval.check()
        if self.judge is not None:
            self.judge.check_source()
            if self.eval.protocol is not Protocol.paper:
                raise ConfigError(f"a judge beside eval.protocol={self.eval.protocol.name}: it belongs to the paper's protocol",
                                  "use eval.protocol=paper, or judge=null")
        self._check_method()
        if not self.method.whole:
            self._check_prefix()
        if self.analysis is not None:
            self._check_analysis(self.analysis)

    def _check_method(self) -> None:
        """Rules between the method, the data and the sampling."""
        method, data = self.method, self.data
        if method.graded and data.answer_field is None and data.arithmetic is None:
            chosen = "method.label_filter=true" if method.label_filter else f"method={method.name.name}"
            raise ConfigError(f"data.answer_field=null with {chosen}: traces cannot be graded without gold answers",
                              "name their column, data.answer_field=COLUMN; without answers use method=upft or method=sft")
        if self.sample.n < method.n:
            raise ConfigError(f"sample.n={self.sample.n} is less than method.n={method.n}",
                              f"lower method.n, which sample.n follows, or raise sample.n to {method.n}")
        if method.n > 1 and self.sample.temperature == 0:
            raise ConfigError(f"method.n={method.n} with sample.temperature=0: greedy traces of one question are all the same",
                              "set a temperature above 0, or method.n=1")
        if method.samples_whole and self.sample.trace_ratio not in (None, 1.0):
            chosen = "method.label_filter=true" if method.label_filter else f"method={method.name.name}"
            raise ConfigError(f"sample.trace_ratio={self.sample.trace_ratio} with {chosen}, which needs whole traces of all "
                              "questions", "leave sample.trace_ratio null, or set it to 1")

    def _check_prefix(self) -> None:
        """Rules between the prefix, the sampling and the rows, where a method cuts prefixes."""
        if self.prefix.fixed is None and self.sample.temperature == 0:
            raise ConfigError("prefix.len=auto with sample.temperature=0: greedy traces of one question are all the same",
                              "give prefix.len=N, or set a temperature above 0")
        longest = self.diagnose.longest if self.prefix.fixed is None else self.prefix.fixed
        named = f"prefix.len={self.prefix.len}" if self.prefix.fixed is not None else f"diagnose.longest={longest}"
        if self.sample.max_tokens is not None and self.sample.max_tokens < longest:
            raise ConfigError(f"sample.max_tokens={self.sample.max_tokens} is less than {named}",
                              "raise sample.max_tokens, or leave it null")
        if self.sample.trace_ratio is not None and self.sample.trace_ratio < self.prefix.ratio:
            raise ConfigError(
                f"sample.trace_ratio={self.sample.trace_ratio} is less than prefix.ratio={self.prefix.ratio}",
                "raise sample.trace_ratio, or leave it null")
        sampled_whole = 1.0 if self.method.samples_whole else self.sample.trace_ratio
        if (sampled_whole is not None and sampled_whole > self.prefix.ratio  # some prefixes are cut from whole traces
                and self.sample.trace_max_tokens < longest):
            chosen = "method.label_filter=true" if self.method.label_filter else f"sample.trace_ratio={sampled_whole}"
            raise ConfigError(f"sample.trace_max_tokens={self.sample.trace_max_tokens} is less than {named}, and prefixes are "
                              f"cut from whole traces ({chosen})", "raise sample.trace_max_tokens, or shorten the prefix")
        if longest >= self.train.max_length:
            raise ConfigError(f"{named} leaves no room in train.max_length={self.train.max_length}",
                              "shorten the prefix or raise train.max_length")

    def _check_analysis(self, analysis: AnalysisConfig) -> None:
        """Rules between the analyses, the questions they look at and the sampling."""
        if analysis.task is not None and analysis.task not in self.eval.tasks:
            raise ConfigError(f"analysis.task={analysis.task}: eval.tasks has no such task",
                              f"use null for the training questions, or one of {', '.join(self.eval.tasks) or 'eval.tasks'}")
        asked: Source = self.data if analysis.task is None else self.eval.tasks[analysis.task]
        if isinstance(asked, TaskConfig):
            demand(asked.kind is AnswerKind.math, "analysis.task", analysis.task,
                   f"use a task of numbers and closed forms: the answers of this one are of the kind {asked.kind.name}")
        elif analysis.graded and asked.answer_field is None and asked.arithmetic is None:
            raise ConfigError(f"data.answer_field=null with analysis.{analysis.graded[0]}, which asks what ends right",
                              "name the column of the answers, data.answer_field=COLUMN, or look at a task: analysis.task=NAME")
        if analysis.temperature is None and self.sample.temperature == 0:
            raise ConfigError("analysis.temperature=null with sample.temperature=0: greedy traces of one question are all the "
                              "same", "give analysis.temperature a value above 0")
        for name in ("errors", "coverage"):
            chosen = getattr(analysis, name)
            if chosen is not None:
                demand(chosen.at[-1] < self.sample.trace_max_tokens, f"analysis.{name}.at", chosen.at,
                       f"use lengths below sample.trace_max_tokens={self.sample.trace_max_tokens}")
