"""Config -> the stages of one experiment, each with exactly what its result depends on.

Floor 2. A `Spec` holds science values only: what is not in it cannot enter a key, so machine settings stay
out by structure. Content comes in as `FileRef`/`HubRef`/generator settings and as the keys upstream.
Knows no torch; reads local files only to hash them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from upft import config as c
from upft.errors import ConfigError, DataError, ModelError
from upft.store import Hasher, canonical, digest

VERSIONS = {"sample": 2, "diagnose": 1, "build": 2, "train": 2, "evaluate": 2, "judge": 1, "report": 3}
"""Raised by hand when a stage's code changes what it would write for the same spec."""


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

    max_tokens: of a prefix; null = what the diagnosis upstream suggests.
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


@dataclass(frozen=True)
class DiagnoseSpec:
    """How alike the traces of one question begin, and the prefix length that follows from it."""

    model: ModelSpec  # for its tokenizer
    longest: int
    agreement: float


@dataclass(frozen=True)
class BuildSpec:
    """Turn samples into rows of ids with a supervised mask. prefix_len: null = what the diagnosis upstream suggests."""

    method: c.MethodName
    model: ModelSpec  # for its tokenizer
    prompt: PromptSpec
    prefix_len: int | None
    unit: c.CutUnit
    ratio: float
    suffix: str
    eos: bool
    keep_unfinished: bool
    max_length: int


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
    """Optimise the model on the rows."""

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
class ReportSpec:
    """Tell what the cell found."""

    title: str
    model: str
    data: str
    method: c.MethodName
    prefix_len: int | None
    ratio: float
    seed: int
    tasks: tuple[str, ...]


Spec = SampleSpec | DiagnoseSpec | BuildSpec | TrainSpec | EvaluateSpec | JudgeSpec | ReportSpec


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


def relatives(spec: SampleSpec | EvaluateSpec) -> dict[str, Any]:
    """What the identities of two samplings (or evaluations, of the same training) must agree in for the one to hold samples
    of the other: a prompt's `index`-th completion follows from the model, the settings and the seed alone."""
    stage = "sample" if isinstance(spec, SampleSpec) else "evaluate"
    return {"stage": stage, "version": VERSIONS[stage], "spec": {
        name: canonical(getattr(spec, name)) for name in ("model", "prompt", "sampling")}}


def plan(config: c.Config, hasher: Hasher | None = None) -> Plan:
    """The stages of one experiment.

    Raises ModelError or DataError when a named local folder or file is not there. Hub sources are not
    touched: their pinned revision is their content.
    """
    hasher = hasher or Hasher()
    model = model_spec(config.model, hasher)
    prompt = PromptSpec(config.model.system_prompt, config.model.user_template)

    def sampling(label: str, limit: int | None, n: int, max_tokens: int | None, logprobs: bool,
                 inputs: Mapping[str, Stage]) -> Stage:
        return Stage("sample", label, SampleSpec(
            model=model,
            prompt=prompt,
            questions=questions_spec(config.data, "data", hasher, limit),
            sampling=SamplingSpec(
                engine=resolve_engine(config.sample.engine, "sample.engine"), dtype=config.model.dtype,
                temperature=config.sample.temperature, top_p=config.sample.top_p, top_k=config.sample.top_k,
                seed=config.seed),
            n=n,
            max_tokens=max_tokens,
            trace_ratio=config.prefix.ratio if config.sample.trace_ratio is None else config.sample.trace_ratio,
            trace_max_tokens=config.sample.trace_max_tokens,
            logprobs=logprobs,
        ), inputs)

    def diagnosis(samples: Stage, longest: int) -> Stage:
        return Stage("diagnose", "diagnose prefixes", DiagnoseSpec(model, longest, config.diagnose.agreement),
                     {"samples": samples})

    length = config.prefix.fixed
    first: tuple[Stage, ...]
    if length is None:
        pilot = sampling(f"pilot {config.data.name}", config.diagnose.questions, config.diagnose.n, config.diagnose.longest,
                         True, {})
        diagnose = diagnosis(pilot, config.diagnose.longest)
        sample = sampling(f"sample {config.data.name}", None, config.sample.n, config.sample.max_tokens,
                          config.sample.logprobs, {"diagnosis": diagnose})
        first = (pilot, diagnose, sample)
    else:
        sample = sampling(f"sample {config.data.name}", None, config.sample.n,
                          length if config.sample.max_tokens is None else config.sample.max_tokens, config.sample.logprobs, {})
        diagnose = diagnosis(sample, config.diagnose.longest)
        first = (sample, diagnose)
    build = Stage("build", f"build rows t={config.prefix.len} p={config.prefix.ratio:g}", BuildSpec(
        method=config.method.name, model=model, prompt=prompt, prefix_len=length,
        unit=config.prefix.unit, ratio=config.prefix.ratio, suffix=config.prefix.suffix, eos=config.prefix.eos,
        keep_unfinished=config.prefix.keep_unfinished, max_length=config.train.max_length,
    ), {"samples": sample} if length is not None else {"samples": sample, "diagnosis": diagnose})
    train = Stage("train", f"train {config.method.name.name}", TrainSpec(
        model=model, epochs=config.train.epochs, lr=config.train.lr, beta1=config.train.beta1,
        beta2=config.train.beta2, eps=config.train.eps, weight_decay=config.train.weight_decay,
        warmup_ratio=config.train.warmup_ratio, batch_size=config.train.batch_size,
        grad_clip=config.train.grad_clip, reduction=config.train.reduction, precision=config.train.precision,
        lora=lora_spec(config.train.lora), seed=config.seed,
    ), {"rows": build})

    def evaluate(task: str, trained: bool) -> Stage:
        ask = config.eval.ask(task)
        asked = config.eval.tasks[task]
        spec = EvaluateSpec(
            model=model, prompt=prompt, task=task, protocol=config.eval.protocol, wording=ask.prompt,
            kind=c.AnswerKind.choice if ask.options else asked.kind,
            questions=questions_spec(asked, f"eval.tasks.{task}", hasher, config.eval.limit,
                                     tuple(asked.wrong_fields) if ask.options else ()),
            sampling=SamplingSpec(
                engine=resolve_engine(config.eval.engine, "eval.engine"), dtype=config.model.dtype,
                temperature=config.model.temperature if ask.temperature is None else ask.temperature,
                top_p=config.eval.top_p, top_k=config.eval.top_k, seed=config.seed),
            n=ask.n, max_tokens=config.eval.max_tokens,
            context=config.model.paper_context if config.eval.protocol is c.Protocol.paper else None)
        return Stage("evaluate", f"evaluate {who(trained)}: {task}", spec, {"model": train} if trained else {})

    def who(trained: bool) -> str:
        return config.method.name.name if trained else "base"

    evaluations = {f"{side}:{task}": evaluate(task, trained) for side, trained in (("base", False), ("trained", True))
                   for task in config.eval.tasks}
    judged = {} if config.judge is None else judgements(config.judge, evaluations, hasher)
    report = Stage("report", "report", ReportSpec(
        title=f"{config.method.name.name} of {config.model.name} on {config.data.name}", model=config.model.name,
        data=config.data.name, method=config.method.name, prefix_len=length, ratio=config.prefix.ratio,
        seed=config.seed, tasks=tuple(config.eval.tasks),
    ), {**({"pilot": first[0]} if length is None else {}),
        "samples": sample, "diagnosis": diagnose, "rows": build, "train": train, **evaluations, **judged})
    base = [stage for role, stage in evaluations.items() if role.startswith("base:")]
    after = [stage for role, stage in evaluations.items() if role.startswith("trained:")]
    # Base evaluations stand next to the sampling so that one engine start serves both.
    return Plan((*first, *base, build, train, *after, *judged.values(), report))


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


def model_spec(model: c.ModelConfig, hasher: Hasher) -> ModelSpec:
    """Where the weights come from. Raises ModelError for a folder that is no model."""
    if model.path is not None:
        return ModelSpec(model_ref(Path(model.path), hasher), model.trust_remote_code)
    assert model.id is not None  # Config.check saw to both
    assert model.revision is not None
    return ModelSpec(HubRef(model.id, model.revision), model.trust_remote_code)


def model_ref(folder: Path, hasher: Hasher, name: str = "model.path") -> ContentRef:
    """A local Hugging Face folder by content: every file but documentation and hidden ones. `name`: the key that gives it."""
    key = f"{name}={folder}"
    if not folder.is_dir():
        raise ModelError(f"{key}: there is no such folder", "give the folder of a Hugging Face model")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{key} is no model: it has no config.json",
                         "give a folder written by save_pretrained (config.json, *.safetensors, tokenizer files)")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{key} has no weights: no *.safetensors file in it",
                         "save the model with save_pretrained (safetensors); pickled .bin weights are not read")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{key} has no tokenizer: no tokenizer.json, tokenizer.model or vocab.json in it",
                         "save the tokenizer into the same folder with tokenizer.save_pretrained")
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.suffix != ".md"]
    return ContentRef(hasher.files(files), str(folder.resolve()))


def questions_spec(source: c.Source, key: str, hasher: Hasher, limit: int | None,
                   wrong_fields: tuple[str, ...] = ()) -> QuestionsSpec:
    """How to find and read a set of questions; the smaller of the two limits holds."""
    ref: ContentRef | HubRef | Generated
    if source.path is not None:
        path = Path(source.path)
        if not path.is_file():
            raise DataError(f"{key}.path={source.path}: there is no such file",
                            "check the path (it is relative to where run.py is started)")
        ref = ContentRef(hasher.files([path]), str(path.resolve()))
    elif source.arithmetic is not None:
        a = source.arithmetic
        ref = Generated(a.split, a.questions, a.seed, a.steps_min, a.steps_max, a.number_max)
    else:
        assert source.id is not None  # Config.check saw to both
        assert source.revision is not None
        ref = HubRef(source.id, source.revision, source.file)
    limits = [n for n in (source.limit, limit) if n is not None]
    return QuestionsSpec(ref, source.question_field, source.answer_field, source.answer_format,
                         min(limits) if limits else None, wrong_fields)


def resolve_engine(engine: c.Engine, key: str) -> c.Engine:
    """`auto` -> vLLM where it is installed, else Transformers. Raises ConfigError for a missing vLLM."""
    there = importlib.util.find_spec("vllm") is not None
    if engine is c.Engine.auto:
        return c.Engine.vllm if there else c.Engine.transformers
    if engine is c.Engine.vllm and not there:
        raise ConfigError(f"{key}=vllm: vLLM is not installed here",
                          f"install the extra (see README), or use {key}=transformers")
    return engine


def distinct(plans: Iterable[Plan]) -> list[Stage]:
    """The stages of several cells, equal ones once, each after those it needs."""
    seen: dict[tuple[str, str], Stage] = {}
    for one in plans:
        for stage in one.stages:
            seen.setdefault((stage.name, stage.key), stage)
    return list(seen.values())
