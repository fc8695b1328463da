"""What each stage is told: science values only, so that machine settings stay out of keys by structure.

Floor 2. Content comes in as `ContentRef`, `HubRef` or generator settings. Knows no configuration and no file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from upft import config as c
from upft.choices import MethodName, Score


@dataclass(frozen=True)
class ContentRef:
    """Files on this machine, known by content. `path` is where to read them and is not hashed."""

    sha256: str
    path: str = field(metadata={"hashed": False})


@dataclass(frozen=True)
class HubRef:
    """Files on the hub at one commit; `file` is null for a whole model repository."""

    id: str
    revision: str
    file: str | None = None


@dataclass(frozen=True)
class Generated:
    """Generated word problems."""

    split: str
    questions: int
    seed: int
    steps_min: int
    steps_max: int
    number_max: int


@dataclass(frozen=True)
class QuestionsSpec:
    """A set of questions and how to read it."""

    source: ContentRef | HubRef | Generated
    question_field: str
    answer_field: str | None
    answer_format: c.AnswerFormat
    limit: int | None
    wrong_fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptSpec:
    """How a question becomes a conversation."""

    system_prompt: str | None
    user_template: str


@dataclass(frozen=True)
class ModelSpec:
    """Weights and tokenizer as published or as on disk."""

    source: ContentRef | HubRef
    trust_remote_code: bool


@dataclass(frozen=True)
class SamplingSpec:
    """How tokens are drawn. temperature, top_p and top_k null = the model's generation config."""

    engine: c.Engine
    dtype: c.Dtype
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int


@dataclass(frozen=True)
class SampleSpec:
    """Draw the model's own solutions: prefixes for most questions, whole traces for a nested share.

    max_tokens: of a prefix (trace_max_tokens where all are whole traces); null = what the diagnosis upstream suggests.
    trained: the training upstream whose model samples, by key; null = the model as published.
    """

    model: ModelSpec
    prompt: PromptSpec
    questions: QuestionsSpec
    sampling: SamplingSpec
    n: int
    max_tokens: int | None
    trace_ratio: float
    trace_max_tokens: int
    logprobs: bool
    trained: str | None = None


@dataclass(frozen=True)
class DiagnoseSpec:
    """How alike the traces of one question begin, and the prefix length that follows from it."""

    model: ModelSpec  # for its tokenizer
    longest: int
    agreement: float


@dataclass(frozen=True)
class GradeSpec:
    """Which of the sampled whole traces end in the gold answer."""

    model: ModelSpec  # for its tokenizer


@dataclass(frozen=True)
class BuildSpec:
    """Turn samples into rows of ids with a supervised mask. prefix_len: null = what the diagnosis upstream suggests (of no
    account where ratio = 1).

    A question's rows are chosen from its first `traces` traces: the first `cap` of them (null = all), with `right` the
    first different ones that the grades upstream call right.
    """

    method: MethodName
    model: ModelSpec  # for its tokenizer
    prompt: PromptSpec
    prefix_len: int | None
    unit: c.CutUnit
    ratio: float
    suffix: str
    eos: bool
    keep_unfinished: bool
    max_length: int
    traces: int = 1
    cap: int | None = 1
    right: bool = False


@dataclass(frozen=True)
class PairSpec:
    """Pairs of a right and a wrong whole trace of one question, from its first `traces` traces, at most `cap` a question
    (null = as many as both sides have)."""

    model: ModelSpec  # for its tokenizer
    traces: int
    cap: int | None
    keep_unfinished: bool
    max_length: int


@dataclass(frozen=True)
class ReferenceSpec:
    """Log-probabilities of the pairs' traces under the model before training. precision: the arithmetic."""

    model: ModelSpec
    precision: c.Precision
    frozen: bool
    """Whether the weights are loaded as those under adapters are."""


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters. targets null = every linear layer but the head."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    merge: bool


@dataclass(frozen=True)
class TrainSpec:
    """Optimise the model on the rows: `model`, or what the training upstream has made of it. beta: DPO's, on pairs of rows
    and their log-probabilities upstream; null = next-token cross-entropy."""

    model: ModelSpec
    epochs: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    warmup_ratio: float
    batch_size: int
    grad_clip: float | None
    reduction: c.Reduction
    precision: c.Precision
    lora: LoraSpec | None
    seed: int
    beta: float | None = None


@dataclass(frozen=True)
class EvaluateSpec:
    """Ask one model one task and grade the answers.

    The model is `model`, or what the training upstream has made of it: its weights or an adapter on them.
    wording: what is asked, `{question}` and `{options}` to be replaced; context: longest prompt plus answer, null = the
    model's own.
    """

    model: ModelSpec
    prompt: PromptSpec
    task: str
    protocol: c.Protocol
    wording: str
    kind: c.AnswerKind
    questions: QuestionsSpec
    sampling: SamplingSpec
    n: int
    max_tokens: int
    context: int | None


@dataclass(frozen=True)
class JudgeSpec:
    """Let another model look at the answers that the rule calls wrong."""

    model: ModelSpec
    system_prompt: str | None
    prompt: str
    accept: str
    engine: c.Engine
    dtype: c.Dtype
    max_tokens: int


@dataclass(frozen=True)
class VerifySpec:
    """Choose one of the answers to each question by a verifier. precision: the arithmetic; frozen: see ReferenceSpec."""

    model: ModelSpec
    task: str
    score: Score
    precision: c.Precision
    frozen: bool


@dataclass(frozen=True)
class BranchSpec:
    """Continue the first tokens of traces upstream. at: how many tokens; traces: of each question the first so many, with
    `both` so many right and so many wrong ones of each question that has some of both; n: continuations of each different
    prefix; trace_max_tokens: longest prefix plus continuation; trained: who continues, as in SampleSpec."""

    model: ModelSpec
    sampling: SamplingSpec
    at: tuple[int, ...]
    traces: int
    both: bool
    n: int
    trace_max_tokens: int
    trained: str | None = None


@dataclass(frozen=True)
class ConsistencySpec:
    """Count the different prefixes of each question's traces. edges: shares of right traces that part the questions."""

    longest: int
    edges: tuple[float, ...]


@dataclass(frozen=True)
class ErrorsSpec:
    """From what length on the prefixes of right and of wrong traces end right by `margin` apart."""

    margin: float
    seed: int


@dataclass(frozen=True)
class CoverageSpec:
    """Split a change of accuracy in proposed prefixes and what becomes of them."""

    seed: int


@dataclass(frozen=True)
class KlSpec:
    """Divergence between base and trained model by position. dtype: in which both compute; prefix_len: null = what the
    diagnosis upstream suggests."""

    model: ModelSpec
    dtype: c.Dtype
    prefix_len: int | None
    longest: int
    seed: int


@dataclass(frozen=True)
class ReportSpec:
    """Tell what the cell found."""

    title: str
    model: str
    data: str
    method: MethodName
    prefix_len: int | None
    ratio: float
    seed: int
    tasks: tuple[str, ...]
    label: str | None = None
    """The method's name as people write it."""


Spec = (SampleSpec | DiagnoseSpec | GradeSpec | BuildSpec | PairSpec | ReferenceSpec | TrainSpec | EvaluateSpec | JudgeSpec
        | VerifySpec | BranchSpec | ConsistencySpec | ErrorsSpec | CoverageSpec | KlSpec | ReportSpec)
