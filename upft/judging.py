"""What a judge is asked about an answer, and how its reply is read.

Floor 4: text and ids; draws nothing. An answer that cannot be put to the judge (too long for its context, or holding its
control tokens) is not accepted, and the reason says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft import models, rollouts, shapes
from upft.errors import DataError, ModelError
from upft.prompts import Prompter
from upft.specs import HubRef, JudgeSpec, PromptSpec

BLANKS = re.compile(r"\{(question|gold|solution)\}")


@dataclass(frozen=True)
class Case:
    """An answer before the judge. id: of question and answer; prompt: None where it cannot be asked, and `why` not."""

    id: str
    prompt: rollouts.Prompt | None
    why: str | None = None


def name(row: Mapping[str, Any]) -> str:
    """How a case is called: by its question and its place among the answers."""
    return f"{row['id']}/{row['index']}"


def cases(spec: JudgeSpec, rows: Iterable[Mapping[str, Any]], prompter: Prompter, context: int) -> list[Case]:
    """The answers that the rule calls wrong, as prompts. context: the judge's longest sequence, tokens."""
    found = []
    for row in rows:
        if row["right"]:
            continue
        if not row["completion"].strip():
            found.append(Case(name(row), None, "empty"))
            continue
        blanks = {"question": row["question"], "gold": row["gold"], "solution": row["completion"]}
        text = BLANKS.sub(lambda blank, filled=blanks: filled[blank.group(1)], spec.prompt)  # type: ignore[misc]
        try:
            ids = tuple(prompter.ids(text))
        except DataError:
            found.append(Case(name(row), None, "holds a control token of the judge"))
            continue
        if len(ids) + spec.max_tokens > context:
            found.append(Case(name(row), None, "too long for the judge"))
            continue
        found.append(Case(name(row), rollouts.Prompt(name(row), ids, spec.max_tokens)))
    return found


def accepts(spec: JudgeSpec, reply: str) -> bool:
    """Whether a reply accepts the answer."""
    return re.search(spec.accept, reply) is not None


def opened(spec: JudgeSpec) -> tuple[Path | HubRef, Any, Prompter]:
    """(where the judge's weights are, its tokenizer, who writes its prompts). Raises ModelError, saying that it is the
    judge's."""
    source = models.resolve(spec.model.source)
    try:
        tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
        return source, tokenizer, Prompter(tokenizer, PromptSpec(spec.system_prompt, "{question}"))
    except ModelError as error:
        raise ModelError(f"the judge cannot be loaded: {error.what}",
                         f"{error.remedy} (for the judge: judge.path, judge.id, judge.revision)") from error


def check(spec: JudgeSpec) -> None:
    """Raise ModelError for a judge that cannot be loaded, before anything is spent."""
    source, _, _ = opened(spec)
    if isinstance(source, HubRef) and shapes.read_shape(source) is None:
        raise ModelError(f"the judge cannot be loaded: {source.id} at {source.revision[:8]} is not to be had here",
                         "check the network and access rights, or give a local folder with judge.path=DIR")
