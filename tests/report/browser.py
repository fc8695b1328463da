"""A headless browser for the tests of pages, driven by Playwright: what is here, Debian's chromium, or Playwright's own.

    python tests/report/browser.py install     (what `make setup-test` does)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OWN = "chromium_headless_shell-*/chrome-*/*headless*shell"
"""Where Playwright puts its own, below its folder."""
APT_S, OWN_S = 600, 300
"""How long the two ways of installing may take."""
HINT = ("no chromium here: `make setup-test` takes Debian's package (as root) or Playwright's own (from the network);"
        " UPFT_CHROMIUM names another")


def program() -> str | None:
    """The browser's path; None where there is none that starts. UPFT_CHROMIUM names another."""
    if named := os.environ.get("UPFT_CHROMIUM"):
        return named
    cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / cache / "ms-playwright")
    found = [*filter(None, map(shutil.which, PROGRAMS)), *map(str, sorted(folder.glob(OWN), reverse=True))]
    return next((path for path in found if _starts(path)), None)


def install() -> int:
    """Take one unless a browser is there: 0 where one is afterwards, else 1 and a word why. Says little else."""
    if program() is not None:
        return 0
    print("installing a browser for the tests of pages", flush=True)
    tried = []
    if os.geteuid() != 0:
        tried.append("only root may take Debian's package")
    elif shutil.which("apt-get") is None:
        tried.append("there is no apt-get")
    else:
        # Without lists of packages, or with old ones, the first try fails.
        take = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        update = ["apt-get", "update", "-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
        why = _run(take, APT_S) and (_run(update, APT_S) or _run(take, APT_S))
        if program() is not None:
            return 0
        tried.append(f"apt-get: {why or 'its chromium does not start'}")
    why = _run([sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"], OWN_S)
    if program() is not None:
        return 0
    tried.append(f"Playwright: {why or 'its chromium does not start'}")
    print(f"no browser, the tests of pages will be skipped ({'; '.join(tried)})", file=sys.stderr)
    return 1


def _run(command: Sequence[str], limit_s: float) -> str:
    """What went wrong, in a line; nothing where it went well."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "10000"}
    try:
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, errors="replace",
                              stdin=subprocess.DEVNULL, timeout=limit_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    told = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    words = [line for line in told if line.lower().startswith(("e:", "error", "failed"))] or told or [""]
    return "" if done.returncode == 0 else f"status {done.returncode} {words[0]}"


def _starts(path: str) -> bool:
    """Whether all libraries that it needs are there."""
    try:
        return subprocess.run([path, "--version"], check=False, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    sys.exit(install())
