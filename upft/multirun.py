"""All cells of a multirun: composed, parsed and planned before the first one runs.

Floor 7. Cells that choose the same groups share one composition: its values are then set for each, which is what Hydra
does, too, and composing anew only where a group changes makes a thousand cells a matter of seconds. A cell with a bad value
is refused by name and nothing is started.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from upft import composition, door, redaction
from upft.config import Config
from upft.errors import ConfigError
from upft.plan import plan
from upft.submission import Cell

if TYPE_CHECKING:
    from hydra.types import HydraContext


SWEEPS_OWN = ("hydra", "plan=", "compute.parallel=", "compute.wait=", "compute.retry=")
"""How overrides begin that do nothing for a single cell."""


class Composer:
    """Composes cells as Hydra would, groups once."""

    def __init__(self, context: HydraContext, master: DictConfig) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._loader: Any = context.config_loader
        self.repository = self._loader.repository
        self._master = master
        self._parser = OverridesParser.create(config_loader=context.config_loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """One cell's tree, without Hydra's own node. Raises what Hydra raises."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl

        parsed = self._parser.parse_overrides(list(overrides))
        # As Hydra tells them apart: an override of a group by a dict sets values.
        groups = [one for one in parsed if one.key_or_group.startswith("hydra") or (
            self._loader.repository.group_exists(one.key_or_group) and not isinstance(one.value(), dict))]
        chosen = tuple(one.input_line for one in groups)
        if chosen not in self._bases:
            base = self._loader.load_sweep_config(self._master, list(chosen))
            with open_dict(base):
                del base["hydra"]
            self._bases[chosen] = base
        tree: DictConfig = copy.deepcopy(self._bases[chosen])
        ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one not in groups], tree)
        return tree


def configs(context: HydraContext, master: DictConfig, overrides: Sequence[Sequence[str]]) -> list[Config]:
    """Every cell's typed configuration. Raises ConfigError that names the first cell which does not hold."""
    composer = Composer(context, master)
    found: list[Config] = []
    known: dict[tuple[str, str], Any] = {}
    for one, name in zip(overrides, names(overrides), strict=True):
        try:
            found.append(composition.parse(composer.compose(one), known))
        except Exception as error:
            told = door.explain(error)
            if told is None:
                raise
            what, _, remedy = told.partition("\n  remedy: ")
            raise ConfigError(f"cell {len(found) + 1} of {len(overrides)} ({name}): {what}",
                              remedy or "run.py --help shows how overrides are written") from error
    return found


def cells(found: Sequence[Config], overrides: Sequence[Sequence[str]]) -> list[Cell]:
    """The cells' plans, files hashed once. A cell is named by what sets it apart. Raises as `plan` does."""
    return [Cell(name, plan(config), command(one))
            for config, name, one in zip(found, names(overrides), overrides, strict=True)]


def command(overrides: Sequence[str]) -> str:
    """What makes a cell alone: its overrides without those that only a sweep heeds, and without secrets."""
    kept = [word for word in overrides if not word.lstrip("+~").startswith(SWEEPS_OWN)]
    return shlex.join(["python", "run.py", *redaction.command(kept)])


def names(overrides: Sequence[Sequence[str]]) -> list[str]:
    """What sets each cell apart from the others."""
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(word for word in one if word not in common) or " ".join(one) or "the cell" for one in overrides]
