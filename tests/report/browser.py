"""A headless browser for the tests of pages: Debian's chromium, driven by Playwright.

    python tests/report/browser.py install     (root; Debian or Ubuntu)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
HINT = "needs chromium: python tests/report/browser.py install (root), and pip install -e .[test] for Playwright"


def program() -> str | None:
    """The browser's path; None where there is none. UPFT_CHROMIUM names another."""
    return os.environ.get("UPFT_CHROMIUM") or next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def install() -> int:
    """Take Debian's package unless a browser is there. The exit status."""
    if program() is not None:
        return 0
    if os.geteuid() != 0:
        print(f"no chromium here, and only root may install it; {HINT}", file=sys.stderr)
        return 1
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            return status
    return 0 if program() is not None else 1


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    sys.exit(install())
