"""Notice that a job has to stop soon: a file, which a training looks for after each step.

Floor 0. SLURM sends its signals to every process of a job, and one that does not expect them is ended by them. So the job's
first process minds them (`upft.attempt`) and leaves word here; a training then writes a checkpoint and ends by itself.
"""

from __future__ import annotations

import os
import signal
import threading

VARIABLE = "UPFT_NOTICE"
"""Environment: the file's path, where there is somebody who gives notice."""
STOPPED = 75
"""Exit status of a stage that has stopped because it was told to, and goes on when it is started again (EX_TEMPFAIL)."""


def given() -> bool:
    """Whether this job was told to stop."""
    path = os.environ.get(VARIABLE)
    return path is not None and os.path.exists(path)


def heed() -> None:
    """From now on SIGTERM does not end this process, where notice is given instead. Lightning sets an answer of its own (to
    end between two steps, without a checkpoint): call it again after that."""
    if VARIABLE in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _nothing)


def _nothing(*_: object) -> None:
    """Not SIG_IGN, which Lightning would call."""
