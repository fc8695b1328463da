"""The cluster of these tests: started where it can be had, skipped with the reason where not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, free_ports, install
from login import Desk


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running one, where UPFT_SLURM is set (required: a machine that cannot have it fails instead of skipping)."""
    if os.environ.get("UPFT_SLURM", "0") in ("", "0"):
        pytest.skip("UPFT_SLURM is not set: UPFT_SLURM=1 installs and starts a real SLURM for these tests (Debian, root)")
    given = os.environ.get("UPFT_SLURM_ROOT")  # of somebody who stops what is left there, should this process be killed
    root = Path(given or tempfile.mkdtemp(prefix="upft-slurm-", dir="/tmp"))  # short: the sockets' names have a limit
    made = Cluster(root, free_ports())
    # Asked to end, pytest goes through its fixtures' ends: nothing stays that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        install()
        made.start()
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(root, ignore_errors=True)
        if os.environ.get("UPFT_SLURM") == "required":
            raise
        pytest.skip(f"no SLURM here: {error}")
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def desk(cluster: Cluster, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(cluster, tmp_path / "store")
    yield made
    for job in {one.partition("_")[0] for one in made.queue()}:
        cluster.ask("scancel", job)
    made.empty(60)
