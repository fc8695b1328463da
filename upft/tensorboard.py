"""Event files for TensorBoard: the numbers of a training, by step.

Floor 4; the only room that imports tensorboard. Written with TensorBoard's own writer, without torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from upft.errors import ConfigError

FILES = "events.out.tfevents.*"


class Events:
    """One run's folder. Each number is on disk as soon as it is added. Raises ConfigError where tensorboard is not
    installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError("tracker.kind=tensorboard: the package tensorboard is not installed",
                              "pip install tensorboard (the extra `tensorboard`), or set tracker=none") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._before = list(folder.glob(FILES))
        self._writer = EventFileWriter(str(folder))

    def begin(self, points: Sequence[Mapping[str, float | int | str]]) -> None:
        """Write what is known from before and remove the files of earlier attempts, which this one replaces: a kill may have
        left less in them than metrics.jsonl has, or steps that are now done again."""
        for point in points:
            self.add(point)
        for path in self._before:
            path.unlink(missing_ok=True)
        self._before = []

    def add(self, values: Mapping[str, float | int | str]) -> None:
        """One step's numbers; `step` says which."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()
                                 if name != "step" and isinstance(value, (int, float))])
        self._writer.add_event(Event(wall_time=time.time(), step=int(values["step"]), summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Nothing comes after this."""
        self._writer.close()
