"""Notice that a job has to stop soon: a file, which a training looks for after each step.

Floor 0. SLURM sends its signals to every process of a job, and one that does not expect them is ended by them. So they are kept
from a training and all it starts, the job's first process (`upft.attempt`) minds them and leaves word here, and the
training writes a checkpoint and ends by itself. A sweep on this machine (`upft.local`) gives notice in the same way; where it
is killed and can give none, the processes that it started end by themselves.
"""

from __future__ import annotations

import os
import threading
import time

VARIABLE = "UPFT_NOTICE"
"""Environment: the file's path, where there is somebody who gives notice."""
STARTER = "UPFT_STARTER"
"""Environment: id of the process that a stage must not outlive, where there is one."""
LOOK_S = 1.0
"""Seconds between two looks whether it is there."""
STOPPED = 75
"""Exit status of a stage that has stopped because it was told to, and goes on when it is started again (EX_TEMPFAIL)."""


def given() -> bool:
    """Whether this job was told to stop."""
    path = os.environ.get(VARIABLE)
    return path is not None and os.path.exists(path)


def end_with_starter() -> None:
    """From now on, end this process when its starter is gone: the sweep's next start would find it at work, and its GPU taken.

    At once, as after `kill -9`; what is on disk by then the next start goes on from, and what this process has started ends
    with it. A dead parent's children are given to another process, which is how it shows.
    """
    starter = os.environ.pop(STARTER, None)  # the processes that a stage starts have another parent
    if starter is None:
        return

    def look() -> None:
        while os.getppid() == int(starter):
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
