"""The whole configuration as typed dataclasses (their choices are in `upft.choices`).

Floor 0: no torch, no transformers. YAML chooses, these classes judge. Science settings (they change a
result, so they enter artifact keys) live in `model data sample prefix method train eval seed`; machine
settings (they must not) live in `compute tracker run`, in `upft.machine`. A rule about one field stands in the class that
owns it, a rule between fields on the class that owns both. Nothing here rewrites a value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from upft.choices import (
    AnswerFormat,
    CutUnit,
    Dtype,
    Engine,
    Precision,
    Reduction,
)
from upft.errors import ConfigError, demand
from upft.machine import ComputeConfig, RunConfig, TrackerConfig
from upft.method import MethodConfig

AUTO = "auto"
"""prefix.len that the diagnosis finds."""


@dataclass
class ArithmeticConfig:
    """Generated word problems (`upft.toy.arithmetic`)."""

    split: str = MISSING
    """`train` or `test`; a hash of the question decides, so the two never share one."""
    questions: int = MISSING
    """How many distinct questions to generate."""
    seed: int = 0
    """Seed of the generator."""
    steps_min: int = 2
    """Fewest operations in a problem."""
    steps_max: int = 4
    """Most operations in a problem."""
    number_max: int = 20
    """Largest number given in a problem."""

    def __post_init__(self) -> None:
        if self.split != MISSING:
            demand(self.split in ("train", "test"), "arithmetic.split", self.split, "use train or test")
        if self.questions != MISSING:
            demand(self.questions > 0, "arithmetic.questions", self.questions, "use 1 or more")
        demand(1 <= self.steps_min <= self.steps_max, "arithmetic.steps_min", self.steps_min,
                f"use 1 to steps_max={self.steps_max}")
        demand(self.number_max >= 5, "arithmetic.number_max", self.number_max, "use 5 or more")


@dataclass
class Source:
    """Where questions come from: exactly one of a local file, a pinned hub file, the generator."""

    path: str | None = None
    """Local .jsonl, .json, .csv or .parquet file; its content (not its name) enters the key."""
    id: str | None = None
    """Hub data set id."""
    revision: str | None = None
    """Hub commit (40 hex digits): a branch name would let the data change under a key."""
    file: str | None = None
    """File inside the hub data set."""
    arithmetic: ArithmeticConfig | None = None
    """Generated problems instead of a file."""
    question_field: str = "question"
    """Column of the question."""
    answer_field: str | None = None
    """Column of the gold answer; null = unlabelled."""
    answer_format: AnswerFormat = AnswerFormat.plain
    """Where the answer stands in that column."""
    limit: int | None = None
    """Use the first so many questions; null = all."""

    def __post_init__(self) -> None:
        if self.limit is not None:
            demand(self.limit > 0, "limit", self.limit, "use 1 or more, or null for all")
        if self.revision is not None:
            demand(re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None, "revision", self.revision,
                    "give the commit's 40 hex digits (a branch or tag may move)")

    def check_source(self, key: str) -> None:
        """Raise ConfigError unless there is a usable source; `key` is the config path of this node."""
        if self.path is not None and self.arithmetic is not None:
            raise ConfigError(f"{key}.path={self.path} beside {key}.arithmetic: two sources of questions",
                              "choose a group for files, such as data=jsonl (eval=gsm8k for a task), or set "
                              f"{key}.arithmetic=null")
        if self.path is not None or self.arithmetic is not None:
            return
        if self.id is None:
            raise ConfigError(f"{key}.path=null: no source of questions", f"give {key}.path=FILE.jsonl")
        for name in ("revision", "file"):
            if getattr(self, name) is None:
                raise ConfigError(f"{key}.{name}=null while {key}.id={self.id}", f"give {key}.{name}, or {key}.path=FILE")


@dataclass
class DataConfig(Source):
    """Training questions, with the paper's settings for them."""

    name: str = MISSING
    """Label in reports."""
    epochs: int = 1
    """Paper's epochs for this data (train.epochs takes it unless given)."""
    max_length: int = 3072
    """Paper's longest sequence for this data, tokens (train.max_length takes the larger of this and the model's)."""


@dataclass
class TaskConfig(Source):
    """One evaluation task."""


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

    def __post_init__(self) -> None:
        demand("{question}" in self.user_template, "model.user_template", self.user_template,
                "put {question} where the question goes")
        if self.revision is not None:
            demand(re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None, "model.revision", self.revision,
                    "give the commit's 40 hex digits (a branch or tag may move)")

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
        _check_nucleus("sample", self.top_p, self.top_k)
        if self.max_tokens is not None:
            demand(self.max_tokens >= 1, "sample.max_tokens", self.max_tokens, "use 1 or more, or null")
        if self.trace_ratio is not None:
            demand(0 <= self.trace_ratio <= 1, "sample.trace_ratio", self.trace_ratio, "use 0 to 1, or null")
        if self.trace_max_tokens != MISSING:
            demand(self.trace_max_tokens >= 1, "sample.trace_max_tokens", self.trace_max_tokens, "use 1 or more")


def _check_nucleus(group: str, top_p: float | None, top_k: int | None) -> None:
    if top_p is not None:
        demand(0 < top_p <= 1, f"{group}.top_p", top_p, "use a value in (0, 1], or null for the model's own")
    if top_k is not None:
        demand(top_k >= 0, f"{group}.top_k", top_k, "use 0 (all tokens) or more, or null for the model's own")


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

    def __post_init__(self) -> None:
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


@dataclass
class EvalConfig:
    """How base and trained models are asked and scored."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Task name -> its questions."""
    engine: Engine = Engine.auto
    """auto = vLLM where it is installed, else Transformers."""
    n: int = 1
    """Answers a question."""
    temperature: float = 0.0
    """Softmax temperature; 0 = greedy."""
    top_p: float | None = None
    """Nucleus mass; null = the model's generation config."""
    top_k: int | None = None
    """Most likely tokens kept, 0 = all; null = the model's generation config."""
    max_tokens: int = MISSING
    """Longest answer, tokens."""
    limit: int | None = None
    """Use the first so many questions of each task; null = all."""

    def __post_init__(self) -> None:
        demand(self.n >= 1, "eval.n", self.n, "use 1 or more")
        demand(self.temperature >= 0, "eval.temperature", self.temperature, "use 0 (greedy) or more")
        _check_nucleus("eval", self.top_p, self.top_k)
        if self.max_tokens != MISSING:
            demand(self.max_tokens >= 1, "eval.max_tokens", self.max_tokens, "use 1 or more")
        if self.limit is not None:
            demand(self.limit > 0, "eval.limit", self.limit, "use 1 or more, or null for all")
        if self.n > 1 and self.temperature == 0:
            raise ConfigError(f"eval.n={self.n} with eval.temperature=0: greedy answers would all be the same",
                              "set eval.n=1, or a temperature above 0")


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
    compute: ComputeConfig = MISSING
    tracker: TrackerConfig = MISSING
    run: RunConfig = MISSING
    seed: int = 0
    """Seed of everything drawn at random."""
    plan: bool = False
    """Print the stages and the first rows instead of running."""

    def check(self) -> None:
        """Rules between groups. Raises ConfigError."""
        demand(self.seed >= 0, "seed", self.seed, "use 0 or more")
        self.model.check_source()
        self.data.check_source("data")
        if not self.eval.tasks:
            raise ConfigError("eval.tasks={}: nothing to evaluate on", "choose one, such as eval=gsm8k")
        for name, task in self.eval.tasks.items():
            task.check_source(f"eval.tasks.{name}")
            if task.answer_field is None and task.arithmetic is None:
                raise ConfigError(f"eval.tasks.{name}.answer_field=null: nothing to grade against",
                                  f"name the column of gold answers: eval.tasks.{name}.answer_field=COLUMN")
        self._check_method()
        if not self.method.whole:
            self._check_prefix()

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
        if longest >= self.train.max_length:
            raise ConfigError(f"{named} leaves no room in train.max_length={self.train.max_length}",
                              "shorten the prefix or raise train.max_length")
