"""Between Hydra and the typed configuration: register the schema, parse a composed tree, read errors.

Floor 0: no torch. Hydra's and OmegaConf's refusals become one message with key, value and remedy.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from upft.config import Config, TaskConfig
from upft.errors import ConfigError, nearest

PACKAGE = Path(__file__).parent
TaskMap = dict[str, TaskConfig]


def register() -> None:
    """Make the schema and the resolvers known to Hydra. Call before composing."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="hydra/sweeper", name="cells", provider="upft", node={
        "_target_": "hydra_plugins.upft_launcher.CellSweeper", "max_batch_size": None, "params": None})
    for name in ("cells", "slurm"):
        store.store(group="hydra/launcher", name=name, provider="upft", node={
            "_target_": "hydra_plugins.upft_launcher.CellLauncher", "slurm": name == "slurm"})
    OmegaConf.register_new_resolver("longest", max, replace=True)
    OmegaConf.register_new_resolver("either", lambda holds, yes, no: yes if holds else no, replace=True)
    OmegaConf.register_new_resolver("embedded", lambda name: str(PACKAGE / name), replace=True)


def parse(cfg: DictConfig, known: dict[tuple[str, str], Any] | None = None) -> Config:
    """Hydra's tree -> typed `Config`. Unknown keys (also those forced in with `+`), wrong types, missing
    values and broken rules raise ConfigError with key, value and remedy. No DictConfig lives on after this.
    known: groups parsed before, filled here, so that the cells of a sweep parse what they have in common once.
    """
    known = {} if known is None else known
    schema = OmegaConf.structured(Config)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        _refuse_unknown(plain, Config)
        seen = {str(name): (str(name), json.dumps(value, default=repr)) for name, value in plain.items()}
        tree = OmegaConf.merge(schema, OmegaConf.create({name: plain[name] for name, key in seen.items() if key not in known}))
        assert isinstance(tree, DictConfig)
        for name, key in seen.items():
            if key not in known:
                value = tree[name]
                known[key] = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        config = Config(**{name: known[key] for name, key in seen.items()})
    except OmegaConfBaseException as error:
        raise ConfigError(*_read_omegaconf(error)) from error
    config.check()
    return config


def _refuse_unknown(node: dict[Any, Any], kind: Any, path: str = "") -> None:
    """`+prefix.foo=1` slips past Hydra's struct flag; compare the tree with the dataclasses instead."""
    hints = field_types(kind)
    for key, value in node.items():
        where = f"{path}{key}"
        if key not in hints:
            raise ConfigError(f"{where}={value}: there is no such key", nearest(str(key), hints))
        inner = hints[key]
        if isinstance(value, dict):
            if inner == TaskMap:
                for name, task in value.items():
                    _refuse_unknown(task, TaskConfig, f"{where}.{name}.")
            elif hasattr(inner, "__dataclass_fields__"):
                _refuse_unknown(value, inner, f"{where}.")


def field_types(kind: Any) -> dict[str, Any]:
    """Field name -> type of a config dataclass; `X | None` is reported as X."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inner = [a for a in get_args(hint) if a is not type(None)]
        optional = type(None) in get_args(hint)
        found[name] = inner[0] if optional and len(inner) == 1 else hint
    return found


def _read_omegaconf(error: BaseException) -> tuple[str, str]:
    """(what, remedy) of an OmegaConf error, in the words of this project."""
    key = getattr(error, "full_key", None) or "config"
    first = str(error).strip().splitlines()[0]
    if "Missing mandatory value" in str(error):
        return f"{key} is missing", f"give {key}=VALUE"
    if "is incompatible with type hint" in first or "could not be converted" in first or "Invalid value" in first:
        return f"{key}: {first}", f"give {key} a value of that type (run.py --cfg job shows the current ones)"
    return f"{key}: {first}", "run.py --help explains the groups; run.py --cfg job shows every key"


def explain_composition(error: BaseException) -> str | None:
    """One message for what Hydra or OmegaConf refuse while composing (before `parse`)."""
    text = str(error)
    cause = error.__cause__
    unknown = re.search(r"Could not (?:override|append to config|append) '([^']+)'", text)
    if unknown:
        override = unknown.group(1)
        if cause is not None and "not in" not in str(cause):
            what, remedy = _read_omegaconf(cause)
            return f"{what}\n  remedy: {remedy}"
        dotted = override.lstrip("+~").split("=")[0]
        return f"{dotted}: there is no such key\n  remedy: {_nearest_key(dotted)}"
    option = re.search(r"(?:In '[^']*': )?Could not find '([^']+)'", text)
    if option:
        group, _, name = option.group(1).rpartition("/")
        options = re.search(r"Available options in '[^']*':\n((?:\s+.+\n?)+)", text)
        known = [line.strip() for line in options.group(1).splitlines() if line.strip()] if options else []
        hint = nearest(name, known) if known else "run.py --help lists the groups and their options"
        return f"{group}={name}: there is no such option\n  remedy: {hint}"
    if isinstance(error, OmegaConfBaseException):
        what, remedy = _read_omegaconf(error)
        return f"{what}\n  remedy: {remedy}"
    if cause is not None and isinstance(cause, OmegaConfBaseException):
        what, remedy = _read_omegaconf(cause)
        return f"{what}\n  remedy: {remedy}"
    return f"{text.strip()}\n  remedy: run.py --help shows how overrides are written"


def _nearest_key(dotted: str) -> str:
    """The nearest known key to a dotted path, as a remedy."""
    kind: Any = Config
    walked: list[str] = []
    for part in dotted.split("."):
        hints = field_types(kind) if hasattr(kind, "__dataclass_fields__") else {}
        if part not in hints:
            return (f"in {'.'.join(walked) or 'the config'}: " + nearest(part, hints)) if hints else \
                "run.py --cfg job shows every key"
        walked.append(part)
        kind = TaskConfig if hints[part] == TaskMap else hints[part]
    return "run.py --cfg job shows every key"


