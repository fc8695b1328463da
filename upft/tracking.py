"""Metrics: metrics.jsonl always, Weights & Biases as its mirror where asked.

Floor 4; the only room that imports wandb. The mirror may fail, be unreachable or be slow: the run goes on and
metrics.jsonl has everything. Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from upft.choices import TrackerKind
from upft.errors import ConfigError
from upft.machine import TrackerConfig

if TYPE_CHECKING:
    from wandb import Run

    from upft.console import Console

FILE = "metrics.jsonl"
PATIENCE_S = 30
"""How long the mirror may keep a run waiting, at its start and at its end."""
REACH_S = 5
"""How long the mirror's server may take to answer at all."""

Value = float | int | str


def cut(folder: Path, step: int) -> list[dict[str, Value]]:
    """Take back the lines of metrics.jsonl after `step`, and a torn last one: a run goes on from there. What is left."""
    path = folder / FILE
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            point = json.loads(line)
        except ValueError:  # torn by a kill
            break
        if point["step"] > step:
            break
        kept.append(point)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(point) + "\n" for point in kept), encoding="utf-8")
    os.replace(partial, path)
    return kept


class Tracker:
    """Takes one mapping of names to numbers a step. Use it in a `with` block."""

    def __init__(self, folder: Path, run: Run | None = None, console: Console | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Appended to, not emptied: a resumed run goes on where it was.
        self._stream = (folder / FILE).open("a", encoding="utf-8", buffering=1)
        self._run, self._console = run, console

    def log(self, values: Mapping[str, Value]) -> None:
        """One line of metrics.jsonl (at once on disk), and one point of the mirror."""
        self._stream.write(json.dumps(dict(values)) + "\n")
        if self._run is not None:
            self._mirror(lambda run: run.log(dict(values)))

    def catch_up(self, points: Iterable[Mapping[str, Value]]) -> None:
        """Tell the mirror what metrics.jsonl holds from before: a kill takes what the mirror had not written yet.

        Points that the run has on its server are not sent twice. An offline run becomes whole by this, so that of
        several folders with one id `wandb sync` needs the last one only.
        """
        if self._run is None:
            return
        known = 0

        def ask(run: Run) -> None:
            nonlocal known
            known = run.summary.get("step") or 0

        self._mirror(ask)
        for point in points:
            if self._run is not None and float(point["step"]) > known:
                self._mirror(lambda run, point=point: run.log(dict(point)))

    def close(self, failed: bool = False) -> None:
        """Finish: what the mirror cannot deliver soon stays on disk for `wandb sync`."""
        self._stream.close()
        if self._run is not None:
            self._mirror(lambda run: run.finish(exit_code=1 if failed else 0))

    def _mirror(self, act: Any) -> None:
        try:
            act(self._run)
        except Exception as error:  # a mirror is not worth a run, whatever breaks in it
            self._run = None
            if self._console is not None:
                self._console.warn(f"W&B stopped ({error}); {FILE} goes on")

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)


def open_tracker(tracker: TrackerConfig, folder: Path, run_id: str, name: str, job_type: str,
                 config: Mapping[str, Any], console: Console | None = None, mirror: Path | None = None) -> Tracker:
    """A tracker that writes metrics.jsonl into `folder`, and for W&B the folder wandb/ into `mirror`.

    mirror: null = `folder`. Do not put it into an artifact: W&B goes on writing there and links to files
    elsewhere. run_id: names the W&B run; the same id continues the same run. config: shown beside the run's numbers.
    W&B runs online where an API key is configured (WANDB_MODE decides otherwise), else offline; a server that
    does not answer turns the run offline. Raises ConfigError when wandb is asked for and not installed.
    """
    if tracker.kind is TrackerKind.none:
        return Tracker(folder, None, console)
    where = folder if mirror is None else mirror
    where.mkdir(parents=True, exist_ok=True)
    return Tracker(folder, _open_wandb(tracker, where, run_id, name, job_type, dict(config), console), console)


def _open_wandb(tracker: TrackerConfig, folder: Path, run_id: str, name: str, job_type: str,
                config: dict[str, Any], console: Console | None) -> Run | None:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("tracker.kind=wandb: the package wandb is not installed",
                          "pip install wandb, or set tracker=none") from error

    def start(mode: str) -> Run:
        run = wandb.init(
            project=tracker.project, entity=tracker.entity, group=tracker.group, id=run_id, name=name,
            job_type=job_type, config=config, dir=folder, reinit="create_new",
            resume="allow" if mode == "online" else None,  # offline, the id alone joins the parts when they are synced
            settings=wandb.Settings(
                mode=mode, silent=True, console="off", disable_git=True, disable_code=True, init_timeout=PATIENCE_S,
                login_timeout=PATIENCE_S, finish_timeout=PATIENCE_S, x_save_requirements=False))
        # Not W&B's own step: it refuses to go back, as a run resumed from an earlier step must.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    mode = _mode(server)
    if mode == "disabled":
        return None
    if mode == "online" and not _answers(server):
        mode = "offline"
        if console is not None:
            console.warn("the W&B server does not answer: this run is offline, `wandb sync` delivers it later")
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return start(attempt)
        except Exception as error:  # a wrong key, a full disk, a network that just failed: none is worth the run
            if console is not None:
                console.warn(f"W&B cannot start {attempt} ({type(error).__name__}: {str(error).splitlines()[0]})")
            wandb.teardown()  # else its service holds on to the run id
    return None


def _mode(server: str) -> str:
    """WANDB_MODE where it is set, else online with an API key and offline without."""
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted in ("online", "offline", "disabled"):
        return wanted
    return "online" if _has_key(server) else "offline"


def _has_key(server: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        from wandb.sdk.lib.wbauth import read_netrc_auth

        return read_netrc_auth(host=server) is not None
    except Exception:  # another version, or a key in no valid form: offline loses nothing
        return False


def _answers(url: str) -> bool:
    """Whether anything at all answers there (through the proxy, where one is set)."""
    try:
        urllib.request.urlopen(url, timeout=REACH_S).close()
    except urllib.error.HTTPError:  # an error page is an answer
        return True
    except (OSError, ValueError):
        return False
    return True
