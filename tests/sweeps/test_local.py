"""Sweeps without SLURM: stages side by side, the serial run's results, one stage's failure no other cell's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from upft import local, shelf
from upft.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
SMALL = ["sample.engine=transformers", "eval.engine=transformers", "data.arithmetic.questions=48",
         "eval.tasks.arithmetic.arithmetic.questions=16", "train.batch_size=16", "compute.threads=1", "compute.accelerator=cpu",
         "compute.retries=0"]
CLOCKS = {"provenance.json", "ledger.json", "manifest.json", "metrics.jsonl", "results.json", "report.html", "README.md",
          "train.json", "report.md", "cost.csv", "cost.tex"}


def run(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "run.py"), "-m", *more, *SMALL, f"run.store={store}"],
                          capture_output=True, text=True, cwd=ROOT, timeout=600)


def contents(store: Path) -> dict[str, bytes]:
    return {str(f.relative_to(store)): f.read_bytes() for f in store.glob("[a-z]*/*/**/*")
            if f.is_file() and f.name not in CLOCKS and not {"figures", "sweeps"} & set(f.parts) and ".partial" not in str(f)}


@pytest.mark.slow
def test_side_by_side_is_the_serial_run(tmp_path):
    cells = ["prefix.len=4,8", "sample.max_tokens=8"]
    assert run(tmp_path / "serial", *cells).returncode == 0
    out = run(tmp_path / "both", *cells, "compute.parallel=2", "compute.shards.sample=3", "compute.shards.evaluate=2")
    assert out.returncode == 0, out.stderr
    assert "2 cells, 11 distinct stages, 0 in the store, 0 under way, 11 to be made by 20 jobs" in out.stdout
    assert "were drawn by 3 shards" in "".join(log.read_text() for log in (tmp_path / "both").glob(".jobs/submitted/*/*.log"))
    assert contents(tmp_path / "both") == contents(tmp_path / "serial")
    times = [json.loads(p.read_text()) for p in (tmp_path / "both").glob("train/*/provenance.json")]
    assert max(t["started"] for t in times) < min(t["finished"] for t in times), "the trainings were not side by side"
    pages = [sorted(p.relative_to(tmp_path / side) for p in (tmp_path / side).glob("sweeps/*/report.html"))
             for side in ("serial", "both")]
    assert pages[0] == pages[1]
    assert len(pages[0]) == 1, "a sweep ends with the report on its cells, however it ran"
    for place, name in (("report/*", "cell"), ("sweeps/*", "results")):
        schema = json.loads((ROOT / "upft" / "report" / f"{name}.schema.json").read_text())
        for path in (tmp_path / "both").glob(f"{place}/results.json"):
            jsonschema.validate(json.loads(path.read_text()), schema)
    [page] = (tmp_path / "serial").glob("sweeps/*/report.html")
    for chosen in (page.parent.name, page.parent.name[:6], str(page.parent)):
        found = shelf.choose([chosen], tmp_path / "serial")
        assert len(found.reports) == 2, "a serial sweep's id selects its cells, as any other's"
        assert found.missing == []
        assert found.command is not None
        assert found.command.startswith(f"python {ROOT / 'run.py'} -m prefix.len=4,8 ")
    listed = subprocess.run([sys.executable, "-m", "upft.jobs", "--store", str(tmp_path / "serial")], capture_output=True,
                            text=True, cwd=ROOT, timeout=60)
    assert page.parent.name in listed.stdout
    assert "2/2" in listed.stdout
    again = run(tmp_path / "both", *cells, "compute.parallel=2")
    assert ", 11 in the store, 0 under way, 0 to be made" in again.stdout


@pytest.mark.slow
def test_what_fails_is_told_and_leaves_the_others(tmp_path):
    import shutil

    good, bad = ROOT / "upft" / "toy" / "weights", tmp_path / "bad"
    shutil.copytree(good, bad)
    (bad / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:5000])
    store = tmp_path / "store"
    out = run(store, f"model.path={good},{bad}", "compute.parallel=2")
    assert out.returncode == 1
    assert f"1 of 2 cells have no report: model.path={bad}" in out.stderr
    assert "Traceback" not in out.stderr
    assert str(bad) in out.stdout
    assert "again: " in out.stdout
    assert len(list(store.glob("report/*"))) == 1
    [told] = [json.loads(page.read_text()) for page in store.glob("sweeps/*/results.json")]
    assert told["missing"] == [f"model.path={bad}"]
    assert len(told["cells"]) == 1
    [page] = store.glob("sweeps/*/report.html")
    assert shelf.choose([page.parent.name], store).missing == told["missing"]
    listed = subprocess.run([sys.executable, "-m", "upft.jobs", "list", "--store", str(store)], capture_output=True, text=True,
                            cwd=ROOT, timeout=60)
    assert listed.returncode == 0, listed.stderr
    assert "1/2" in listed.stdout
    [line] = [line for line in out.stdout.splitlines() if "again: " in line and "upft.stage" in line][:1]
    repeated = subprocess.run(line.partition("again: ")[2], shell=True, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert repeated.returncode in (1, 2)
    assert str(bad) in repeated.stderr
    assert "Traceback" not in repeated.stderr


def test_each_place_has_gpus_of_its_own(parse, monkeypatch):
    compute = parse("compute.devices=2").compute
    assert local.shares(2, compute, ["0", "1", "2", "3"]) == [{local.VISIBLE: "0,1"}, {local.VISIBLE: "2,3"}]
    assert local.shares(3, compute, []) == [{}, {}, {}]
    with pytest.raises(ConfigError, match=r"compute\.parallel=2 with compute\.devices=2: 3 GPUs"):
        local.shares(2, compute, ["0", "1", "5"])
    monkeypatch.setenv(local.VISIBLE, "3, 5")
    assert local.devices(compute) == ["3", "5"]
    monkeypatch.setenv(local.VISIBLE, "")
    assert local.devices(compute) == []
    assert local.devices(parse("compute.accelerator=cpu").compute) == []
