"""What Hydra refuses while it composes, in the words of this project: one message with key, value and remedy.

Floor 6. Hydra's exceptions rarely name the value and some are bare assertions; which override it was at is read from their
traceback, and the schema says what would have been right.
"""

from __future__ import annotations

import re
from enum import Enum
from types import FrameType
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from upft.composition import field_types, read_omegaconf
from upft.config import Config
from upft.errors import nearest

HELP = "run.py --help explains the groups; run.py --cfg job shows every key"
SPECIAL = "quote a value that has special characters: KEY='\"VALUE\"'; a sweep is -m KEY=A,B"
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def explain(error: BaseException) -> str | None:
    """The message for an exception from composing; None for one that came from elsewhere."""
    told = _read(error)
    return None if told is None else f"{told[0]}\n  remedy: {told[1]}"


def _read(error: BaseException) -> tuple[str, str] | None:
    """(what, remedy)."""
    text = str(error).strip()
    asked = getattr(error, "override", None)  # of an exception from reading the override itself
    if isinstance(asked, str):
        return _unread(asked, text)
    frames = _frames(error)
    if not type(error).__module__.startswith(("hydra.", "omegaconf.")) and not any(map(_composes, frames)):
        return None
    severals = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text)
    if severals:
        return (f"{severals[1]}: several values without -m",
                "run.py -m KEY=A,B is a sweep over them; one value that is a list is written KEY=[A,B]")
    override = next((f.f_locals["override"] for f in frames if hasattr(f.f_locals.get("override"), "key_or_group")), None)
    option = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if option:
        group, _, name = option[1].rpartition("/")
        listed = re.search(r"Available options in '[^']*':\n((?:\s+.+\n?)+)", text)
        repository = _repository(frames)
        known = [line.strip() for line in listed[1].splitlines() if line.strip()] if listed else (
            repository.get_group_options(group) if repository is not None else [])
        return f"{group}={name}: there is no such option", nearest(name, known) if known else HELP
    if override is not None:
        tree = next((f.f_locals["cfg"] for f in frames if isinstance(f.f_locals.get("cfg"), DictConfig)), None)
        told = _judged(override, tree, frames)
        if told is not None:
            return told
    for one in (error, error.__cause__):
        if isinstance(one, OmegaConfBaseException):
            return read_omegaconf(one)
    first = text.partition("\n\n")[0]  # without Hydra's search path
    return (first if override is None else f"{override.input_line}: {first}"), "run.py --help shows how overrides are written"


def _unread(asked: str, text: str) -> tuple[str, str]:
    """An override that cannot be read."""
    key, equals, value = asked.partition("=")
    what = f"{asked}: this cannot be read as KEY=VALUE"
    if not equals:
        return what, f"give it a value: {key}=VALUE"
    for left, right in ("()", "[]", "{}"):
        if value.count(left) != value.count(right):
            return what, f"{left} and {right} do not pair in {value!r}"
    if value.rstrip().endswith(",") or value.lstrip().startswith(","):
        return what, f"a comma stands between two values: -m {key}={value.strip(', ')} has no more"
    called = re.search(r"while evaluating '([^']+)': (.+)", text)
    return what, f"{called[1]}: {called[2]}" if called else SPECIAL


def _judged(override: Any, tree: DictConfig | None, frames: list[FrameType]) -> tuple[str, str] | None:
    """What is wrong with one override, from the schema and the tree it was to change; None where nothing is found."""
    line, key = override.input_line, override.key_or_group
    if not key:
        return f"{line}: there is no key before the =", HELP
    if key.partition(".")[0] == "hydra":
        return f"{line}: there is no such key", "run.py --cfg hydra shows Hydra's own"
    if override.package is not None:
        return f"{line}: there is no group {key!r} to put there", nearest(key, field_types(Config))
    kind: Any = Config
    node: Any = tree
    parts = key.split(".")
    for place, part in enumerate(parts):
        before = ".".join(parts[:place])
        if get_origin(kind) is dict:
            known = [str(name) for name in node] if isinstance(node, DictConfig) else []
            if part not in known:
                return (f"{line}: {before} has no {part!r} here",
                        (nearest(part, known) if known else f"{before} is empty")
                        + f"; a new one: '+{before}.{part}={{...}}'")
            kind = get_args(kind)[1]
        elif hasattr(kind, "__dataclass_fields__"):
            hints = field_types(kind)
            if part not in hints:
                where = f"in {before}: " if before else ""
                return f"{line}: there is no such key", where + nearest(part, hints)
            kind = hints[part]
        else:
            return f"{line}: there is no such key", f"{before} is no group of keys but one value: {before}=VALUE"
        node = node._get_node(part) if isinstance(node, DictConfig) and not node._is_none() else None
        inside = parts[place + 1:]
        if isinstance(node, DictConfig) and node._is_none() and inside:
            here = ".".join(parts[:place + 1])
            having = _options_with(parts[0], parts[1:place + 1], frames)
            return (f"{line}: {here} is null here, which has no keys",
                    f"choose what has it ({', '.join(f'{parts[0]}={one}' for one in having)})" if having
                    else f"set {here} first, or leave this out")
    if override.is_delete():
        return f"{line}: nothing can be deleted here", f"give {key} another value; null where it may be none"
    return _unfit(line, key, kind, override)


def _unfit(line: str, key: str, kind: Any, override: Any) -> tuple[str, str] | None:
    """A known key with a value of the wrong kind."""
    value = override.value()
    if hasattr(kind, "__dataclass_fields__"):
        known = field_types(kind)
        if isinstance(value, dict):
            unknown = next((name for name in value if name not in known), None)
            return None if unknown is None else (
                f"{key}.{unknown}={value[unknown]}: there is no such key", f"in {key}: " + nearest(str(unknown), known))
        return (f"{line}: {key} is a group of keys, not one value",
                "choose an option, or set a key in it; its keys: " + ", ".join(f"{key}.{name}" for name in known))
    if get_origin(kind) is dict and not isinstance(value, dict):
        return f"{line}: {key} is a group of keys, not one value", f"set a key in it: {key}.KEY=VALUE"
    if isinstance(kind, type) and issubclass(kind, Enum) and isinstance(value, str):
        choices = [one.name for one in kind]
        return f"{line}: there is no such choice", f"{nearest(value, choices)} {key} is one of {', '.join(choices)}"
    if kind in KINDS:
        return f"{line}: {key} is {KINDS[kind]}", f"give {key} a value of that type (run.py --cfg job shows the current one)"
    return None


def _options_with(group: str, path: list[str], frames: list[FrameType]) -> list[str]:
    """The options of a group whose file gives that key a value."""
    repository = _repository(frames)
    found = []
    for name in [] if repository is None else repository.get_group_options(group):
        loaded = repository.load_config(f"{group}/{name}")
        if loaded is not None and OmegaConf.select(loaded.config, ".".join(path)) is not None:
            found.append(name)
    return found


def _repository(frames: list[FrameType]) -> Any:
    """Hydra's repository of configuration files."""
    return next((one for f in frames if (one := getattr(f.f_locals.get("self"), "repository", None)) is not None), None)


def _frames(error: BaseException) -> list[FrameType]:
    """The frames an exception came through, innermost first."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames[::-1]


def _composes(frame: FrameType) -> bool:
    """Whether Hydra was composing there (what runs after that passes through its other rooms)."""
    return str(frame.f_globals.get("__name__", "")).startswith(
        ("hydra._internal.config_loader_impl", "hydra._internal.defaults_list", "hydra.core.override_parser"))
