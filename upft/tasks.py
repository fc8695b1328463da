"""Evaluation as typed configuration: tasks, how each protocol asks them, the judge. Floor 0; see `upft.config`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from upft.choices import AnswerKind, Dtype, Engine, Protocol
from upft.errors import ConfigError, demand
from upft.sources import Source


@dataclass
class AskConfig:
    """How a protocol asks a task."""

    n: int = 1
    """Answers a question."""
    temperature: float | None = None
    """Softmax temperature; 0 = greedy; null = what the model recommends (model.temperature, else its generation config)."""
    options: bool = False
    """Show the right answer among the wrong ones (wrong_fields), in an order that a hash decides, and ask for a letter."""
    prompt: str = "{question}"
    """What is asked: `{question}` is replaced by the question, `{options}` by a line an option."""


@dataclass
class TaskConfig(Source):
    """One evaluation task."""

    kind: AnswerKind = AnswerKind.math
    """What an answer is where no options are shown; with options it is a letter."""
    wrong_fields: list[str] = field(default_factory=list)
    """Columns of the wrong options, for a protocol that shows them."""
    paper: AskConfig = field(default_factory=AskConfig)
    """How the paper asks."""
    standard: AskConfig = field(default_factory=AskConfig)
    """How the task is usually asked."""

    def check(self, key: str, protocol: Protocol) -> None:
        """Raise ConfigError unless it can be asked under `protocol`; `key` is the config path of this node."""
        self.check_source(key)
        if self.answer_field is None and self.arithmetic is None:
            raise ConfigError(f"{key}.answer_field=null: nothing to grade against",
                              f"name the column of gold answers: {key}.answer_field=COLUMN")
        ask: AskConfig = getattr(self, protocol.name)
        where = f"{key}.{protocol.name}"
        demand("{question}" in ask.prompt, f"{where}.prompt", ask.prompt, "put {question} where the question goes")
        if ask.options and not self.wrong_fields:
            raise ConfigError(f"{where}.options=true while {key}.wrong_fields=[]: no options to show",
                              f"name the columns of the wrong ones ({key}.wrong_fields=[A,B,C]), or set {where}.options=false")
        if ask.options != ("{options}" in ask.prompt):
            raise ConfigError(f"{where}.options={str(ask.options).lower()} with {where}.prompt={ask.prompt}",
                              "put {options} into the prompt where the options go, and only where they are shown")


@dataclass
class JudgeConfig:
    """A second opinion on answers that the rule calls wrong: another model reads question, gold answer and solution."""

    id: str | None = None
    """Hub model id."""
    revision: str | None = None
    """Hub commit, 40 hex digits."""
    path: str | None = None
    """Local Hugging Face folder (wins over id); its content enters the key."""
    dtype: Dtype = Dtype.bfloat16
    """Number format the judge answers with."""
    engine: Engine = Engine.auto
    """auto = vLLM where it is installed, else Transformers."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    system_prompt: str | None = None
    """System turn; null = none."""
    prompt: str = MISSING
    """User turn, with `{question}`, `{gold}` and `{solution}`."""
    accept: str = MISSING
    """Regular expression that is found in the judge's words where it accepts the solution, and only there."""
    max_tokens: int = 300
    """Longest reply, tokens."""

    def __post_init__(self) -> None:
        demand(self.max_tokens >= 1, "judge.max_tokens", self.max_tokens, "use 1 or more")
        if self.revision is not None:
            demand(re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None, "judge.revision", self.revision,
                   "give the commit's 40 hex digits (a branch or tag may move)")
        if self.prompt != MISSING:
            for name in ("{question}", "{gold}", "{solution}"):
                demand(name in self.prompt, "judge.prompt", self.prompt, f"put {name} where it goes")
        if self.accept != MISSING:
            try:
                re.compile(self.accept)
            except re.error as error:
                raise ConfigError(f"judge.accept={self.accept}: no regular expression ({error})",
                                  r"give one, such as '\bTRUE\b'") from error

    def check_source(self) -> None:
        """Raise ConfigError unless a folder or a pinned hub id is named."""
        if self.path is None and self.id is None:
            raise ConfigError("judge.path=null and judge.id=null: no judge", "give judge.path=DIR or judge.id=ORG/NAME")
        if self.path is None and self.revision is None:
            raise ConfigError(f"judge.revision=null while judge.id={self.id}", "pin it: judge.revision=COMMIT")


@dataclass
class EvalConfig:
    """How base and trained models are asked and scored."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Task name -> its questions."""
    protocol: Protocol = Protocol.paper
    """How tasks are asked; every number in a report names it."""
    engine: Engine = Engine.auto
    """auto = vLLM where it is installed, else Transformers."""
    n: int | None = None
    """Answers a question; null = as the protocol says for the task."""
    temperature: float | None = None
    """Softmax temperature, 0 = greedy; null = as the protocol says for the task."""
    top_p: float | None = None
    """Nucleus mass; null = the model's generation config."""
    top_k: int | None = None
    """Most likely tokens kept, 0 = all; null = the model's generation config."""
    max_tokens: int = MISSING
    """Longest answer, tokens. The paper's protocol also limits prompt and answer together (model.paper_context)."""
    limit: int | None = None
    """Use the first so many questions of each task; null = all."""

    def __post_init__(self) -> None:
        if self.n is not None:
            demand(self.n >= 1, "eval.n", self.n, "use 1 or more, or null for the protocol's")
        if self.temperature is not None:
            demand(self.temperature >= 0, "eval.temperature", self.temperature,
                   "use 0 (greedy) or more, or null for the protocol's")
        check_nucleus("eval", self.top_p, self.top_k)
        if self.max_tokens != MISSING:
            demand(self.max_tokens >= 1, "eval.max_tokens", self.max_tokens, "use 1 or more")
        if self.limit is not None:
            demand(self.limit > 0, "eval.limit", self.limit, "use 1 or more, or null for all")

    def ask(self, task: str) -> AskConfig:
        """How the protocol asks a task, with what this group overrides."""
        ask: AskConfig = getattr(self.tasks[task], self.protocol.name)
        return AskConfig(ask.n if self.n is None else self.n, ask.temperature if self.temperature is None else self.temperature,
                         ask.options, ask.prompt)

    def check(self) -> None:
        """Rules between fields. Raises ConfigError."""
        if not self.tasks:
            raise ConfigError("eval.tasks={}: nothing to evaluate on", "choose one, such as eval=gsm8k")
        for name, task in self.tasks.items():
            task.check(f"eval.tasks.{name}", self.protocol)
            ask, where = self.ask(name), f"eval.tasks.{name}.{self.protocol.name}"
            demand(ask.n >= 1, f"{where}.n", ask.n, "use 1 or more")
            if ask.temperature is not None:
                demand(ask.temperature >= 0, f"{where}.temperature", ask.temperature, "use 0 (greedy) or more")
            if ask.n > 1 and ask.temperature == 0:
                n = f"eval.n={ask.n}" if self.n is not None else f"{where}.n={ask.n}"
                t = "eval.temperature=0" if self.temperature is not None else f"{where}.temperature=0"
                raise ConfigError(f"{n} with {t}: greedy answers would all be the same",
                                  "set eval.n=1, or eval.temperature above 0")


def check_nucleus(group: str, top_p: float | None, top_k: int | None) -> None:
    """Raise ConfigError for a nucleus that holds nothing."""
    if top_p is not None:
        demand(0 < top_p <= 1, f"{group}.top_p", top_p, "use a value in (0, 1], or null for the model's own")
    if top_k is not None:
        demand(top_k >= 0, f"{group}.top_k", top_k, "use 0 (all tokens) or more, or null for the model's own")
