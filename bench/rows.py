"""The rows a benchmark trains on: real questions through the model's own chat template, no sampling.

Knows tokenizers and data files; no model, no trainer. The worked solution in the data stands in for the
trace that UPFT would sample, so that a benchmark needs no sampling run before it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from upft import datasets, models, packing, prefix
from upft.choices import AnswerFormat
from upft.library import SUFFIX
from upft.prefix import UNSUPERVISED, Row
from upft.prompts import Prompter
from upft.specs import ContentRef, PromptSpec, QuestionsSpec

PREFIX_LEN = 32
"""Tokens of a prefix row's completion before its EOS (the paper's Qwen-Math setting)."""
RATIO = 0.1
"""Share of whole traces among UPFT rows (arXiv:2503.02875)."""


class Kind(Enum):
    """Which rows."""

    upft = "upft"  # 90% prefixes of 32 tokens and EOS, with the task suffix; 10% whole traces
    traces = "traces"  # whole traces only


@dataclass(frozen=True)
class Summary:
    """What the rows are like; the means are in tokens."""

    rows: int
    mean_prompt: float
    mean_completion: float
    longest: int
    whole_traces: int
    tokens: int
    supervised: int


def from_questions(model: Path, data: Path, kind: Kind, count: int, longest: int | None = None) -> list[Row]:
    """The first `count` questions of `data` as rows for the model in folder `model`, in file order.

    data: a file of records with the columns question and answer (GSM8K's), or a folder with such a train.jsonl.
    longest: rows with more tokens are left out and the next question takes their place. Raises DataError and
    ModelError, and ValueError where the file has too few questions.
    """
    file = data / "train.jsonl" if data.is_dir() else data
    spec = QuestionsSpec(ContentRef("", str(file)), "question", "answer", AnswerFormat.plain, None)
    tokenizer = models.load_tokenizer(model)
    prompter = Prompter(tokenizer, PromptSpec(None, "{question}"))
    rows: list[Row] = []
    for question in datasets.load(spec).rows:
        trace = [*tokenizer(question.answer, add_special_tokens=False, verbose=False)["input_ids"], prompter.eos_id]
        if kind is Kind.traces or prefix.carries_trace(question.id, RATIO):
            row = prefix.trace_row(question.id, prompter.ids(question.text), trace)
        else:
            row = prefix.prefix_row(question.id, prompter.ids(question.text, SUFFIX), trace, PREFIX_LEN,
                                    prompter.eos_id, (prompter.eos_id,))
        if longest is None or len(row.input_ids) <= longest:
            rows.append(row)
        if len(rows) == count:
            return rows
    raise ValueError(f"{file} gives {len(rows)} rows, and {count} are asked for: lower --steps or give a larger file")


def random_upft(count: int, vocabulary: int, seed: int) -> list[Row]:
    """Rows of random ids with the lengths of UPFT rows made of GSM8K questions (mean 114 + 43 tokens)."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        whole = draw.random() < RATIO
        question = min(max(round(draw.lognormvariate(4.07, 0.37)), 20), 180)  # 62 tokens on average, as GSM8K's
        prompt = question + (30 if whole else 55)  # the template, and the task suffix
        completion = min(max(round(draw.lognormvariate(4.75, 0.45)), 30), 450) if whole else PREFIX_LEN + 1
        ids = [draw.randrange(vocabulary) for _ in range(prompt + completion)]
        rows.append(Row(f"random{i}", "trace" if whole else "prefix", ids, [UNSUPERVISED] * prompt + ids[prompt:]))
    return rows


def summarise(rows: list[Row]) -> Summary:
    """Counts and means."""
    lengths = [len(row.input_ids) for row in rows]
    supervised = sum(row.supervised for row in rows)
    return Summary(len(rows), (sum(lengths) - supervised) / len(rows), supervised / len(rows), max(lengths),
                   sum(row.kind == "trace" for row in rows), sum(lengths), supervised)


def steps_of(count: int, batch_size: int, seed: int) -> list[np.ndarray]:
    """Row numbers of each optimiser step of one epoch, in the order in which `fit.fit` trains them."""
    order = packing.epoch_order(count, 0, seed)
    return [order[i:i + batch_size] for i in range(0, count, batch_size)]
