"""Where a spec's models and questions come from, whether they are still what was planned, and which engine `auto` is here.

Floor 2, under the plan. Reads local files only to hash them; a hub source's pinned revision is its content.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upft import config as c
from upft.errors import ConfigError, DataError, ModelError
from upft.hashing import SHARED, Hasher
from upft.specs import (
    ContentRef,
    Generated,
    HubRef,
    ModelSpec,
    QuestionsSpec,
)


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
    return ContentRef(_content(folder, hasher), str(folder.resolve()))


def questions_spec(source: c.Source, key: str, hasher: Hasher, limit: int | None,
                   wrong_fields: tuple[str, ...] = ()) -> QuestionsSpec:
    """How to find and read a set of questions; the smaller of the two limits holds."""
    ref: ContentRef | HubRef | Generated
    if source.path is not None:
        path = Path(source.path)
        if not path.is_file():
            raise DataError(f"{key}.path={source.path}: there is no such file",
                            "check the path (it is relative to where run.py is started)")
        ref = ContentRef(_content(path, hasher), str(path.resolve()))
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


def _content(path: Path, hasher: Hasher) -> str:
    """SHA-256 of a file of questions, or over a model's folder (all but documentation, hidden files and folders)."""
    if not path.is_dir():
        return hasher.file(path)
    return hasher.files(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and p.suffix != ".md")


def check(spec: Any, hasher: Hasher = SHARED) -> None:
    """Raise DataError where a local file or folder that the spec names no longer has the content its key says.

    It is read once a process (planning counts); after that only sizes and times are looked at, unless they differ.
    """
    for ref in _local(spec):
        try:
            same = _content(Path(ref.path), hasher) == ref.sha256
        except OSError as error:
            raise DataError(f"{ref.path} cannot be read: {error.strerror}",
                            "put back what was there when the run was planned, or give another path") from error
        if not same:
            raise DataError(f"{ref.path} has changed since it was planned", "run the command again: it is planned anew")


def _local(value: Any) -> Iterator[ContentRef]:
    """Every ContentRef in a spec."""
    if isinstance(value, ContentRef):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _local(getattr(value, field.name))


def resolve_engine(engine: c.Engine, key: str) -> c.Engine:
    """`auto` -> vLLM where it is installed, else Transformers. Raises ConfigError for a missing vLLM."""
    there = importlib.util.find_spec("vllm") is not None
    if engine is c.Engine.auto:
        return c.Engine.vllm if there else c.Engine.transformers
    if engine is c.Engine.vllm and not there:
        raise ConfigError(f"{key}=vllm: vLLM is not installed here",
                          f"install the extra (see README), or use {key}=transformers")
    return engine
