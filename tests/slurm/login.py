"""What a person does on a login node: submit, ask, wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster import Cluster

ROOT = Path(__file__).parent.parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=64",
         "eval.tasks.arithmetic.arithmetic.questions=20", "train.batch_size=16", "compute.threads=1",
         "compute.accelerator=cpu"]
"""A cell of some seconds a stage."""
ON = ["compute=slurm", *(f"compute.slurm.{kind}.{what}" for kind in ("gpu", "cpu") for what in ("mem_gb=1", "cpus=1"))]


@dataclass
class Desk:
    """A login node: commands and questions."""

    cluster: Cluster
    store: Path
    more: dict[str, str] = field(default_factory=dict)
    """Of its environment."""

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.cluster.environment, "PYTHONPATH": str(ROOT), **self.more}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """run.py on SLURM."""
        return self.python(str(ROOT / "run.py"), *arguments, *SMALL, *ON, f"run.store={self.store}")

    def jobs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """python -m upft.jobs."""
        return self.python("-m", "upft.jobs", *arguments, "--store", str(self.store))

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=self.environment,
                              timeout=500)

    def queue(self, what: str = "%i") -> list[str]:
        """Of each job that is not over."""
        return self.cluster.ask("squeue", "-h", "--array", "-o", what).split("\n")[:-1]

    def empty(self, seconds: float = 240) -> None:
        """Wait until no job is left."""
        self.until(lambda: not self.queue(), seconds, "the queue did not become empty")

    def until(self, holds: Callable[[], object], seconds: float, else_: str) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, else_ + "\n" + self.cluster.ask("squeue", "--array")
            time.sleep(0.3)

    def artifacts(self) -> set[str]:
        return {f"{p.parent.parent.name}/{p.parent.name}" for p in self.store.glob("[a-z]*/*/manifest.json")}

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in self.artifacts():
            found[name.split("/")[0]] = found.get(name.split("/")[0], 0) + 1
        return found
