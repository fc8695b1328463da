"""A Weights & Biases run: opened, continued, told of a finished stage, given up where its server does not answer.

Floor 4; the only room that imports wandb. A mirror of what is on disk already: nothing that goes wrong here stops a stage.
Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft.errors import ConfigError
from upft.machine import TrackerConfig

if TYPE_CHECKING:
    from wandb import Artifact, Run

    from upft.console import Console

PATIENCE_S = 30
"""How long the mirror may keep a run waiting, at its start and at its end."""
REACH_S = 5
"""How long the mirror's server may take to answer at all."""
TAG = 64
"""Most characters of a tag that W&B takes."""
Value = float | int | str


@dataclass(frozen=True)
class Card:
    """What a run is called and found by. id: the same id continues the same run; config: shown beside its numbers."""

    id: str
    name: str
    job_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class Bundle:
    """An artifact as W&B is told of it. kind: its type there; files: those that are uploaded, by their names in it; references:
    those of which only the place is told, a path of this machine or a URI. Equal bundles are one version of one artifact there,
    whichever run tells of them."""

    name: str
    kind: str
    about: Mapping[str, Any]
    files: Mapping[str, Path]
    references: Mapping[str, Path | str]


@dataclass(frozen=True)
class Story:
    """Something finished, a stage or a sweep: everything its run is to show. points: of its metrics.jsonl; rows: of the table
    `table`, under `columns`; used: the bundles it was made from."""

    card: Card
    points: Sequence[Mapping[str, Value]]
    summary: Mapping[str, Value]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    made: Bundle
    used: Sequence[Bundle]
    table: str = "samples"


def home() -> Path:
    """Where W&B's folder of runs lies."""
    return Path(os.environ.get("WANDB_DIR", "."))


def open_run(tracker: TrackerConfig, folder: Path, card: Card, console: Console | None) -> Run | None:
    """A run whose files lie in `folder`/wandb; None where W&B is switched off or can start none.

    Online where an API key is configured (WANDB_MODE decides otherwise), else offline; a server that does not answer turns the
    run offline. Raises ConfigError where wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("tracker.kind=wandb: the package wandb is not installed",
                          "pip install wandb, or set tracker=none") from error

    def start(mode: str) -> Run:
        run = wandb.init(
            project=tracker.project, entity=tracker.entity, group=tracker.group, id=card.id, name=card.name,
            job_type=card.job_type, config=dict(card.config), dir=folder, reinit="create_new",
            tags=list(dict.fromkeys(tag[:TAG] for tag in (*card.tags, *tracker.tags))),
            resume="allow" if mode == "online" else None,  # offline, the id alone joins the parts when they are synced
            settings=wandb.Settings(
                mode=mode, silent=True, console="off", disable_git=True, disable_code=True, init_timeout=PATIENCE_S,
                login_timeout=PATIENCE_S, finish_timeout=PATIENCE_S, x_save_requirements=False,
                allow_offline_artifacts=False))  # a table lies in the run's folder, not in the home folder
        # Not W&B's own step: it refuses to go back, as a run resumed from an earlier step must.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    folder.mkdir(parents=True, exist_ok=True)
    global _OWNER
    if os.getpid() != _OWNER:
        # A service that was inherited holds the run of a process that was killed, and refuses it to the one that goes on.
        os.environ.pop("WANDB_SERVICE", None)
        _OWNER = os.getpid()
    # What waits for its upload lies beside the runs, not in a home folder that a compute node may not have.
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve() / "wandb"))
    server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    mode = _mode(server)
    if mode == "disabled":
        return None
    if mode == "online" and server not in _GIVEN_UP and not _answers(server):
        _give_up(server, "does not answer", console)
    if server in _GIVEN_UP:
        mode = "offline"
    while any(folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{card.id}")):
        time.sleep(0.05)  # W&B names its folders by the second, and this run has one of this second already
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return start(attempt)
        except Exception as error:  # a wrong key, a full disk, a network that just failed: none is worth the run
            if console is not None:
                console.warn(f"W&B cannot start {attempt} ({type(error).__name__}: {str(error).partition(chr(10))[0]})")
            if attempt == "online":
                _give_up(server, "does not take runs", console)
            wandb.teardown()  # else its service holds on to the run id
    return None


def replay(run: Run, points: Iterable[Mapping[str, Value]]) -> None:
    """Tell a run those of `points` that its server does not have."""
    known = last_step(run)
    for point in points:
        if float(point["step"]) > known:
            run.log(dict(point))


def last_step(run: Run) -> float:
    """The last step that a run has, on its server or in this process; 0 where it has none."""
    return float(run.summary.get("step") or 0)


def publish(tracker: TrackerConfig, story: Story, mirror: Path, console: Console | None = None) -> bool:
    """Show something finished as a W&B run, short-lived, below `mirror`; whether W&B has taken it (a server or the disk).

    A training's own run is continued: offline by a second folder that holds all of it. Raises ConfigError where wandb is
    not installed.
    """
    run = open_run(tracker, mirror, story.card, console)
    if run is None:
        return False
    try:
        replay(run, story.points)
        if story.rows:
            from wandb import Table

            # At the last step: W&B would put it at step 0 and take that for the run's.
            at = {"step": story.points[-1]["step"]} if story.points else {}
            run.log({**at, story.table: Table(columns=list(story.columns), data=[list(row) for row in story.rows])})
        run.summary.update(dict(story.summary))
        run.log_artifact(_artifact(story.made))
        for bundle in story.used:
            # What the public use_artifact does with an artifact that is not logged yet; that one waits for the server
            # without a limit, and refuses offline, though `wandb sync` delivers it as any other.
            run._log_artifact(_artifact(bundle), is_user_created=True, use_after_commit=True)
        began = time.monotonic()
        run.finish()
        if time.monotonic() - began >= PATIENCE_S:
            _give_up(run.settings.base_url, "is slow", console)
    except Exception as error:  # a mirror is not worth a run, whatever breaks in it
        if console is not None:
            console.warn(f"W&B stopped ({error}); the artifact {story.made.name} has everything")
        with suppress(Exception):
            run.finish(exit_code=1)
        return False
    return True


def _artifact(bundle: Bundle) -> Artifact:
    import wandb

    made = wandb.Artifact(bundle.name, bundle.kind, description=bundle.about.get("label"), metadata=dict(bundle.about))
    for name, path in bundle.files.items():
        # immutable: read where it lies when it is uploaded, instead of being copied into the home folder first
        made.add_file(str(path), name, policy="immutable")
    for name, place in bundle.references.items():
        made.add_reference(place if isinstance(place, str) else place.resolve().as_uri(), name, checksum=False)
    return made


_OWNER = 0
"""The process whose W&B service runs (by its id, which a fork does not share)."""
_GIVEN_UP: set[str] = set()
"""Servers that this process waits for no more."""


def _give_up(server: str, why: str, console: Console | None) -> None:
    _GIVEN_UP.add(server)
    if console is not None:
        console.warn(f"the W&B server {why}: runs are offline from now on, `wandb sync` delivers them later")


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
