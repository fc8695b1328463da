"""One report on many cells: the paper's tables, costs, figures and examples, as a page, Markdown, LaTeX, CSV and JSON.

SELECTION is any mix of
  a report's key or its first 6 digits or more, or the folder of a report artifact
  a sweep's id or its beginning (python -m upft.jobs shows them), or its folder, STORE/sweeps/ID
  NAME=VALUE[,VALUE...]: keep the cells with that setting: model, data, method, seed, train.seed, task, prefix.len,
                         prefix.ratio
Without keys, folders and sweeps every report of the store is taken. All filters must hold.

  python -m upft.report                                      all cells of ./store
  python -m upft.report method=upft,rft seed=0,1 --out paper
  python -m upft.report 3f2a9c --store /data/store
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import door

# Thin: arguments in, folder out; loads nothing before it has read its arguments.
if TYPE_CHECKING:
    from upft.records import Sweep

SHORTEST = 6
NAMES = ("model", "data", "method", "seed", "train.seed", "task", "prefix.len", "prefix.ratio")


@dataclass
class Chosen:
    """reports: folders; command: of the one sweep they are, where they are just that; missing: names of cells of the sweeps
    chosen that have no report."""

    reports: list[Path]
    command: str | None = None
    missing: list[str] = field(default_factory=list)


@dataclass
class _Sweeps:
    """What was found of the sweeps chosen: their commands, and (cell, its settings where they are known) without a report."""

    commands: list[str] = field(default_factory=list)
    missing: dict[str, Mapping[str, list[str]] | None] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> None:
    """Choose, read, write. Exits with status 2 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m upft.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selection", nargs="*", metavar="SELECTION", help="see above (default: all reports of the store)")
    parser.add_argument("--store", type=Path, default=Path("store"), help="the folder of artifacts (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write into (default: %(default)s)")
    given = parser.parse_args(arguments)
    with door.one_message(status=2):
        from upft import dossier
        from upft.console import Console

        chosen = choose(given.selection, given.store)
        written = dossier.write(chosen.reports, given.out, chosen.command, chosen.missing)
        console, read = Console(), len(chosen.reports)
        if chosen.missing:
            console.warn(f"without a report: {'; '.join(chosen.missing)}")
        console.say(f"{read} report{'s' * (read != 1)} read, written: {written}")


def choose(selection: Sequence[str], store: Path) -> Chosen:
    """The reports that are meant. Raises StoreError or DataError where nothing or more than one thing is meant, and says what
    is there."""
    from upft.errors import DataError, StoreError, nearest

    there = _reports(store)
    filters: dict[str, list[str]] = {}
    named: dict[Path, None] = {}
    sweeps = _Sweeps()
    for one in selection:
        name, equals, values = one.partition("=")
        if equals and not Path(one).is_dir():
            if name not in NAMES:
                raise DataError(f"{one}: {name} is nothing to select by", nearest(name, NAMES))
            filters.setdefault(name, []).extend(values.split(","))
        elif Path(one).is_dir() and Path(one).resolve().parent.name == "sweeps":
            folder = Path(one).resolve()
            home = store if folder.parent.parent == store.resolve() else folder.parent.parent
            named |= dict.fromkeys(_of_sweep(folder.name, _reports(home), home, sweeps))
        elif Path(one).is_dir():
            named.setdefault(Path(one))
        else:
            named |= dict.fromkeys(_named(one, there, store, sweeps))
    found = [folder for folder in (list(named) or there) if _holds(_settings(folder) if filters else {}, filters)]
    if not found and not there and not named:
        raise StoreError(f"{store} holds no report",
                         "run a cell or a sweep first (python run.py --help), or give its --store DIR")
    if not found:
        asked = " ".join(f"{name}={','.join(values)}" for name, values in filters.items())
        raise DataError(f"no report has {asked}", f"there are: {_told(list(named) or there)}")
    whole = len(sweeps.commands) == 1 and len(selection) == 1
    return Chosen(found, sweeps.commands[0] if whole else None,
                  [cell for cell, values in sweeps.missing.items() if values is None or _holds(values, filters)])


def _reports(store: Path) -> list[Path]:
    from upft.store import PARTIAL

    return sorted(path.parent for path in (store / "report").glob("*/spec.json") if path.parent.suffix != PARTIAL)


def _named(one: str, there: Sequence[Path], store: Path, found: _Sweeps) -> list[Path]:
    """The reports of a key or a sweep."""
    from upft.errors import StoreError

    keys = [folder for folder in there if folder.name.startswith(one)] if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},}}", one) else []
    sweeps = [sweep for sweep in _sweeps(store) if sweep.id.startswith(one)]
    if len(keys) + len(sweeps) > 1:
        raise StoreError(f"{one} begins {len(keys)} reports' keys and {len(sweeps)} sweeps' ids: " + ", ".join(
            [*(folder.name for folder in keys), *(sweep.id for sweep in sweeps)]), "give more digits")
    return keys or _of_sweep(one, there, store, found)


def _of_sweep(one: str, there: Sequence[Path], store: Path, found: _Sweeps) -> list[Path]:
    """The reports of the sweep whose id begins so; its command, and its cells that have none, go to `found`."""
    import shlex

    from upft.errors import StoreError

    sweeps = [sweep for sweep in _sweeps(store) if sweep.id.startswith(one)]
    if not sweeps:
        known = ", ".join(sweep.id for sweep in _sweeps(store)) or "none"
        raise StoreError(f"{one}: no report and no sweep of {store} begins so",
                         f"give {SHORTEST} digits of a key or more, or NAME=VALUE; {len(there)} reports: {_told(there)}; "
                         f"sweeps: {known}")
    names = {folder.name: folder for folder in there}
    reports = [names[key] for key in dict.fromkeys(sweeps[0].cells.values()) if key in names]
    if not reports:
        raise StoreError(f"sweep {sweeps[0].id}: none of its {len(sweeps[0].cells)} cells has a report yet",
                         f"python -m upft.jobs list {sweeps[0].id} --store {store} shows where it stands")
    program, *rest = sweeps[0].command
    found.commands.append(shlex.join(["python" if "python" in Path(program).name else program, *rest]))
    found.missing |= _planned(store, {cell: key for cell, key in sweeps[0].cells.items() if key not in names})
    return reports


def _planned(store: Path, cells: Mapping[str, str]) -> dict[str, Mapping[str, list[str]] | None]:
    """Cell -> its settings as it was planned; None where no plan was kept. cells: name -> the report's key."""
    from upft.errors import UpftError
    from upft.hashing import canonical
    from upft.records import Records
    from upft.store import Store

    planned: dict[str, Mapping[str, list[str]] | None] = {}
    records = Records(Store(store))
    for cell, key in cells.items():
        try:
            report = records.stage(key)
        except UpftError:
            planned[cell] = None
            continue
        train = report.inputs.get("train")
        planned[cell] = _values(canonical(report.spec), None if train is None else canonical(train.spec))
    return planned


def _sweeps(store: Path) -> list[Sweep]:
    if not (store / ".jobs" / "sweeps").is_dir():
        return []
    from upft.records import Records
    from upft.store import Store

    return Records(Store(store)).sweeps()


def _told(folders: Sequence[Path]) -> str:
    """What can be selected: each name with its values."""
    values: dict[str, dict[str, None]] = {}
    for folder in folders:
        for name, of in _settings(folder).items():
            for one in of:
                values.setdefault(name, {}).setdefault(one)
    return "; ".join(f"{name}={','.join(sorted(found, key=_natural))}" for name, found in values.items()) or "none"


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _holds(settings: Mapping[str, Iterable[str]], filters: Mapping[str, Sequence[str]]) -> bool:
    return all(set(values) & set(settings[name]) for name, values in filters.items())


def _settings(folder: Path) -> dict[str, list[str]]:
    """name -> what a value must be one of to select the report."""
    from upft.errors import StoreError

    try:
        identity: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        training = folder.parent.parent / "train" / str(identity["inputs"].get("train")) / "spec.json"
        return _values(identity["spec"], json.loads(training.read_text(encoding="utf-8"))["spec"]
                       if training.is_file() else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is no report artifact: {error}", "give STORE/report/KEY") from error


def _values(spec: Mapping[str, Any], training: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The same, from the specs of a report and of its training in canonical form."""
    own = (spec if training is None else training)["seed"]
    method = [str(spec["method"])] + (["upft_label_filter"] if "label filter" in str(spec.get("label")) else [])
    return {"model": [spec["model"]], "data": [spec["data"]], "method": method[-1:], "seed": [str(spec["seed"])],
            "train.seed": [str(own)], "task": list(spec["tasks"]),
            "prefix.len": ["null" if spec["prefix_len"] is None else str(spec["prefix_len"])],
            "prefix.ratio": [f"{spec['ratio']:g}"]}
