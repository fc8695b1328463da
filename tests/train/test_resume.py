"""Interrupted trainings: wherever they were stopped, and however, they end where an uninterrupted one does."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from upft import adapters, notice, tracking
from upft.batches import Steps
from upft.checkpoint import latest
from upft.choices import CutUnit, Layout, MethodName, Precision, Reduction
from upft.console import Console
from upft.errors import Stopped, StoreError, TrainError
from upft.fit import Fitted, fit
from upft.hashing import Hasher, canonical
from upft.ledger import Ledger
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.prefix import Row, write_rows
from upft.ranks import World
from upft.sampler import EnginePool
from upft.specs import BuildSpec, LoraSpec, ModelSpec, PromptSpec, TrainSpec
from upft.stages import Host, train
from upft.steps import RowsLoss
from upft.store import RESUME, Store

TIMES = ("tokens_per_s", "seconds")
LORA = LoraSpec(rank=4, alpha=8.0, dropout=0.2, targets=None, merge=False)


def timeless(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def damage(path: Path) -> None:
    """One bit of a checkpoint's tensors."""
    file = next(path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def rows_artifact(folder: Path, model: Path, rows: list[Row]) -> Path:
    """What the build stage leaves, as far as a training reads it."""
    build = BuildSpec(MethodName.upft, ModelSpec(model_ref(model, Hasher()), False), PromptSpec(None, "{question}"), 30,
                      CutUnit.token, 0.0, "", True, False, 256)
    folder.mkdir()
    write_rows(folder / "rows.arrow", rows)
    (folder / "rows.json").write_text(json.dumps({"prefix_len": 30, "prefix_len_from": "config", "prefix_rows": len(rows),
                                                 "trace_rows": 0, "mean_supervised": 9.5}))
    (folder / "spec.json").write_text(json.dumps({"stage": "build", "spec": canonical(build)}))
    return folder


# --- in one process: an interrupt that comes while a step is reported

KINDS: dict[str, tuple[Precision, bool]] = {
    "fp32": (Precision.fp32, False), "bf16_mixed": (Precision.bf16_mixed, False),
    "bf16_stochastic": (Precision.bf16_stochastic, False), "lora": (Precision.fp32, True),
    "lora in bf16_mixed": (Precision.bf16_mixed, True)}


@pytest.fixture
def attempt(tiny: Callable, make_rows: Callable, settings: Callable, tmp_path: Path) -> Callable:
    """attempt(kind, layout, into, stop=step) -> (weights, Fitted or None): one start, from the newest checkpoint in `into`.

    With dropout, a warm-up and two epochs of four steps; a checkpoint after every step. The reports go into
    `into`/metrics.jsonl, as those of the stage do.
    """
    def run(kind: str, layout: Layout, into: Path, stop: int | None = None, batch_size: int = 6,
            prepare: Callable[[torch.nn.Module], object] = lambda model: None, every_s: float | None = 0,
            limit: int = 60) -> tuple[dict[str, torch.Tensor], Fitted | None]:
        precision, lora = KINDS[kind]
        model = tiny(attention_dropout=0.2)
        if precision is Precision.bf16_stochastic or (lora and precision is Precision.bf16_mixed):
            model = model.bfloat16()
        if lora:
            adapters.attach(model, LORA, 0)
        prepare(model)
        found = latest(into / RESUME, note=Console().warn)
        tracking.cut(into, 0 if found is None else found.step)
        compute = ComputeConfig(checkpoint_every_s=every_s, layout=layout, micro_batch_tokens=limit)
        with tracking.open_tracker(TrackerConfig(), into, tracking.Card("x", "x", "train")) as tracker:
            def report(record: Mapping[str, float | int]) -> None:
                tracker.log(record)
                if record["step"] == stop:
                    raise KeyboardInterrupt

            torch.manual_seed(time.time_ns())  # what the process drew before is of no account
            s = settings(precision=precision, epochs=2, warmup_ratio=0.5, grad_clip=0.5, lr=1e-3, batch_size=batch_size)
            try:
                fitted = fit(model, make_rows(20), s, 0, compute, into, report, checkpoints=into / RESUME, resume=found)
            except KeyboardInterrupt:
                fitted = None
        return weights(model), fitted

    return run


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layout", [Layout.packed, Layout.padded])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_it_ends_with_the_same_bits(attempt: Callable, tmp_path: Path, kind: str, layout: Layout) -> None:
    """Stopped before the first checkpoint, in the warm-up, between the epochs, and at the last step."""
    wanted, fitted = attempt(kind, layout, tmp_path / "whole", every_s=None)
    assert fitted is not None
    assert not (tmp_path / "whole" / RESUME).exists(), "none was asked for"
    assert [r["step"] for r in metrics(tmp_path / "whole")] == list(range(1, 9))
    into, starts = tmp_path / "stopped", []
    for stop in (1, 3, 5, 5, 8, None):
        found = latest(into / RESUME)
        starts.append(0 if found is None else found.step)
        got, told = attempt(kind, layout, into, stop=stop)
        assert (told is None) == (stop is not None)
        assert stop is None or not equal(got, wanted) or stop == 8
    assert starts == [0, 0, 2, 4, 4, 7]
    assert equal(got, wanted)
    assert told == fitted
    assert timeless(metrics(into)) == timeless(metrics(tmp_path / "whole"))
    assert told.seconds >= metrics(into)[6]["seconds"], "the time of the earlier starts counts"


@pytest.mark.parametrize("kind", ["fp32", "lora"])
def test_stopped_after_the_last_step_it_has_the_trained_weights(attempt: Callable, tmp_path: Path, kind: str) -> None:
    """A kill may come while the model is being saved: the last step has a checkpoint then."""
    wanted, fitted = attempt(kind, Layout.packed, tmp_path)
    before = metrics(tmp_path)
    found = latest(tmp_path / RESUME)
    assert found is not None
    assert found.step == 8
    got, again = attempt(kind, Layout.packed, tmp_path)
    assert equal(got, wanted)
    assert again == fitted
    assert metrics(tmp_path) == before


def test_told_to_stop_it_writes_a_checkpoint_first(attempt: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the step it is in, however long the next checkpoint would have been away; where none are kept it goes on."""
    wanted, _ = attempt("fp32", Layout.packed, tmp_path / "whole", every_s=None)
    word, into = tmp_path / "stop", tmp_path / "told"
    monkeypatch.setenv(notice.VARIABLE, str(word))
    word.touch()
    for step in (1, 2, 3):
        with pytest.raises(Stopped, match=f"after step {step} of 8"):
            attempt("fp32", Layout.packed, into, every_s=3600)
        found = latest(into / RESUME)
        assert found is not None
        assert found.step == step
    assert attempt("fp32", Layout.packed, tmp_path / "none", every_s=None)[1] is not None
    word.unlink()
    got, fitted = attempt("fp32", Layout.packed, into, every_s=3600)
    assert fitted is not None
    assert equal(got, wanted)
    assert [r["step"] for r in metrics(into)] == list(range(1, 9))


def test_a_checkpoint_of_other_settings_is_refused(attempt: Callable, tmp_path: Path) -> None:
    attempt("fp32", Layout.packed, tmp_path, stop=3)
    with pytest.raises(StoreError, match="it is of another model or other settings"):
        attempt("bf16_stochastic", Layout.packed, tmp_path)


def test_checkpoints_cost_no_number(attempt: Callable, tmp_path: Path) -> None:
    """Bit for bit what it is without any."""
    with_them, _ = attempt("fp32", Layout.packed, tmp_path / "a")
    without, _ = attempt("fp32", Layout.packed, tmp_path / "b", every_s=None)
    rarely, _ = attempt("fp32", Layout.packed, tmp_path / "c", every_s=3600)
    assert equal(with_them, without)
    assert equal(with_them, rarely)
    assert not (tmp_path / "c" / RESUME).exists(), "an hour had not passed"


def test_out_of_memory_leaves_the_last_checkpoint_and_a_remedy_goes_on_from_it(attempt: Callable, tmp_path: Path) -> None:
    """The allocator itself refuses, for the whole of the fourth step."""
    forward = 0

    def greedy(module: object, inputs: tuple, output: object) -> None:
        nonlocal forward
        forward += torch.is_grad_enabled()
        if forward > 6:
            torch.empty(2**60, dtype=torch.uint8)

    wanted, fitted = attempt("fp32", Layout.packed, tmp_path / "whole", limit=60)
    into = tmp_path / "short of memory"
    with pytest.raises(TrainError, match="out of memory in a micro-batch of"):
        attempt("fp32", Layout.packed, into, limit=60, prepare=lambda m: m.model.layers[1].register_forward_hook(greedy))
    found = latest(into / RESUME)
    assert found is not None
    assert 0 < found.step < 8
    assert [r["step"] for r in metrics(into)] == list(range(1, found.step + 1))
    kept = timeless(metrics(into))
    got, told = attempt("fp32", Layout.packed, into, limit=60)
    assert equal(got, wanted)
    assert told == fitted
    assert timeless(metrics(into))[:found.step] == kept
    assert [r["step"] for r in metrics(into)] == list(range(1, 9))


def test_a_number_that_is_not_finite_leaves_the_last_checkpoint(attempt: Callable, tmp_path: Path) -> None:
    """A device that breaks once: the same call goes on, and ends as if nothing had been."""
    wanted, fitted = attempt("fp32", Layout.packed, tmp_path / "whole")
    forward = 0

    def spoil(module: object, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal forward
        forward += torch.is_grad_enabled()
        return output * math.nan if forward > 8 else None

    into = tmp_path / "spoilt"
    with pytest.raises(TrainError, match=r"the loss of step \d is not a finite number"):
        attempt("fp32", Layout.packed, into, prepare=lambda m: m.model.layers[1].mlp.register_forward_hook(spoil))
    found = latest(into / RESUME)
    assert found is not None
    assert found.step == len(metrics(into)) > 0
    assert json.loads((into / "nonfinite.json").read_text())["step"] == found.step + 1
    got, told = attempt("fp32", Layout.packed, into)
    assert equal(got, wanted)
    assert told == fitted
    assert timeless(metrics(into)) == timeless(metrics(tmp_path / "whole"))


# --- the stage, in processes of its own that are killed

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
import pytorch_lightning, torch, wandb  # before the forks: a start then costs no seconds
from upft import adapters, attention, batches, fit, module, optimizer
from upft.choices import *
from upft.console import Console
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.specs import LoraSpec, ModelSpec, TrainSpec
from upft.sampler import EnginePool
from upft.stages import Host, train
from upft.hashing import Hasher, canonical
from upft.store import Store
torch.set_num_threads(1)

def build(job):
    spec = TrainSpec(
        model=ModelSpec(model_ref(Path(job["model"]), Hasher()), False), epochs=job["epochs"], lr=1e-3, beta1=0.9, beta2=0.95,
        eps=1e-8, weight_decay=0.01, warmup_ratio=0.1, batch_size=2, grad_clip=1.0, reduction=Reduction.sequence,
        precision=Precision.bf16_mixed, lora=LoraSpec(4, 8.0, 0.1, None, True) if job["lora"] else None, seed=0)
    store = Store(job["store"])
    store.prepare()
    compute = ComputeConfig(micro_batch_tokens=200, checkpoint_every_s=0)
    tracker = TrackerConfig(kind=TrackerKind[job["tracker"]])
    with EnginePool(compute) as engines:
        host = Host(compute, tracker, Console(), engines)
        rows = {"rows": Path(job["rows"])}
        store.build("train", "0a1b2c", canonical(spec), lambda out: train.run(spec, rows, out, host))

for line in sys.stdin:  # a job each, in a process of its own
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(2, 1)
            build(json.loads(line))
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Worker:
    """Runs stages one after another, each in a process that may be killed."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        with errors.open("w") as stream:
            self._process = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=stream, text=True, env=env)

    def __call__(self, job: dict, until: Callable[[], bool] | None = None) -> int:
        """Exit status of the job, which is killed once `until` holds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if until is not None:
            deadline = time.monotonic() + 60
            while not until() and time.monotonic() < deadline:
                time.sleep(0.002)
            with suppress(ProcessLookupError):  # it ended first: its status says so
                os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "mirror"))
    one = Worker(tmp_path / "errors.txt")
    yield one
    one.close()


@pytest.fixture
def job(model_folder: Callable, make_rows: Callable, tmp_path: Path) -> Callable[..., dict]:
    """job(store, **changes) -> a training of 20 steps an epoch."""
    source = model_folder(attention_dropout=0.1)
    rows = rows_artifact(tmp_path / "rows", source, make_rows(40))
    return lambda store, **changes: {"store": str(tmp_path / store), "model": str(source), "rows": str(rows), "epochs": 8,
                                     "lora": False, "tracker": "none", **changes}


def steps_written(folder: Path) -> int:
    """The last whole line of metrics.jsonl, while others write it; 0 = none."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


def counts(folder: Path) -> dict[str, float]:
    book = Ledger.read(folder)
    return {key: getattr(book, key) for key in (
        "supervised_tokens", "forward_tokens", "shared_tokens", "padding_tokens", "flops")}


def told(folder: Path) -> dict:
    return {k: v for k, v in json.loads((folder / "train.json").read_text()).items() if k not in TIMES}


def same_artifact(one: Path, two: Path) -> None:
    """But for times: every file, every number, every bit of the weights."""
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) for folder in (one, two)]
    assert names[0] == names[1]
    assert not [name for name in names[0] if name.startswith(RESUME)]
    for name in names[0]:
        if name.endswith(".safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert timeless(metrics(one)) == timeless(metrics(two))
    assert told(one) == told(two)
    assert counts(one) == counts(two)


def wandb_steps(file: Path) -> tuple[str, list[int]]:
    """(run id, steps) of a .wandb file, whose end may be torn: a 7-byte header, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, run_id, steps = file.read_bytes(), 7, b"", "", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at:at + 7])
        if at + 7 + length > len(data):
            break
        piece = data[at + 7:at + 7 + length]
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            record = Record.FromString(parts)
            run_id = record.run.run_id or run_id
            steps += [int(item.value_json) for item in record.history.item if (item.key or item.nested_key[0]) == "step"]
        at += 7 + length
    return run_id, steps


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_kills_at_any_moment_change_nothing(worker: Worker, job: Callable, tmp_path: Path, lora: bool) -> None:
    """Twelve kills: two while it starts, nine in the course of the steps, one after the last step, as the model is saved."""
    steps = 160
    assert worker(job("whole", lora=lora)) == 0, worker.said
    whole, draw = tmp_path / "whole" / "train" / "0a1b2c", random.Random(0)
    mirrored = {"lora": lora, "tracker": "tensorboard" if lora else "wandb"}
    final = tmp_path / "killed" / "train" / "0a1b2c"
    partial = final.with_name("0a1b2c.partial")
    begins: list[int] = []
    for kill in range(12):
        if kill < 11:
            begins.append(steps_written(partial))
        goal = min(steps - 10, (begins[-1] if begins else 0) + draw.randint(2, 14))
        began, wait = time.monotonic(), draw.uniform(0, 0.6)

        def moment(kill: int = kill, goal: int = goal, began: float = began, wait: float = wait) -> bool:
            if kill in (0, 4):
                return time.monotonic() > began + wait
            if kill == 11:
                return steps_written(partial) == steps or final.exists()
            return begins[-1] < steps_written(partial) >= goal or final.exists()

        code = worker(job("killed", **mirrored), moment)
        assert code == -9, worker.said
        time.sleep(0.01)
        assert not final.exists(), "an interrupted training was taken for a finished one"
    assert len(set(begins)) >= 8, "the kills were to fall at different steps"
    assert (partial / RESUME).is_dir()
    left = latest(partial / RESUME, rank=1)
    assert left is not None
    assert left.step >= steps - 1, "the last kill was to come after the last step"
    assert worker(job("killed", **mirrored)) == 0, worker.said
    same_artifact(whole, final)
    assert [r["step"] for r in metrics(final)] == list(range(1, steps + 1))
    assert "Traceback" not in worker.said
    if lora:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        file, = (tmp_path / "tensorboard").glob("*/*")
        events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
        assert [event.step for event in events] == list(range(1, steps + 1)), "each step once, whatever the kills"
        losses = [one.tensor.float_val[0] for event in events for one in event.summary.value if one.tag == "loss"]
        assert losses == pytest.approx([line["loss"] for line in metrics(final)], rel=1e-6)
        return
    files = sorted((tmp_path / "mirror" / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns)
    assert len(files) >= 8, "most starts were to live long enough to open a mirror"
    found = [wandb_steps(file) for file in files]
    assert {run_id for run_id, _ in found} - {""} == {"0a1b2c"}, "one run, whatever the number of starts"
    assert {file.name for file in files} == {"run-0a1b2c.wandb"}
    assert found[-1] == ("0a1b2c", list(range(1, steps + 1))), "a killed mirror loses its last points; the next one has them"


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(worker: Worker, job: Callable, tmp_path: Path) -> None:
    """The newest damaged and an older one there; then all damaged, and the last line of the metrics torn."""
    assert worker(job("whole", epochs=2)) == 0, worker.said
    whole = tmp_path / "whole" / "train" / "0a1b2c"
    final = tmp_path / "killed" / "train" / "0a1b2c"
    partial = final.with_name("0a1b2c.partial")
    assert worker(job("killed", epochs=2), lambda: steps_written(partial) >= 6) == -9
    older = latest(partial / RESUME)
    assert older is not None
    kept = tmp_path / "kept"
    older.path.rename(kept)
    newer = older.path.with_name(f"step-{older.step + 1:08d}")
    kept.rename(older.path)
    newer.mkdir()
    (newer / "manifest.json").write_text("torn")
    assert worker(job("killed", epochs=2), lambda: steps_written(partial) >= older.step + 6) == -9
    assert f"{newer.name} is damaged" in worker.said
    assert f"{older.path.name} is damaged" not in worker.said
    newest = latest(partial / RESUME)
    assert newest is not None
    assert newest.step > older.step
    damage(newest.path)
    with (partial / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "lo')
    assert worker(job("killed", epochs=2)) == 0, worker.said
    assert f"{newest.path.name} is damaged" in worker.said
    same_artifact(whole, final)
    assert [r["step"] for r in metrics(final)] == list(range(1, 41))


@pytest.mark.slow
def test_what_an_attempt_left_beside_its_checkpoints_does_not_reach_the_artifact(
        worker: Worker, job: Callable, tmp_path: Path) -> None:
    """Half a model, the report of a breakdown: only checkpoints and metrics are taken over."""
    assert worker(job("whole", epochs=1)) == 0, worker.said
    final = tmp_path / "killed" / "train" / "0a1b2c"
    partial = final.with_name("0a1b2c.partial")
    assert worker(job("killed", epochs=1), lambda: steps_written(partial) >= 4) == -9
    (partial / "nonfinite.json").write_text("{}")
    (partial / "model").mkdir(exist_ok=True)
    (partial / "model" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (partial / "metrics.partial").write_text("x")
    assert worker(job("killed", epochs=1)) == 0, worker.said
    same_artifact(tmp_path / "whole" / "train" / "0a1b2c", final)


def test_a_breakdown_in_the_stage_leaves_what_the_same_call_goes_on_from(
        model_folder: Callable, make_rows: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way through the store: memory runs out at the fourth step, a smaller micro-batch finishes."""
    source = model_folder()
    rows = rows_artifact(tmp_path / "rows", source, make_rows(24))
    spec = TrainSpec(ModelSpec(model_ref(source, Hasher()), False), 2, 1e-3, 0.9, 0.95, 1e-3, 0.0, 0.1, 6, 1.0,
                     Reduction.sequence, Precision.fp32, None, 0)
    plain, calls = RowsLoss.forward, [0]

    def greedy(self: RowsLoss, micro: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 4:
            torch.empty(2**60, dtype=torch.uint8)
        return plain(self, micro)

    def build(store: str, limit: int) -> Path:
        compute = ComputeConfig(micro_batch_tokens=limit, checkpoint_every_s=0)
        there = Store(tmp_path / store)
        there.prepare()
        with EnginePool(compute) as engines:
            host = Host(compute, TrackerConfig(), Console(), engines)
            return there.build("train", "k", canonical(spec), lambda out: train.run(spec, {"rows": rows}, out, host))[0].path

    whole = build("whole", 500)
    with monkeypatch.context() as patch:
        patch.setattr(RowsLoss, "forward", greedy)
        with pytest.raises(TrainError, match="out of memory") as caught:
            build("broken", 500)
    assert "compute.micro_batch_tokens" in caught.value.remedy
    left = latest(tmp_path / "broken" / "train" / "k.partial" / RESUME)
    assert left is not None
    assert left.step == 3
    after = build("broken", 60)
    one, two = metrics(whole), metrics(after)
    assert timeless(two)[:3] == timeless(one)[:3]
    assert [r["loss"] for r in two] == pytest.approx([r["loss"] for r in one], rel=1e-4)
    assert [r["step"] for r in two] == list(range(1, 9))
    assert not (after / RESUME).exists()


def test_only_a_folder_with_checkpoints_outlives_its_builder(tmp_path: Path) -> None:
    """What other stages leave behind when they die is wiped; what a training can go on from is there again, once."""
    store, seen = Store(tmp_path), []
    store.prepare()

    def make(out: Path) -> None:
        seen.append(sorted(str(p.relative_to(out)) for p in out.rglob("*")))
        (out / "done").write_text("x")

    for key, left in (("a", "half"), ("b", f"{RESUME}/step-00000001")):
        (tmp_path / "train" / f"{key}.partial" / left).mkdir(parents=True)
        artifact, built = store.build("train", key, {}, make)
        assert built
        assert sorted(p.name for p in artifact.path.iterdir()) == ["done", "manifest.json", "provenance.json", "spec.json"]
    assert seen == [[], [RESUME, f"{RESUME}/step-00000001"]]


def test_rows_are_the_same_after_a_restart(make_rows: Callable) -> None:
    """The steps of a resumed run are the tail of the steps of a whole one, token for token."""
    rows: list[Row] = make_rows(20)
    lengths = np.array([len(r.input_ids) for r in rows])
    supervised = np.array([r.supervised for r in rows])

    def ids(start: int) -> list[list[list[int]]]:
        steps = Steps(rows, lengths, supervised, batch_size=6, epochs=2, seed=1, reduction=Reduction.token,
                      micro_batch_tokens=60, layout=Layout.packed, share=True, tiled=True, world=World(), start=start)
        out = [[m.input_ids.tolist() for m in step.micro_batches] for step in steps]
        assert len(out) == len(steps)
        return out

    for start in range(8):
        assert ids(start) == ids(0)[start:]
