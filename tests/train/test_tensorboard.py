"""TensorBoard's files, read back with TensorBoard's own reader."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from upft import tracking
from upft.choices import TrackerKind
from upft.errors import ConfigError
from upft.machine import TrackerConfig
from upft.tracking import Card

BOARD = TrackerConfig(kind=TrackerKind.tensorboard)
POINTS = [{"step": i + 1, "loss": 2.5 / (i + 1), "lr": 1e-3, "phase": "warm"} for i in range(6)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def losses(points: list[dict]) -> list[tuple[int, float]]:
    return [(p["step"], pytest.approx(p["loss"], rel=1e-6)) for p in points]


def test_every_number_of_a_step_is_there_at_once(tmp_path: Path) -> None:
    with tracking.open_tracker(BOARD, tmp_path / "out", Card("k", "n", "train"), events=tmp_path / "board") as tracker:
        tracker.catch_up([])
        for number, point in enumerate(POINTS, 1):
            tracker.log(point)
            assert scalars(tmp_path / "board")["loss"] == losses(POINTS[:number])
    assert set(scalars(tmp_path / "board")) == {"loss", "lr"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [tracking.FILE], "no event file in the artifact"


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    """The first attempt is killed after step 4, with the last record torn; the second goes on after step 2."""
    first = tracking.open_tracker(BOARD, tmp_path / "out", Card("k", "n", "train"), events=tmp_path / "board")
    for point in POINTS[:4]:
        first.log(point)
    file, = (tmp_path / "board").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    before = tracking.cut(tmp_path / "out", 2)
    with tracking.open_tracker(BOARD, tmp_path / "out", Card("k", "n", "train"), events=tmp_path / "board") as tracker:
        tracker.catch_up(before)
        for point in POINTS[2:]:
            tracker.log(point)
    assert scalars(tmp_path / "board")["loss"] == losses(POINTS)
    assert len(list((tmp_path / "board").iterdir())) == 1


def test_files_lie_beside_the_store_unless_told_in_a_folder_of_the_runs_name(tmp_path: Path) -> None:
    out = tmp_path / "store" / "train" / "0a1b2c3d4e5f.partial"
    name = "train, Qwen/Qwen2.5 on my data t=8 p=0.1 lr=1e-05 0a1b2c3d"
    folder = tmp_path / "tensorboard" / "train_Qwen_Qwen2.5_on_my_data_t=8_p=0.1_lr=1e-05_0a1b2c3d"
    assert tracking.events_folder(BOARD, out, name) == folder
    elsewhere = TrackerConfig(kind=TrackerKind.tensorboard, folder=str(tmp_path / "board"))
    assert tracking.events_folder(elsewhere, out, name) == tmp_path / "board" / folder.name


@pytest.mark.parametrize("begun", ["train-0a1b2c3d4e5f", "train_as_it_was_called_0a1b2c3d"])
def test_what_was_begun_goes_on_in_its_folder(tmp_path: Path, begun: str) -> None:
    (tmp_path / "tensorboard" / begun).mkdir(parents=True)
    (tmp_path / "tensorboard" / "train_another_11112222").mkdir()
    out = tmp_path / "store" / "train" / "0a1b2c3d4e5f.partial"
    assert tracking.events_folder(BOARD, out, "train, new name 0a1b2c3d") == tmp_path / "tensorboard" / begun


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "tensorboard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"tracker\.kind=tensorboard"):
        tracking.open_tracker(BOARD, tmp_path, Card("x", "n", "train"))
