"""Shared by all tests: composing the configuration, and where real data and a real model lie."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

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
"""Marks of tests that one process runs, whichever file they are in."""
ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "upft" / "toy" / "weights"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run. Say what one process runs together, and what first."""
    import torch

    vllm = importlib.util.find_spec("vllm") is not None
    for item in items:
        if item.get_closest_marker("vllm") and not vllm:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed on this platform"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
    _deal_out(items)


def _deal_out(items: list[pytest.Item]) -> None:
    """For `pytest -n N --dist loadgroup`: the tests of a file go together, as they share what it sets up; so do all that start
    vLLM, which wants the cores for itself, and all on the one SLURM cluster. Where several processes share them, these come
    first and then the files with most slow tests, so that no long one is left for the end."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("::")[0], []).append(item)
    shared = {file: next((name for name in ALONE if any(item.get_closest_marker(name) for item in held)), None)
              for file, held in groups.items()}
    for file, held in groups.items():
        for item in held:
            item.add_marker(pytest.mark.xdist_group(shared[file] or Path(file).stem))
    if WORKERS:
        weight = {file: (shared[file] is not None, sum(item.get_closest_marker("slow") is not None for item in held))
                  for file, held in groups.items()}
        items.sort(key=lambda item: weight[item.nodeid.partition("::")[0]], reverse=True)  # stable: a file stays whole


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
