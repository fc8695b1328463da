"""The contestants of bench/sample.py: this project's stage, bare vLLM, the embedded engine.

Run as a worker by measure.py: `samplers.py TASK OUTCOME`. All get the same questions and settings; what a contestant
needs before its first token (imports, weights, the engine's start) is timed apart. What is compared is sample.py's
business.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure

from upft import models
from upft.choices import AnswerFormat, Dtype, Engine
from upft.console import Console
from upft.machine import ComputeConfig, TrackerConfig
from upft.specs import ContentRef, ModelSpec, PromptSpec, QuestionsSpec, SampleSpec, SamplingSpec

IN_PROCESS = "vllm.LLM in process"
WARM_UP = (8, 1, 4)
"""A round before those that count: what a process does once (imports, the tokenizer) is a run's cost, not a sampling's."""
TEMPERATURE = 0.6
"""The paper's (arXiv:2503.02875)."""


@dataclass(frozen=True)
class Task:
    """One contestant's run. rounds: what to sample one after the other with one engine, as (questions, traces a
    question, most tokens)."""

    contestant: str
    model: str
    data: str
    rounds: tuple[tuple[int, int, int], ...]
    dtype: str
    threads: int | None
    eager: bool
    logprobs: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Task:
        """From JSON."""
        return cls(**{**values, "rounds": tuple(tuple(r) for r in values["rounds"])})


@dataclass(frozen=True)
class Round:
    """What a round took and gave; cached: prompt tokens that were not computed."""

    seconds: float
    samples: int
    prompt_tokens: int
    cached_tokens: int
    sampled_tokens: int
    flops: float


def spec(task: Task, questions: int, n: int, max_tokens: int) -> SampleSpec:
    """The stage's spec for a round: every question gets `max_tokens`."""
    source = QuestionsSpec(ContentRef("", task.data), "question", None, AnswerFormat.plain, questions)
    engine = Engine.transformers if task.contestant == "transformers" else Engine.vllm
    return SampleSpec(ModelSpec(ContentRef("", task.model), False), PromptSpec(None, "{question}"), source,
                      SamplingSpec(engine, Dtype(task.dtype), TEMPERATURE, None, None, 0), n, max_tokens, 0.0, max_tokens,
                      task.logprobs)


def stage(task: Task) -> tuple[float, list[Round]]:
    """`stages.sample.run` as the pipeline calls it: prompts rendered, samples logged and written out."""
    from upft.ledger import Ledger
    from upft.sampler import EnginePool
    from upft.stages import Host, sample

    compute = ComputeConfig(threads=task.threads, enforce_eager=task.eager)
    rounds = []
    with EnginePool(compute) as engines:
        began = time.perf_counter()
        engine = Engine.transformers if task.contestant == "transformers" else Engine.vllm
        engines.get(engine, Path(task.model), Dtype(task.dtype))
        opened = time.perf_counter() - began
        for asked in task.rounds:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                sample.run(spec(task, *asked), {}, Path(folder), Host(compute, TrackerConfig(), Console(quiet=True), engines))
                seconds, cost = time.perf_counter() - began, Ledger.read(Path(folder))
            rounds.append(Round(seconds, asked[0] * asked[1], cost.prompt_tokens, cost.cached_tokens, cost.sampled_tokens,
                                cost.flops))
    return opened, rounds


def bare(task: Task) -> tuple[float, list[Round]]:
    """`vllm.LLM.generate`, nothing around it. It draws without seeds of the requests' own, which vLLM's CPU build
    cannot do by itself; prompts are ids already. By default vLLM runs its core in a second process; `vllm.LLM in process`
    has it in this one, as the stage's worker does."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(ComputeConfig.cpu_kv_cache_gib))  # as the stage's engine has
    if task.contestant == IN_PROCESS:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams, TokensPrompt

    from upft import datasets
    from upft.prompts import Prompter
    from upft.sampler import resolve_sampling

    model = Path(task.model)
    tokenizer = models.load_tokenizer(model)
    began = time.perf_counter()
    engine = LLM(model=task.model, dtype=task.dtype, enforce_eager=task.eager, enable_prefix_caching=True, seed=0,
                 max_model_len=-1)
    opened = time.perf_counter() - began
    rounds = []
    for questions, n, max_tokens in task.rounds:
        one = spec(task, questions, n, max_tokens)
        prompter, settings = Prompter(tokenizer, one.prompt), resolve_sampling(one.sampling, model, tokenizer)
        prompts = [TokensPrompt(prompt_token_ids=list(prompter.ids(q.text)))
                   for q in datasets.load(one.questions).rows for _ in range(n)]
        parameters = SamplingParams(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k,
                                    max_tokens=max_tokens, stop_token_ids=sorted(settings.stop_ids))
        began = time.perf_counter()
        out = engine.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - began
        rounds.append(Round(seconds, len(out), sum(len(o.prompt_token_ids) for o in out),
                            sum(o.num_cached_tokens or 0 for o in out), sum(len(o.outputs[0].token_ids) for o in out), 0.0))
    return opened, rounds


def main() -> None:
    """Run the task, write the outcome."""
    task = Task.read(json.loads(Path(sys.argv[1]).read_text()))
    opened, rounds = bare(task) if task.contestant in ("vllm.LLM", IN_PROCESS) else stage(task)
    Path(sys.argv[2]).write_text(json.dumps({
        "opened": opened, "rounds": [dataclasses.asdict(r) for r in rounds], "high_water_bytes": measure.high_water_bytes()}))


if __name__ == "__main__":
    main()
