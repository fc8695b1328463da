"""Sweeps on a real SLURM: shared stages once, in the right order; results of a serial run; kills, failures, again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from login import ROOT, SMALL, Desk

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SIX = ["-m", "prefix.len=4,8,16", "seed=0,1", "sample.max_tokens=16"]
CLOCKS = {"provenance.json", "ledger.json", "manifest.json", "metrics.jsonl", "results.json", "report.html", "README.md",
          "train.json", "report.md", "cost.csv", "cost.tex"}


def contents(store: Path) -> dict[str, bytes]:
    """Bytes of every file that holds no clock."""
    return {str(f.relative_to(store)): f.read_bytes() for f in store.glob("[a-z]*/*/**/*")
            if f.is_file() and f.name not in CLOCKS and not {"figures", "sweeps"} & set(f.parts) and ".partial" not in str(f)}


def table(output: str) -> dict[str, tuple[str, list[str], str]]:
    """Key -> (job, depends on, state) of the launcher's table."""
    found = {}
    for line in output.splitlines():
        row = re.search(r" ([0-9a-f]{20}) +\d+ +(\d+(?:_\d+)?)? *((?:\d+(?:_\d+)?(?:, )?)*) +(\w.*)$", line)
        if row:
            found[row[1]] = (row[2] or "", [one for one in row[3].split(", ") if one], row[4].strip())
    return found


def submitted(desk: Desk) -> list[str]:
    """Folders of the submissions, the first one first."""
    folders = (desk.store / ".jobs" / "submitted").iterdir()
    return [path.name for path in sorted(folders, key=lambda path: (path / "machine.json").stat().st_mtime_ns)]


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    """The store of the same six cells, run one after the other without SLURM."""
    store = tmp_path_factory.mktemp("serial") / "store"
    out = subprocess.run([sys.executable, str(ROOT / "run.py"), *SIX, *SMALL, f"run.store={store}"], capture_output=True,
                         text=True, cwd=ROOT, timeout=900)
    assert out.returncode == 0, out.stderr
    return store


def test_six_cells_then_nothing_then_one_stage(desk: Desk, serial):
    out = desk.run(*SIX, "compute.slurm.array=2")
    assert out.returncode == 0, out.stderr
    assert "6 cells, 30 distinct stages, 0 in the store" in out.stdout
    jobs = table(out.stdout)
    assert len(jobs) == 30
    assert len({job for job, _, _ in jobs.values()}) == 30
    again = desk.run(*SIX)  # while they run
    assert again.returncode == 0, again.stderr
    assert ", 0 to be made" in again.stdout
    assert {job for job, _, _ in table(again.stdout).values() if job} <= {job for job, _, _ in jobs.values()}
    assert desk.queue("%j").count(f"upft-page-{submitted(desk)[0]}") == 1, "the second command adds no page"
    most = 0

    def over() -> bool:
        nonlocal most
        lines = desk.queue("%T|%j")
        most = max(most, sum(line.startswith("RUNNING|upft-train") for line in lines))
        return not lines

    desk.until(over, 400, "the queue did not become empty")
    assert most == 2, "an array keeps its limit"
    assert desk.counts() == {"sample": 2, "diagnose": 2, "build": 6, "train": 6, "evaluate": 8, "report": 6}
    assert contents(desk.store) == contents(serial)
    [page], [expected] = (list(store.glob("sweeps/*/report.md")) for store in (desk.store, serial))
    assert page.relative_to(desk.store) == expected.relative_to(serial)
    assert "no report yet" not in page.read_text()
    assert page.with_name("report.html").is_file(), "the last job has written the page on all cells"

    started = {key: json.loads(next(desk.store.glob(f"*/{key}/provenance.json")).read_text()) for key in jobs}
    of_job = {job: key for key, (job, _, _) in jobs.items()}
    for key, (_, after, _) in jobs.items():
        spec = json.loads(next(desk.store.glob(f"*/{key}/spec.json")).read_text())
        assert all(started[of_job[one]]["finished"] <= started[key]["started"] for one in after)
        reach, front = set(), {of_job[one] for one in after}
        while front:
            one = front.pop()
            reach.add(one)
            front |= {of_job[job] for job in jobs[one][1]} - reach
        assert set(spec["inputs"].values()) <= reach, "a stage did not wait for one of its inputs"

    done = desk.run(*SIX)
    assert ", 30 in the store, 0 under way, 0 to be made" in done.stdout
    assert desk.queue() == []
    gone = next(desk.store.glob("train/*"))
    shutil.rmtree(gone)
    shutil.rmtree(next(folder for folder in desk.store.glob("report/*") if gone.name in (folder / "spec.json").read_text()))
    one = desk.run(*SIX, "compute.wait=true")
    assert one.returncode == 0, one.stderr
    assert ", 28 in the store, 0 under way, 2 to be made" in one.stdout
    assert "6/6 cells done" in one.stdout
    assert contents(desk.store) == contents(serial)
    listed = desk.jobs("list")
    assert "6/6" in listed.stdout


def test_a_bad_cell_stops_everything_before_anything(desk: Desk):
    out = desk.run("-m", "prefix.len=4,8,0", "seed=0,1")
    assert out.returncode == 2
    assert "cell 5 of 6 (prefix.len=0 seed=0)" in out.stderr
    assert "1 or more" in out.stderr
    assert "Traceback" not in out.stderr
    assert desk.queue() == []
    assert not (desk.store / ".jobs").exists()


def test_what_sbatch_refuses_is_said_and_nothing_stays(desk: Desk):
    out = desk.run("-m", "prefix.len=4,8", "compute.slurm.cpu.partition=nowhere")
    assert out.returncode == 1
    assert "sbatch refused" in out.stderr
    assert "Traceback" not in out.stderr
    desk.empty(30)


def broken(tmp_path: Path) -> Path:
    """A model whose weights nothing can load, which comes out when a stage does."""
    folder = tmp_path / "broken"
    shutil.copytree(ROOT / "upft" / "toy" / "weights", folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:len(weights) // 2])
    return folder


def test_a_failing_stage_fails_the_cells_that_need_it_and_no_others(desk: Desk, tmp_path):
    good = ROOT / "upft" / "toy" / "weights"
    cells = ["-m", f"model.path={good},{broken(tmp_path)}", "prefix.len=4,8", "sample.max_tokens=8", "compute.retries=0"]
    out = desk.run(*cells, "compute.wait=true")
    assert out.returncode == 1, out.stdout
    assert "2 of 4 cells have no report" in out.stderr
    assert "Traceback" not in out.stderr
    assert desk.counts() == {"sample": 1, "diagnose": 1, "build": 2, "train": 2, "evaluate": 3, "report": 2}
    [page] = desk.store.glob("sweeps/*/report.html")
    assert "2 cells of this sweep have no report yet: " in page.read_text()
    missing = json.loads(page.with_name("results.json").read_text())["missing"]
    assert missing == [f"model.path={tmp_path / 'broken'} prefix.len={length}" for length in (4, 8)]
    assert "needed by 2 of 4 cells" in out.stdout
    listed = desk.jobs("list")
    assert "2/4" in listed.stdout
    assert "again: " in listed.stdout
    assert "-m upft.stage" in listed.stdout
    key = re.search(r"failed sample arithmetic sample/([0-9a-f]{20})", listed.stdout)
    assert key is not None
    assert "broken" in desk.jobs("logs", key[1]).stdout
    again = desk.run(*cells)
    assert "left out behind a stage that has failed" in again.stdout
    assert ", 0 to be made" in again.stdout
    desk.empty(60)  # the page's job may still be there
    retried = desk.jobs("retry")
    assert retried.returncode == 0, retried.stderr
    assert ", 0 to be made" not in retried.stdout
    assert desk.queue() != []
    cancelled = desk.jobs("cancel")
    assert "jobs cancelled" in cancelled.stdout
    desk.empty(60)


def stage_of(process: Path, store: str, key: str) -> bool:
    """Whether a process runs this stage of this store."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return {b"upft.stage", store.encode(), key.encode()} <= set(words)
