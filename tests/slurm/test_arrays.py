"""A sampling and evaluations that array tasks of a real SLURM draw together."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from login import ROOT, SMALL, Desk
from test_sweep import contents

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

CUT = ["compute.shards.sample=3", "compute.shards.evaluate=2", "compute.wait=true"]


def test_array_tasks_draw_what_one_process_draws(desk: Desk, tmp_path: Path) -> None:
    alone = subprocess.run([sys.executable, str(ROOT / "run.py"), *SMALL, f"run.store={tmp_path / 'alone'}"],
                           capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert alone.returncode == 0, alone.stderr
    python, calls = tmp_path / "python", tmp_path / "calls"  # a command of one's own, as a container's would be
    python.write_text(f'#!/bin/sh\necho "$SLURM_JOB_ID" >> {calls}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    out = desk.run(*CUT, f"compute.slurm.python={python}")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "7 distinct stages, 0 in the store, 0 under way, 7 to be made by 14 jobs" in out.stdout
    shards = re.findall(r"shard (\d) of (\d) +([0-9a-f]{20})-\1of\2 +1 +(\d+)_\d+ ", out.stdout)
    assert sorted((number, count) for number, count, _, _ in shards) == sorted(
        [("1", "3"), ("2", "3"), ("3", "3"), *[("1", "2"), ("2", "2")] * 2])
    for key in {key for _, _, key, _ in shards}:
        assert len({array for _, _, own, array in shards if own == key}) == 1, "the shards of a stage are one array"
    assert len(set(calls.read_text().split())) == 14, "not every job was started by that command"
    assert contents(desk.store) == contents(tmp_path / "alone")
    assert not list((desk.store / "shards").iterdir())
    tokens = [[json.loads(file.read_text())["sampled_tokens"] for file in sorted(store.glob("[se][av]*/*/ledger.json"))]
              for store in (desk.store, tmp_path / "alone")]
    assert tokens[0] == tokens[1]
    logs = "".join(log.read_text() for log in desk.store.glob(".jobs/submitted/*/*.out"))
    assert "were drawn by 3 shards" in logs
