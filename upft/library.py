"""The parts for a notebook: load a model, sample, build rows, train, evaluate, all in memory.

Floor 6. Typed and stable; `import upft` offers these names. Each function is the core of a stage without the
store around it, on the embedded (Transformers) engine.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import config as c
from upft import datasets, grading, models, prefix, rollouts, statistics
from upft.choices import AnswerFormat
from upft.console import Console
from upft.datasets import Question
from upft.prefix import Row
from upft.prompts import Prompter
from upft.sampler import resolve_sampling
from upft.specs import ContentRef, Generated, PromptSpec, QuestionsSpec, SamplingSpec

if TYPE_CHECKING:
    import numpy as np

SUFFIX = (" Please provide the initial step towards resolving the question. This step may serve as a foundation but "
          "might not encompass the entire solution.")
"""The paper's task suffix (arXiv:2503.02875)."""
EMBEDDED = {"tiny": Path(__file__).parent / "toy" / "weights"}


@dataclass
class LanguageModel:
    """A causal LM with its tokenizer, in memory. `folder` is where it was loaded from."""

    model: Any
    tokenizer: Any
    folder: Path
    prompt: PromptSpec
    _engine: Any = field(default=None, repr=False)

    @property
    def engine(self) -> Any:
        """An embedded engine over these very weights."""
        if self._engine is None:
            from upft.sampler.transformers_engine import TransformersEngine

            self._engine = TransformersEngine.over(self.model, str(self.folder))
        return self._engine

    @property
    def prompter(self) -> Prompter:
        """Renders questions for this model."""
        return Prompter(self.tokenizer, self.prompt)


@dataclass(frozen=True)
class Scores:
    """Graded answers. correct: [questions, n] of 0 and 1; accuracy with its 95% interval."""

    correct: np.ndarray
    accuracy: statistics.Estimate
    completions: tuple[str, ...]

    def __str__(self) -> str:
        a = self.accuracy
        return f"{100 * a.value:.1f}% [{100 * a.low:.1f}, {100 * a.high:.1f}]"


def load(name: str | Path, system_prompt: str | None = None, user_template: str = "{question}") -> LanguageModel:
    """The embedded model (`"tiny"`) or a Hugging Face folder, in fp32. Raises ModelError."""
    import torch

    folder = EMBEDDED.get(str(name), Path(name))
    tokenizer = models.load_tokenizer(folder)
    return LanguageModel(models.load_model(folder, torch.float32), tokenizer, folder,
                         PromptSpec(system_prompt, user_template))


def arithmetic(split: str, count: int, seed: int = 0) -> list[Question]:
    """Generated word problems; `train` and `test` never share one. Raises DataError."""
    source = Generated(split, count, seed, 2, 4, 20)
    return list(datasets.load(QuestionsSpec(source, "question", None, AnswerFormat.plain, None)).rows)


def read_questions(path: str | Path, question_field: str = "question", answer_field: str | None = None,
                   answer_format: AnswerFormat = AnswerFormat.plain, limit: int | None = None) -> list[Question]:
    """Distinct questions of a .jsonl, .json, .csv or .parquet file. Raises DataError with file and line."""
    source = ContentRef("", str(path))
    return list(datasets.load(QuestionsSpec(source, question_field, answer_field, answer_format, limit)).rows)


def sample(model: LanguageModel, questions: Sequence[Question], max_tokens: int, n: int = 1, temperature: float = 0.6,
           top_p: float | None = None, top_k: int | None = None, seed: int = 0) -> list[rollouts.Rollout]:
    """`n` completions of each question, ordered by question and index; a shorter `max_tokens` gives their prefixes."""
    return _roll_out(model, questions, [max_tokens] * len(questions), n, temperature, top_p, top_k, seed)


def upft_rows(model: LanguageModel, questions: Sequence[Question], prefix_len: int = 8, ratio: float = 0.1,
              trace_max_tokens: int = 192, temperature: float = 0.6, seed: int = 0,
              unit: c.CutUnit = c.CutUnit.token) -> list[Row]:
    """UPFT's training rows: one sampled prefix a question, whole traces for a nested share of `ratio`.

    unit: what `prefix_len` counts, sampled tokens or words first (see `config.PrefixConfig.unit`).
    """
    whole = [prefix.carries_trace(q.id, ratio) for q in questions]
    limits = [trace_max_tokens if w else prefix_len for w in whole]
    drawn = _roll_out(model, questions, limits, 1, temperature, None, None, seed)
    prompter, stops = model.prompter, _sampling(model, temperature, None, None, seed).stop_ids
    rows = []
    for question, trace, rollout in zip(questions, whole, drawn, strict=True):
        if not trace:
            cut = rollout.ids if unit is c.CutUnit.token else prompter.words(rollout.ids, prefix_len, stops)
            rows.append(prefix.prefix_row(question.id, prompter.ids(question.text, SUFFIX), cut, prefix_len,
                                          prompter.eos_id, stops))
        elif rollout.finish_reason == "stop":
            rows.append(prefix.trace_row(question.id, prompter.ids(question.text), rollout.ids))
    return rows


def train(model: LanguageModel, rows: Sequence[Row], lr: float, epochs: int = 1, batch_size: int = 64, seed: int = 0,
          reduction: c.Reduction = c.Reduction.sequence, precision: c.Precision = c.Precision.fp32,
          progress: bool = False) -> LanguageModel:
    """A trained copy of `model`; the original keeps its weights. Raises TrainError."""
    from upft import fit

    settings = c.TrainConfig(epochs=epochs, lr=lr, batch_size=batch_size, max_length=2**31, reduction=reduction,
                             precision=precision)
    trained = copy.deepcopy(model.model)
    with tempfile.TemporaryDirectory() as folder:
        fit.fit(trained, rows, settings, seed, c.ComputeConfig(), Path(folder), console=Console(quiet=not progress))
    return LanguageModel(trained, model.tokenizer, model.folder, model.prompt)


def evaluate(model: LanguageModel, questions: Sequence[Question], n: int = 1, temperature: float = 0.0,
             max_tokens: int = 192, seed: int = 0) -> Scores:
    """Ask and grade; accuracy with its 95% interval. Raises ValueError for a question without a gold answer."""
    import numpy as np

    gold = {q.id: q.answer for q in questions}
    if any(answer is None for answer in gold.values()):
        raise ValueError("a question has no gold answer: give answer_field when reading them")
    drawn = _roll_out(model, questions, [max_tokens] * len(questions), n, temperature, None, None, seed)
    texts = tuple(model.tokenizer.decode(r.ids, skip_special_tokens=True) for r in drawn)
    right = [grading.grade(text, str(gold[r.question_id])).right for r, text in zip(drawn, texts, strict=True)]
    correct = np.array(right, dtype=float).reshape(len(questions), n)
    return Scores(correct, statistics.accuracy(correct), texts)


def compare(before: Scores, after: Scores) -> statistics.Paired:
    """Paired difference (after minus before) on the same questions, with interval and p-value."""
    return statistics.paired(before.correct, after.correct)


def save(model: LanguageModel, folder: str | Path) -> None:
    """Write an ordinary Hugging Face folder."""
    models.save_model(model.model, model.tokenizer, Path(folder), model.folder)


def _sampling(model: LanguageModel, temperature: float, top_p: float | None, top_k: int | None, seed: int) -> Any:
    spec = SamplingSpec(c.Engine.transformers, c.Dtype.float32, temperature, top_p, top_k, seed)
    return resolve_sampling(spec, model.folder, model.tokenizer)


def _roll_out(model: LanguageModel, questions: Sequence[Question], limits: Sequence[int], n: int, temperature: float,
              top_p: float | None, top_k: int | None, seed: int) -> list[rollouts.Rollout]:
    prompter, engine = model.prompter, model.engine
    prompts = [rollouts.Prompt(q.id, tuple(prompter.ids(q.text)), limit)
               for q, limit in zip(questions, limits, strict=True)]
    return rollouts.roll_out(engine, _sampling(model, temperature, top_p, top_k, seed), prompts, n, seed,
                             Console(quiet=True), "sampling")
