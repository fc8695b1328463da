"""Metrics: metrics.jsonl always, Weights & Biases or TensorBoard as its mirror where asked.

Floor 4. The mirror may fail, be unreachable or be slow: the run goes on and metrics.jsonl has everything. Knows nothing of
what the numbers mean, and of W&B only that it has runs (`upft.wandb_run`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from upft import wandb_run
from upft.choices import TrackerKind
from upft.machine import TrackerConfig
from upft.store import PARTIAL
from upft.wandb_run import Card, Value

if TYPE_CHECKING:
    from upft.console import Console
    from upft.tensorboard import Events
    from upft.wandb_run import Run

FILE = "metrics.jsonl"


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


def events_folder(tracker: TrackerConfig, out: Path, name: str) -> Path:
    """Where TensorBoard's files of a stage that works in `out` lie: never in the artifact.

    TensorBoard calls a run by its folder, so it is `name` (a card's, which has the head of the key), in letters that need
    no quoting. What was begun goes on in the folder that it has, whatever it is called now.
    """
    root = out.parent.parent.parent / "tensorboard" if tracker.folder is None else Path(tracker.folder)
    head = out.name.removesuffix(PARTIAL)[:8]
    begun = sorted(root.glob(f"*{head}*"))
    return begun[0] if begun else root / re.sub(r"[^\w.=+-]+", "_", name)


class Tracker:
    """Takes one mapping of names to numbers a step. Use it in a `with` block."""

    def __init__(self, folder: Path, run: Run | None = None, console: Console | None = None,
                 events: Events | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Appended to, not emptied: a resumed run goes on where it was.
        self._stream = (folder / FILE).open("a", encoding="utf-8", buffering=1)
        self._run, self._console, self._events = run, console, events
        self._known = 0.0  # the last step that was on the run's server when it was opened
        if run is not None:
            self._mirror(self._look)

    def log(self, values: Mapping[str, Value]) -> None:
        """One line of metrics.jsonl (at once on disk), and one point of the mirror."""
        self._stream.write(json.dumps(dict(values)) + "\n")
        if self._run is not None and float(values.get("step", self._known + 1)) > self._known:  # else done again
            self._mirror(lambda run: run.log(dict(values)))
        if self._events is not None:
            self._draw(lambda events: events.add(values))

    def catch_up(self, points: Iterable[Mapping[str, Value]]) -> None:
        """Tell the mirror what metrics.jsonl holds from before: a kill takes what the mirror had not written yet.

        Points that the run has on its server are not sent twice, nor those of steps that are done again. An offline run becomes
        whole by this, so that of several folders with one id `wandb sync` needs the last one only. TensorBoard's files are
        written anew.
        """
        points = list(points)
        if self._events is not None:
            self._draw(lambda events: events.begin(points))
        if self._run is not None:
            self._mirror(lambda run: wandb_run.replay(run, points))

    def close(self, failed: bool = False) -> None:
        """Finish: what the mirror cannot deliver soon stays on disk for `wandb sync`."""
        self._stream.close()
        if self._run is not None:
            self._mirror(lambda run: run.finish(exit_code=1 if failed else 0))
        if self._events is not None:
            self._draw(lambda events: events.close())

    def _look(self, run: Run) -> None:
        self._known = wandb_run.last_step(run)

    def _draw(self, act: Callable[[Events], None]) -> None:
        assert self._events is not None
        try:
            act(self._events)
        except Exception as error:  # a full disk, say: see _mirror
            self._events = None
            if self._console is not None:
                self._console.warn(f"TensorBoard stopped ({error}); {FILE} goes on")

    def _mirror(self, act: Callable[[Run], None]) -> None:
        assert self._run is not None
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


def open_tracker(tracker: TrackerConfig, folder: Path, card: Card, console: Console | None = None,
                 mirror: Path | None = None, events: Path | None = None) -> Tracker:
    """A tracker that writes metrics.jsonl into `folder`, for W&B the folder wandb/ into `mirror`, and for TensorBoard its
    files into `events`.

    mirror, events: null = `folder`. Do not put them into an artifact: W&B goes on writing there and links to files
    elsewhere. Raises ConfigError where the package that is asked for is not installed.
    """
    if tracker.kind is TrackerKind.none:
        return Tracker(folder, None, console)
    if tracker.kind is TrackerKind.tensorboard:
        from upft.tensorboard import Events

        return Tracker(folder, None, console, Events(folder if events is None else events))
    return Tracker(folder, wandb_run.open_run(tracker, folder if mirror is None else mirror, card, console), console)
