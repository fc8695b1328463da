"""docs/cluster.md, from an account to the first figure, word by word: its own file of settings and its own commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from login import ROOT, Desk

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

GUIDE = ROOT / "docs" / "cluster.md"
KEPT = ("upft", "conf", "sweeps", "run.py", "pyproject.toml")


def test_from_an_account_to_the_first_figure(desk: Desk, tmp_path: Path) -> None:
    section = GUIDE.read_text(encoding="utf-8").partition("## From an account")[2].partition("\n## ")[0]
    settings, = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert [line.split()[0] for line in commands] == ["sinfo", "python", "python", "squeue", "python", "python"]

    clone = tmp_path / "upft"
    clone.mkdir()
    for name in KEPT:
        source = ROOT / name
        shutil.copytree(source, clone / name) if source.is_dir() else shutil.copy(source, clone)
    (clone / "conf" / "compute" / "mycluster.yaml").write_text(settings, encoding="utf-8")
    env = {**desk.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(clone)}

    def typed(line: str) -> str:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=clone, env=env, timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    sinfo, plan, submit, squeue, jobs, report = commands
    assert re.search(r"^gpu infinite gpu:2 4 64000$", typed(sinfo), re.MULTILINE)
    assert re.search(r"^together +15 +0 +15 ", typed(plan), re.MULTILINE)
    assert not (clone / "store" / ".jobs").exists()
    said = typed(submit)
    assert said.count(" submitted") == 15
    last = re.search(r"^job (\d+) writes (.*)/report\.html when all their reports are over$", said, re.MULTILINE)
    assert last is not None
    assert {line.split()[1] for line in typed(squeue).splitlines()[1:]} == {"gpu", "cpu"}, "each kind in its own partition"
    for stage, wanted in {"train": ["Partition=gpu", "CPUs/Task=4", "MinMemoryNode=16G", "TimeLimit=04:00:00", "gres:gpu:1"],
                          "build": ["Partition=cpu", "CPUs/Task=2", "MinMemoryNode=8G", "TimeLimit=01:00:00"]}.items():
        job = next(line.split("|")[0] for line in desk.queue("%i|%j") if f"|upft-{stage}-" in line)
        found = typed(f"scontrol show job {job}")
        assert [word for word in [*wanted, "Comment=upft", "Requeue=1"] if word not in found] == []
        assert ("gres:gpu" in found) == (stage == "train")
    assert "all cells: no page yet; job" in typed(jobs)
    desk.empty(400)
    page = clone / last[2] / "report.html"
    assert page.is_file(), "the page was there without anybody having stayed"
    assert "3 cells" in page.read_text(encoding="utf-8")
    assert list(page.parent.glob("figures/*.svg")), "and the figure"
    assert "no report yet" not in page.read_text(encoding="utf-8")
    assert re.search(r"3/3", typed(jobs))
    typed(report)
    assert (clone / "report" / "report.html").is_file()
