"""How this project's jobs are put to SLURM, through submitit: what they ask for, their environment, refusals in our words.

Floor 6. Knows no stage and no sweep.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upft.attempt import path
from upft.errors import SlurmError
from upft.machine import ResourcesConfig, SlurmConfig


def executor(folder: Path, name: str, asked: ResourcesConfig, settings: SlurmConfig, minutes: int,
             more: Mapping[str, Any], **shape: Any) -> Any:
    """submitit's, its files in `folder`. minutes: the limit where `asked` names none; more: sbatch's parameters by their long
    names; shape: submitit's own, of which None is left to it."""
    import submitit

    made = submitit.SlurmExecutor(folder=folder, max_num_timeout=settings.requeues, python=settings.python)
    known = {"job_name": name, "partition": asked.partition, "time": asked.minutes or minutes, "cpus_per_task": asked.cpus,
             "mem": None if asked.mem_gb is None else f"{asked.mem_gb}GB", "signal_delay_s": settings.signal_s,
             "stderr_to_stdout": True, "setup": [*(f"export {variable}={shlex.quote(value)}" for variable, value
                                                   in path().items()), *settings.setup], **shape}
    made.update_parameters(**{field: value for field, value in known.items() if value is not None},
                           additional_parameters=dict(more))
    return made


@contextmanager
def refusal(what: str, remedy: str) -> Iterator[None]:
    """Raises SlurmError for what submitit raises where sbatch does not take a job."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(f"sbatch refused {what}: {str(error).strip().splitlines()[-1]}", remedy) from error
