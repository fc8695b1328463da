"""Between Hydra and the typed configuration: register the schema, parse a composed tree.

Floor 6: no torch. OmegaConf's refusals become one message with key, value and remedy; Hydra's are read in `refusals`.
"""

from __future__ import annotations

import functools
import json
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
        raise ConfigError(*read_omegaconf(error)) from error
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


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """Field name -> type of a config dataclass; `X | None` is reported as X."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inner = [a for a in get_args(hint) if a is not type(None)]
        optional = type(None) in get_args(hint)
        found[name] = inner[0] if optional and len(inner) == 1 else hint
    return found


def read_omegaconf(error: BaseException) -> tuple[str, str]:
    """(what, remedy) of an OmegaConf error, in the words of this project."""
    key = getattr(error, "full_key", None) or "config"
    first = str(error).strip().splitlines()[0]
    if "Missing mandatory value" in str(error):
        return f"{key} is missing", f"give {key}=VALUE"
    if "is incompatible with type hint" in first or "could not be converted" in first or "Invalid value" in first:
        return f"{key}: {first}", f"give {key} a value of that type (run.py --cfg job shows the current ones)"
    return f"{key}: {first}", "run.py --help explains the groups; run.py --cfg job shows every key"
