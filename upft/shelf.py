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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft import door

# Thin: arguments in, folder out; loads nothing before it has read its arguments.
if TYPE_CHECKING:
    from upft.records import Sweep

SHORTEST = 6
NAMES = ("model", "data", "method", "seed", "train.seed", "task", "prefix.len", "prefix.ratio")


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

        reports, command = choose(given.selection, given.store)
        written = dossier.write(reports, given.out, command)
        Console().say(f"{len(reports)} report{'s' * (len(reports) != 1)} read, written: {written}")


def choose(selection: Sequence[str], store: Path) -> tuple[list[Path], str | None]:
    """(folders of reports, the command of the one sweep they are where it is just that). Raises StoreError or DataError where
    nothing or more than one thing is meant, and says what is there."""
    from upft.errors import DataError, StoreError, nearest

    there = _reports(store)
    filters: dict[str, list[str]] = {}
    named: dict[Path, None] = {}
    commands: list[str] = []
    for one in selection:
        name, equals, values = one.partition("=")
        if equals and not Path(one).is_dir():
            if name not in NAMES:
                raise DataError(f"{one}: {name} is nothing to select by", nearest(name, NAMES))
            filters.setdefault(name, []).extend(values.split(","))
        elif Path(one).is_dir() and Path(one).resolve().parent.name == "sweeps":
            folder = Path(one).resolve()
            home = store if folder.parent.parent == store.resolve() else folder.parent.parent
            named |= dict.fromkeys(_of_sweep(folder.name, _reports(home), home, commands))
        elif Path(one).is_dir():
            named.setdefault(Path(one))
        else:
            named |= dict.fromkeys(_named(one, there, store, commands))
    found = [folder for folder in (list(named) or there) if _holds(folder, filters)]
    if not found and not there and not named:
        raise StoreError(f"{store} holds no report",
                         "run a cell or a sweep first (python run.py --help), or give its --store DIR")
    if not found:
        asked = " ".join(f"{name}={','.join(values)}" for name, values in filters.items())
        raise DataError(f"no report has {asked}", f"there are: {_told(list(named) or there)}")
    whole = len(commands) == 1 and len(selection) == 1
    return found, commands[0] if whole else None


def _reports(store: Path) -> list[Path]:
    from upft.store import PARTIAL

    return sorted(path.parent for path in (store / "report").glob("*/spec.json") if path.parent.suffix != PARTIAL)


def _named(one: str, there: Sequence[Path], store: Path, commands: list[str]) -> list[Path]:
    """The reports of a key or a sweep."""
    from upft.errors import StoreError

    keys = [folder for folder in there if folder.name.startswith(one)] if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},}}", one) else []
    sweeps = [sweep for sweep in _sweeps(store) if sweep.id.startswith(one)]
    if len(keys) + len(sweeps) > 1:
        raise StoreError(f"{one} begins {len(keys)} reports' keys and {len(sweeps)} sweeps' ids: " + ", ".join(
            [*(folder.name for folder in keys), *(sweep.id for sweep in sweeps)]), "give more digits")
    return keys or _of_sweep(one, there, store, commands)


def _of_sweep(one: str, there: Sequence[Path], store: Path, commands: list[str]) -> list[Path]:
    """The reports of the sweep whose id begins so; its command goes to `commands`."""
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
    commands.append(shlex.join(["python" if "python" in Path(program).name else program, *rest]))
    return reports


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


def _holds(folder: Path, filters: Mapping[str, Sequence[str]]) -> bool:
    return not filters or all(set(values) & set(_settings(folder)[name]) for name, values in filters.items())


def _settings(folder: Path) -> dict[str, list[str]]:
    """name -> what a value must be one of to select the report."""
    from upft.errors import StoreError

    try:
        identity: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        spec, training = identity["spec"], folder.parent.parent / "train" / str(identity["inputs"].get("train")) / "spec.json"
        own = json.loads(training.read_text(encoding="utf-8"))["spec"]["seed"] if training.is_file() else spec["seed"]
        method = [str(spec["method"])] + (["upft_label_filter"] if "label filter" in str(spec.get("label")) else [])
        return {"model": [spec["model"]], "data": [spec["data"]], "method": method[-1:], "seed": [str(spec["seed"])],
                "train.seed": [str(own)], "task": list(spec["tasks"]),
                "prefix.len": ["null" if spec["prefix_len"] is None else str(spec["prefix_len"])],
                "prefix.ratio": [f"{spec['ratio']:g}"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is no report artifact: {error}", "give STORE/report/KEY") from error
