"""Typed values as JSON and back: a stage of a plan, on its way to the process that runs it elsewhere.

Floor 2, beside the plan: no torch. Nothing is composed again there, and nothing is pickled: the dataclasses say
what each value is, and a stage that is not the one its key names is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import uuid
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from upft import plan
from upft.errors import StoreError
from upft.plan import Stage


def plain(value: Any) -> Any:
    """As JSON types: dataclasses with their name and every field (also those that no key depends on), enums by name."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def typed(kind: Any, value: Any) -> Any:
    """What `plain` made of a value of this type. Raises TypeError where the two do not fit."""
    if get_origin(kind) in (types.UnionType, Union):
        kinds = get_args(kind)
        if value is None and types.NoneType in kinds:
            return None
        named = [one for one in kinds if isinstance(value, dict) and one.__name__ == value.get("type")]
        left = named or [one for one in kinds if one is not types.NoneType and not dataclasses.is_dataclass(one)]
        if len(left) != 1:
            raise TypeError(f"{value!r} is none of {kind}")
        return typed(left[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict) or value.get("type") != kind.__name__:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        hints = get_type_hints(kind)
        given = {name: one for name, one in value.items() if name != "type"}
        if set(given) - set(hints):
            raise TypeError(f"{kind.__name__} has no {sorted(set(given) - set(hints))[0]}")
        return kind(**{name: typed(hints[name], one) for name, one in given.items()})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[value]
    if get_origin(kind) is tuple:
        return tuple(typed(get_args(kind)[0], one) for one in value)
    if get_origin(kind) is list:
        return [typed(get_args(kind)[0], one) for one in value]
    if get_origin(kind) in (dict, Mapping):
        return {key: typed(get_args(kind)[1], one) for key, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is not Any and type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def write(folder: Path, stage: Stage) -> Path:
    """`folder/KEY.json`; the stages that it needs are written apart."""
    path = folder / f"{stage.key}.json"
    save(path, {"name": stage.name, "label": stage.label, "spec": plain(stage.spec),
                "inputs": {role: upstream.key for role, upstream in stage.inputs.items()}})
    return path


def read(folder: Path, key: str, known: dict[str, Stage] | None = None) -> Stage:
    """The stage that was written under this key, with all it needs; `known` saves reading one twice.

    Raises StoreError where a file is not there or is not what its name says, as after an update of the code.
    """
    known = {} if known is None else known
    if key in known:
        return known[key]
    path = folder / f"{key}.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        stage = Stage(told["name"], told["label"], typed(plan.Spec, told["spec"]),
                      {role: read(folder, upstream, known) for role, upstream in told["inputs"].items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} does not describe a stage: {error}", "submit the sweep again with its command") from error
    if stage.key != key:
        raise StoreError(f"{path} describes the stage {stage.key}: the code has changed since it was submitted",
                         "submit the sweep again with its command")
    known[key] = stage
    return stage


def save(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds the whole file or none, on a shared file system too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
