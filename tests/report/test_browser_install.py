"""How the test set-up comes to a browser: what is tried, what is said, and that nothing fails where none can be had.

The programs that install are stand-ins in a folder of the test's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import browser
import pytest

ROOT = Path(__file__).parents[2]


class Stage:
    """A machine without a browser. `calls` holds what was run, a line each."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.home = folder / "bin", folder / "log", folder / "home"
        self.bin.mkdir()
        self.home.mkdir()

    def put(self, name: str, script: str) -> None:
        """A program that notes how it was called."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{script}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    for name in ("sh", "cat", "chmod", "mkdir"):
        found = shutil.which(name)
        assert found is not None
        (made.bin / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(made.home))
    monkeypatch.delenv("UPFT_CHROMIUM", raising=False)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    made.put("python", "echo 'Error: Download failure, code=1' >&2; exit 1")
    monkeypatch.setattr(browser.sys, "executable", str(made.bin / "python"))
    return made


def browser_in(path: Path) -> str:
    """Shell lines that put one there."""
    return f"mkdir -p {path.parent}; printf '#!/bin/sh\\nexit 0\\n' > {path}; chmod +x {path}"


def test_debians_is_taken_with_fresh_lists_where_the_old_ones_do_not_do(stage: Stage, capfd: pytest.CaptureFixture) -> None:
    stage.put("apt-get", f"case $1 in update) echo > {stage.home}/lists;; install) [ -f {stage.home}/lists ] || exit 100; "
                         f"{browser_in(stage.bin / 'chromium')};; esac")
    assert browser.install() == 0
    assert browser.program() == str(stage.bin / "chromium")
    assert [call.split()[1] for call in stage.calls if call.startswith("apt-get")] == ["install", "update", "install"]
    assert browser.install() == 0, "it is there"
    assert len([call for call in stage.calls if call.startswith("apt-get")]) == 3, "nothing is done twice"
    out = capfd.readouterr()
    assert out.out.count("\n") == 1
    assert out.err == ""


def test_playwrights_own_is_taken_where_there_is_no_root(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    stage.put("apt-get", "exit 0")
    own = stage.home / "chromium_headless_shell-1255" / "chrome-headless-shell-linux64" / "chrome-headless-shell"
    stage.put("python", browser_in(own))
    assert browser.install() == 0
    assert browser.program() == str(own)
    assert stage.calls == ["python -m playwright install --only-shell chromium"]


def test_where_none_can_be_had_it_says_why_and_does_not_claim_one(stage: Stage, capfd: pytest.CaptureFixture) -> None:
    stage.put("apt-get", "echo 'E: Unable to locate package chromium' >&2; exit 100")
    for _ in range(2):
        assert browser.install() == 1
        assert browser.program() is None
        told = capfd.readouterr().err
        assert "the tests of pages will be skipped" in told
        assert "E: Unable to locate package chromium" in told
        assert "Error: Download failure" in told


def test_a_browser_that_does_not_start_is_none(stage: Stage) -> None:
    stage.put("chromium", "echo 'error while loading shared libraries' >&2; exit 127")
    assert browser.program() is None


@pytest.mark.parametrize("status", [0, 1])
def test_the_set_up_does_not_fail_without_a_browser(tmp_path: Path, status: int) -> None:
    """`make setup-test` in an environment that is set up; its python is a stand-in."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexit {status}\n')
    python.chmod(0o755)
    for stamp in (".setup", ".setup-test"):
        (venv / stamp).touch()
    before = {path.name: path.stat().st_mtime_ns for path in venv.iterdir()}
    done = subprocess.run(["make", "setup-test", f"VENV={venv}", f"PYTHON={sys.executable}"], capture_output=True, text=True,
                          cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == ["tests/report/browser.py install"]
    assert {path.name: path.stat().st_mtime_ns for path in venv.iterdir()} == before, "no stamp stands for a browser"
