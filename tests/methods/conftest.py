"""Samples written by hand, with the embedded tokenizer, and stages over them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import PROMPT, RATIO, WEIGHTS
from rich.console import Console as RichConsole

from upft import models, prefix
from upft.console import Console
from upft.machine import ComputeConfig, TrackerConfig
from upft.prompts import Prompter
from upft.sampler import EnginePool
from upft.stages import Host


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    if not (WEIGHTS / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in upft/toy/weights")
    return models.load_tokenizer(WEIGHTS)


@pytest.fixture
def questions() -> Callable[[bool, int], list[str]]:
    """questions(whole, count) -> questions that carry a whole trace at RATIO, or that do not."""

    def some(whole: bool, count: int) -> list[str]:
        numbered = (f"What is {n} plus 2?" for n in range(1000))
        return [q for q in numbered if prefix.carries_trace(prefix.question_id(q), RATIO) == whole][:count]

    return some


@pytest.fixture
def sampled(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """sampled({question: [text, ...]}, answers) -> the folder of a sampling of whole traces. A text that ends in `...` was
    cut by the length limit. answers: gold answer of each question, `4` where it is not told."""

    def write(drawn: dict[str, list[str]], answers: dict[str, str | None] | None = None, name: str = "samples") -> Path:
        folder, prompter = tmp_path / name, Prompter(tokenizer, PROMPT)
        folder.mkdir()
        with (folder / "questions.jsonl").open("w") as asked, (folder / "samples.jsonl").open("w") as traces:
            for question, texts in drawn.items():
                id_ = prefix.question_id(question)
                asked.write(json.dumps({"id": id_, "text": question, "answer": (answers or {}).get(question, "4"),
                                        "prompt_ids": prompter.ids(question)}) + "\n")
                for index, text in enumerate(texts):
                    cut = text.endswith("...")
                    ids = tokenizer(text.removesuffix("..."), add_special_tokens=False)["input_ids"]
                    traces.write(json.dumps({"id": id_, "index": index, "kind": "trace",
                                             "ids": ids if cut else [*ids, tokenizer.eos_token_id],
                                             "finish_reason": "length" if cut else "stop"}) + "\n")
        (folder / "samples.json").write_text(json.dumps({"stop_ids": [prompter.eos_id], "questions": len(drawn)}))
        (folder / "spec.json").write_text(json.dumps({"spec": {"sampling": {"temperature": 0.6}}}))
        return folder

    return write


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """run(stage, spec, inputs, name, **compute) -> what the stage said and warned of; its artifact is tmp_path / name."""

    def go(stage: Any, spec: Any, inputs: dict[str, Path], name: str, **compute: Any) -> str:
        out, said = tmp_path / name, io.StringIO()
        out.mkdir()
        machine = ComputeConfig(**compute)
        console = Console(rich=RichConsole(file=said, width=300))
        with EnginePool(machine) as engines:
            stage.run(spec, inputs, out, Host(machine, TrackerConfig(), console, engines))
        (out / "spec.json").write_text(json.dumps({"stage": "x", "spec": {}}))
        return said.getvalue() + capsys.readouterr().err

    return go
