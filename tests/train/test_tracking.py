"""metrics.jsonl, and its mirror read back from the file that W&B itself writes."""

from __future__ import annotations

import builtins
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from upft import tracking, wandb_run
from upft.choices import TrackerKind
from upft.console import Console
from upft.errors import ConfigError
from upft.machine import TrackerConfig
from upft.tracking import Card

WANDB = TrackerConfig(kind=TrackerKind.wandb, project="upft-test", group="a-sweep")
POINTS = [{"step": i + 1, "loss": 2.5 / (i + 1), "lr": 1e-3} for i in range(4)]
KEY = "a" * 40  # a well-formed API key that no server knows


@pytest.fixture(autouse=True)
def _own_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key of this machine's user, and W&B's service ended, so that all it had to write is on disk."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(wandb_run, "_GIVEN_UP", set())
    wandb.teardown()
    yield
    wandb.teardown()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / tracking.FILE).read_text().splitlines()]


def records(file: Path) -> list[object]:
    """All records of a .wandb file: a 7-byte header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, out = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a header at the end of a block
            at += 32768 - at % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at:at + 7])
        piece = data[at + 7:at + 7 + length]
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            out.append(Record.FromString(parts))
        at += 7 + length
    return out


def runs(folder: Path) -> list[tuple[object, list[dict]]]:
    """(run record, logged points) of every W&B run below a folder, oldest first."""
    import wandb

    wandb.teardown()
    out = []
    for file in sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns):
        found = records(file)
        points = [{(item.key or item.nested_key[0]): json.loads(item.value_json) for item in r.history.item}
                  for r in found if r.WhichOneof("record_type") == "history"]
        out.append((next(r.run for r in found if r.WhichOneof("record_type") == "run"), points))
    return out


def test_metrics_are_on_disk_line_by_line(tmp_path: Path) -> None:
    with tracking.open_tracker(TrackerConfig(), tmp_path / "out", Card("id", "name", "train")) as tracker:
        for i, point in enumerate(POINTS):
            tracker.log(point)
            assert lines(tmp_path / "out") == POINTS[:i + 1]  # a run that dies now has lost nothing
    assert [p.name for p in (tmp_path / "out").iterdir()] == [tracking.FILE]


def test_a_resumed_run_adds_to_its_metrics(tmp_path: Path) -> None:
    for part in (POINTS[:2], POINTS[2:]):
        with tracking.open_tracker(TrackerConfig(), tmp_path, Card("id", "name", "train")) as tracker:
            for point in part:
                tracker.log(point)
    assert lines(tmp_path) == POINTS


def test_wandb_offline_holds_the_same_numbers(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = {"lr": 1e-3, "reduction": "sequence"}
    with tracking.open_tracker(WANDB, tmp_path / "out", Card("0123abc", "train 0123abc", "train", config),
                               mirror=tmp_path / "elsewhere") as tracker:
        for point in POINTS:
            tracker.log(point)
    assert lines(tmp_path / "out") == POINTS
    assert [p.name for p in (tmp_path / "out").iterdir()] == [tracking.FILE], "no W&B file in the artifact"
    (run, points), = runs(tmp_path / "elsewhere")
    assert [{k: p[k] for k in ("step", "loss", "lr")} for p in points] == POINTS
    assert (run.run_id, run.project, run.run_group) == ("0123abc", "upft-test", "a-sweep")
    assert (run.display_name, run.job_type) == ("train 0123abc", "train")
    shown = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert {k: shown[k] for k in config} == config
    assert capfd.readouterr().out == ""


def test_the_same_id_is_the_same_run_after_a_restart(tmp_path: Path) -> None:
    """Also where the second part begins at an earlier step than the first one reached."""
    for part in (POINTS[:3], POINTS[1:]):
        with tracking.open_tracker(WANDB, tmp_path, Card("cafe01", "name", "train")) as tracker:
            for point in part:
                tracker.log(point)
    found = runs(tmp_path)
    assert [run.run_id for run, _ in found] == ["cafe01", "cafe01"]
    assert [[p["step"] for p in points] for _, points in found] == [[1, 2, 3], [2, 3, 4]]


def test_a_run_that_fails_is_closed_as_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with tracking.open_tracker(WANDB, tmp_path, Card("dead01", "n", "train")) as tracker:
            tracker.log(POINTS[0])
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    import wandb

    wandb.teardown()
    file, = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert [r.exit.exit_code for r in records(file) if r.WhichOneof("record_type") == "exit"] == [1]


def test_a_server_that_does_not_answer_costs_seconds_and_no_numbers(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """Port 9 of this machine: nobody listens there."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with tracking.open_tracker(WANDB, tmp_path, Card("beef01", "n", "train"), Console()) as tracker:
        for point in POINTS:
            tracker.log(point)
    assert lines(tmp_path) == POINTS
    (_, points), = runs(tmp_path)
    assert [p["loss"] for p in points] == [p["loss"] for p in POINTS]
    assert "does not answer" in capfd.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()], "the key is no one's to keep"


def test_a_server_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture) -> None:
    """It is there, takes what is sent, and never replies to it."""
    asked: list[str] = []
    ended = threading.Event()

    class Hangs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            asked.append(self.path)
            ended.wait()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hangs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(wandb_run, "PATIENCE_S", 3)
        for number in (1, 2):
            card = Card(f"beef0{number}", "n", "train")
            with tracking.open_tracker(WANDB, tmp_path / str(number), card, Console()) as tracker:
                for point in POINTS:
                    tracker.log(point)
            assert lines(tmp_path / str(number)) == POINTS
            assert [p["loss"] for p in runs(tmp_path / str(number))[-1][1]] == [p["loss"] for p in POINTS]
            if number == 1:
                assert asked, "the server was to be asked"
                asked.clear()
        assert not asked, "it has shown that it does not reply"
        assert capfd.readouterr().err.count("does not take runs") == 1
    finally:
        ended.set()
        server.shutdown()


def test_online_only_with_a_key_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = "https://wandb.example.org"
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_run._mode(server) == "offline"
    (tmp_path / "netrc").write_text(f"machine wandb.example.org login user password {KEY}\n")
    assert wandb_run._mode(server) == "online"
    assert wandb_run._mode("https://other.example.org") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_run._mode("https://other.example.org") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_run._mode(server) == "offline"


def test_a_mirror_that_breaks_does_not_break_the_run(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with tracking.open_tracker(WANDB, tmp_path, Card("f00d01", "n", "train"), Console()) as tracker:
        tracker.log(POINTS[0])
        assert tracker._run is not None
        tracker._run.finish()  # W&B refuses what is logged after this
        tracker.log(POINTS[1])
        tracker.log(POINTS[2])
    assert lines(tmp_path) == POINTS[:3]
    assert capfd.readouterr().err.count("W&B stopped") == 1


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"tracker\.kind=wandb"):
        tracking.open_tracker(WANDB, tmp_path, Card("x", "n", "train"))


def test_an_inherited_service_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage is started by a process that may have a W&B service of its own: it holds the runs of stages that were killed."""
    monkeypatch.setattr(wandb_run, "_OWNER", 0)
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path / 'nobody'}")
    with tracking.open_tracker(TrackerConfig(kind=TrackerKind.wandb), tmp_path, Card("abc", "x", "train")) as tracker:
        tracker.log({"step": 1, "loss": 2.0})
    assert len(list(tmp_path.glob("wandb/offline-run-*-abc/run-abc.wandb"))) == 1
