"""Shared by all tests: composing the configuration, and where real data and a real model lie."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
"""Processes that share the tests; 0 in the one that deals them out, or runs them all."""
if WORKERS:
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the hub is a mistake

ALONE = ("slurm", "vllm")
"""Marks whose files are all run by one process: one cluster serves them all, and vLLM wants the cores for itself."""
ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "upft" / "toy" / "weights"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run. Where several processes share the tests, the heavy files come first,
    so that no long one is left for the end: those that start vLLM or SLURM, then those with most slow tests."""
    import torch

    vllm = importlib.util.find_spec("vllm") is not None
    for item in items:
        if item.get_closest_marker("vllm") and not vllm:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed on this platform"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
    if WORKERS:
        slow = Counter(file_of(item.nodeid) for item in items if item.get_closest_marker("slow"))
        weight = {file: (process_of(file) != file, slow[file]) for file in map(file_of, (item.nodeid for item in items))}
        items.sort(key=lambda item: weight[file_of(item.nodeid)], reverse=True)  # stable: a file stays whole


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but for what `ALONE` says. (`--dist loadgroup` of xdist 3.8 sees no group under pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return process_of(file_of(nodeid))

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def file_of(nodeid: str) -> str:
    """tests/test_store.py::test_it -> tests/test_store.py."""
    return nodeid.partition("::")[0]


@functools.cache
def process_of(file: str) -> str:
    """What a file shares its process with: its own name, or a mark of `ALONE` that it has."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((mark for mark in ALONE if f"pytest.mark.{mark}" in text), file)


@pytest.fixture
def real_data() -> Path:
    """Folder of real benchmark files."""
    folder = os.environ.get("UPFT_REAL_DATA")
    if not folder:
        pytest.skip("UPFT_REAL_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture
def real_model() -> Path:
    """Folder of a real small LLM."""
    folder = os.environ.get("UPFT_REAL_MODEL")
    if not folder:
        pytest.skip("UPFT_REAL_MODEL names no folder of a real model")
    return Path(folder)


@pytest.fixture(scope="session")
def compose() -> Iterator[Callable[..., object]]:
    """compose(*overrides) -> the Hydra tree, as run.py would see it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from upft import composition

    composition.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: hydra_compose("config", list(overrides))


@pytest.fixture(scope="session")
def parse(compose: Callable[..., object]) -> Callable[..., object]:
    """parse(*overrides) -> typed Config."""
    from upft import composition

    return lambda *overrides: composition.parse(compose(*overrides))


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """write_jsonl(rows, name) -> path of a file with one JSON row a line."""

    def write(rows: list[dict[str, object]], name: str = "questions.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
