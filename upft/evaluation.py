"""What an evaluation asks: a task's items as prompts, judged before anything is spent on them.

Floor 4, under the stages that ask and over the pipeline's look ahead, so that both refuse the same things in the same
words. Draws nothing.
"""

from __future__ import annotations

from pathlib import Path

from upft import asking, datasets, rollouts, shapes
from upft.errors import ConfigError, DataError
from upft.prompts import Prompter
from upft.sampler import Sampling
from upft.specs import EvaluateSpec, HubRef


def items(spec: EvaluateSpec) -> tuple[list[asking.Item], datasets.Questions]:
    """What is asked, and the questions it was made from. Raises DataError."""
    questions = datasets.load_graded(spec.questions)
    return asking.items(questions, spec.wording, spec.kind), questions


def prompts(spec: EvaluateSpec, asked: list[asking.Item], prompter: Prompter, context: int | None) -> list[rollouts.Prompt]:
    """Each item in the model's own words, with room for its answer.

    context: the model's longest sequence, None where it is not known; the protocol's own limit holds beside it. Raises
    DataError for a question that leaves no room.
    """
    limits = [limit for limit in (context, spec.context) if limit is not None]
    longest = min(limits) if limits else None
    whose = "the protocol's (model.paper_context)" if longest is not None and longest == spec.context else "the model's context"
    found = []
    for item in asked:
        ids = tuple(prompter.ids(item.text))
        room = spec.max_tokens if longest is None else min(spec.max_tokens, longest - len(ids))
        if room < 1:
            raise DataError(f"task {spec.task}: question {item.id} has {len(ids)} tokens, {whose} {longest}",
                            "leave it out of the task's file, or use a model with a longer context")
        found.append(rollouts.Prompt(item.id, ids, room))
    return found


def check_sampling(spec: EvaluateSpec, sampling: Sampling) -> None:
    """Raise ConfigError where all answers to a question would be the same."""
    if spec.n > 1 and sampling.temperature == 0:
        raise ConfigError(f"eval.protocol={spec.protocol.name} asks {spec.task} {spec.n} times at the temperature the model "
                          "recommends, and its generation config recommends none",
                          "set model.temperature (such as 0.6), or eval.temperature, or eval.n=1")


def check(spec: EvaluateSpec, prompter: Prompter, sampling: Sampling, source: Path | HubRef) -> None:
    """Raise what the stage would raise, hours earlier."""
    shape = shapes.read_shape(source)
    check_sampling(spec, sampling)
    prompts(spec, items(spec)[0], prompter, None if shape is None else shape.context)
