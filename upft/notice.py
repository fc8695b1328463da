"""Notice that a job has to stop soon: a file, which a training looks for after each step.

Floor 0. SLURM sends its signals to every process of a job, and one that does not expect them is ended by them. So they are kept
from a training and all it starts, the job's first process (`upft.attempt`) minds them and leaves word here, and the
training writes a checkpoint and ends by itself.
"""

from __future__ import annotations

import os

VARIABLE = "UPFT_NOTICE"
"""Environment: the file's path, where there is somebody who gives notice."""
STOPPED = 75
"""Exit status of a stage that has stopped because it was told to, and goes on when it is started again (EX_TEMPFAIL)."""


def given() -> bool:
    """Whether this job was told to stop."""
    path = os.environ.get(VARIABLE)
    return path is not None and os.path.exists(path)
