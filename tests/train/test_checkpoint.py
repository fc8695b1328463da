"""Checkpoints: whole or not there, bitwise, and the same for any number of ranks (real processes, real kills)."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from upft import checkpoint
from upft.checkpoint import at, latest, save
from upft.choices import Precision
from upft.errors import StoreError
from upft.optimizer import StochasticAdamW, build
from upft.training_state import flatten_model, flatten_optimizer, random_state, set_random_state


def some_tensors(step: int = 0) -> dict[str, torch.Tensor]:
    """Every number format in use, a scalar, an empty one, one with its rows apart, two names for one, two parts of one."""
    draw = torch.Generator().manual_seed(step)
    table = torch.randn(11, 3, generator=draw)
    tied = torch.randn(4, 4, generator=draw).to(torch.bfloat16)
    return {"model.table": table, "model.turned": torch.randn(3, 5, generator=draw).t(),
            "optim.step": torch.tensor(float(step)), "model.tied": tied, "model.tied_too": tied,
            "model.none": torch.empty(0, 3), "count": torch.tensor([step, -1]), "model.low": table[:5],
            "model.high": table[5:], "exact": torch.tensor([1e-300, 0.1], dtype=torch.float64)}


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(t, 7) for name, t in tensors.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("part_bytes", [1, 100, 10**9])
def test_what_was_saved_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """Bit for bit, through one file or many, into tensors whatever their layout."""
    monkeypatch.setattr(checkpoint, "PART_BYTES", part_bytes)
    monkeypatch.setattr(checkpoint, "READ_BYTES", min(part_bytes, 24))  # two rows of the table at once
    tensors, state = some_tensors(), {"lr": 0.1 + 0.2, "order": [1, 2], "nested": {"a": None}}
    path = save(tmp_path, 12, tensors, state)
    assert path.name == "step-00000012"
    files = sorted(p.name for p in path.glob("*.safetensors"))
    assert len(files) == {1: len(tensors), 10**9: 1}.get(part_bytes, len(files))
    assert files[0] == "rank-0-of-1.part-0.safetensors"
    found = latest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (12, state)
    into = blank(tensors)
    into["model.low"] = torch.zeros(3, 5).t()
    found.load(into)
    assert equal(into, tensors)
    part = {"model.table": torch.zeros(11, 3)}
    at(tmp_path, 12).load(part)  # fewer than there are
    assert torch.equal(part["model.table"], tensors["model.table"])


@pytest.mark.parametrize(("name", "target", "what"), [
    ("model.chair", torch.zeros(2), "no tensor model.chair"),
    ("model.table", torch.zeros(11, 4), r"model\.table as \[11, 3\] float32, and the run has \[11, 4\]"),
    ("model.table", torch.zeros(11, 3, dtype=torch.bfloat16), "float32, and the run has .* bfloat16"),
    ("optim.step", torch.zeros(1), r"optim\.step as \[\]"),
])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_filled(
        tmp_path: Path, name: str, target: torch.Tensor, what: str) -> None:
    save(tmp_path, 1, some_tensors(), {})
    found = latest(tmp_path)
    assert found is not None
    first = torch.full((2,), 7)
    with pytest.raises(StoreError, match=what):
        found.load({"count": first, name: target})
    assert first.tolist() == [7, 7]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_older_ones_go_when_the_new_one_is_complete(tmp_path: Path) -> None:
    assert latest(tmp_path / "not there") is None
    assert latest(tmp_path) is None
    for step in (1, 2, 30, 4_000):
        save(tmp_path, step, some_tensors(step), {}, keep=2)
        assert names(tmp_path) == sorted(f"step-{s:08d}" for s in (1, 2, 30, 4_000) if s <= step)[-2:]
    save(tmp_path, 5_000, some_tensors(5_000), {})
    assert names(tmp_path) == ["step-00005000"]
    (tmp_path / "step-00006000.partial").mkdir()
    (tmp_path / "step-00006000.partial" / "torn").write_text("x")
    assert latest(tmp_path, rank=1) is not None
    assert len(names(tmp_path)) == 2, "only rank 0 may tidy up"
    assert latest(tmp_path) is not None
    assert names(tmp_path) == ["step-00005000"]
    with pytest.raises(StoreError, match="no checkpoint of step 7"):
        at(tmp_path, 7)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


WEIGHTS = "rank-0-of-1.part-0.safetensors"
DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of a tensor": lambda folder: flip(folder / WEIGHTS, -5),
    "a bit of a header": lambda folder: flip(folder / WEIGHTS, 20),
    "a torn file": lambda folder: os.truncate(folder / WEIGHTS, 200),
    "a file gone": lambda folder: (folder / WEIGHTS).unlink(),
    "a bit of the state": lambda folder: flip(folder / "state.json", 4),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "a number in the manifest": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"offset": 0', '"offset": 1', 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    """The next older one is used; saving the damaged step anew replaces it."""
    for step in (1, 2):
        save(tmp_path, step, some_tensors(step), {"step": step}, keep=2)
    DAMAGE[damage](tmp_path / "step-00000002")
    notes: list[str] = []
    found = latest(tmp_path, note=notes.append)
    assert found is not None
    assert found.state == {"step": 1}
    assert len(notes) == 1
    assert "step-00000002 is damaged" in notes[0]
    into = blank(some_tensors(1))
    found.load(into)
    assert equal(into, some_tensors(1))
    save(tmp_path, 2, some_tensors(2), {"step": "2 anew"})
    found = latest(tmp_path, note=notes.append)
    assert found is not None
    assert found.state == {"step": "2 anew"}
    assert len(notes) == 1
    assert names(tmp_path) == ["step-00000002"]


def test_with_nothing_but_damaged_ones_there_is_none(tmp_path: Path) -> None:
    save(tmp_path, 3, some_tensors(), {})
    flip(tmp_path / "step-00000003" / WEIGHTS, -1)
    notes: list[str] = []
    assert latest(tmp_path, note=notes.append) is None
    assert len(notes) == 1
    save(tmp_path, 2, some_tensors(), {})  # from an earlier start: what lay ahead is of another course
    assert names(tmp_path) == ["step-00000002"]


def test_between_two_renames_the_replaced_one_still_counts(tmp_path: Path) -> None:
    """A step saved again: the kill may come when only the replaced folder has a name."""
    path = save(tmp_path, 3, some_tensors(), {})
    path.rename(path.with_name(path.name + ".old"))
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 3
    save(tmp_path, 3, some_tensors(), {"again": True})
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"again": True}
    assert names(tmp_path) == [path.name]


def test_a_write_that_fails_leaves_the_last_one_usable(tmp_path: Path) -> None:
    """A file may not grow past 64 KiB here, as on a full disk."""
    save(tmp_path, 1, some_tensors(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot write a checkpoint"):
            save(tmp_path, 2, {"large": torch.zeros(2**20)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = latest(tmp_path)
    assert found is not None
    assert found.step == 1


SAVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from upft.checkpoint import latest, save
folder = Path(sys.argv[1])
torch.set_num_threads(1)
def forever():
    found = latest(folder)
    step = found.step if found is not None else 0
    while True:
        step += 1
        save(folder, step, {f"t{i}": torch.full((3, 20_000), float(step)) for i in range(8)}, {"step": step, "pad": "x" * step})
draw = random.Random(0)
for _ in sys.stdin:  # a line = one more saver to be killed
    child = os.fork()
    if child == 0:
        try:
            forever()
        finally:
            os._exit(1)
    time.sleep(draw.uniform(0.03, 0.25))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_usable_one(tmp_path: Path) -> None:
    """Fifteen savers are killed at random, each going on where the last one ended. Most die in the middle of a save."""
    saver = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
    assert saver.stdin is not None
    assert saver.stdout is not None
    notes: list[str] = []
    last = torn = 0
    try:
        for _ in range(15):
            saver.stdin.write("\n")
            saver.stdin.flush()
            assert saver.stdout.readline() == "-9\n", "it was to be killed while it saves"
            torn += any(tmp_path.glob("*.partial"))
            found = latest(tmp_path, rank=1, note=notes.append)  # 1: what is left over is the next saver's to remove
            if found is None:
                assert last == 0
                continue
            assert last <= found.step
            last = found.step
            into = {f"t{i}": torch.zeros(3, 20_000) for i in range(8)}
            found.load(into)
            assert all(bool((t == last).all()) for t in into.values())
            assert found.state == {"step": last, "pad": "x" * last}
    finally:
        saver.stdin.close()
        saver.wait(timeout=30)
    assert notes == []
    assert last >= 15, "hardly anything was saved"
    assert torn >= 3, "hardly a kill came in the middle"


class Net(torch.nn.Module):
    """Rows that no number of ranks divides, one matrix with a single row, a tied name, a buffer, and a frozen layer."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 3), torch.nn.Linear(3, 7, bias=False)
        self.last = torch.nn.Linear(7, 1)
        self.register_buffer("seen", torch.zeros(2))
        self.still = torch.nn.Linear(7, 7) if frozen else torch.nn.Identity()
        self.still.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.last(self.still(self.second(self.first(x).tanh()).tanh()))


KINDS = {"fp32": Precision.fp32, "mixed": Precision.bf16_mixed, "bf16": Precision.bf16, "stochastic": Precision.bf16_stochastic}


def make(kind: str, seed: int = 0, frozen: bool = False) -> Net:
    torch.manual_seed(seed)
    return Net(frozen).to(torch.bfloat16 if kind in ("bf16", "stochastic") else torch.float32)


def adamw(model: Net, kind: str) -> torch.optim.Optimizer:
    return build(model.named_parameters(), KINDS[kind], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, seed=4)


def train(model: Net, optimizer: torch.optim.Optimizer, steps: range, rank: int = 0) -> None:
    for step in steps:
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * step + rank))
        model(x.to(next(model.parameters()).dtype)).float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def everything(model: Net, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {**flatten_model(model), **flatten_optimizer(model, optimizer)}


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain copies, gathered from all ranks."""
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_bitwise(tmp_path: Path, kind: str) -> None:
    """Three steps, a checkpoint, three more; against a fresh model and optimiser, other weights till then."""
    model = make(kind, frozen=True)
    optimizer = adamw(model, kind)
    train(model, optimizer, range(3))
    tensors = everything(model, optimizer)
    assert {"model.seen", "model.second.weight", "optim.second.weight.exp_avg_sq", "optim.last.bias.step"} < set(tensors)
    assert not any("still" in name for name in tensors), "what is frozen does not change"
    save(tmp_path, 3, tensors, {})
    at_three = copy.deepcopy(whole(tensors))
    train(model, optimizer, range(3, 6))
    resumed = make(kind, seed=1, frozen=True)
    resumed.still.load_state_dict(model.still.state_dict())
    again = adamw(resumed, kind)
    found = latest(tmp_path)
    assert found is not None
    into = everything(resumed, again)
    assert not equal(into, at_three)
    found.load(into)
    assert equal(into, at_three)
    train(resumed, again, range(3, 6))
    assert equal(everything(resumed, again), everything(model, optimizer))
    assert not equal(everything(resumed, again), at_three)


def test_state_made_before_the_first_step_changes_nothing() -> None:
    for kind in KINDS:
        ends = []
        for early in (False, True):
            model = make(kind)
            optimizer = adamw(model, kind)
            if early:
                assert all(not t.any() for t in flatten_optimizer(model, optimizer).values())
            train(model, optimizer, range(2))
            ends.append(whole(everything(model, optimizer)))
        assert equal(*ends), kind


def test_random_states_come_back(tmp_path: Path) -> None:
    """Of torch, Python and numpy, half-used pairs of normal numbers included; saved as a rank's own."""
    def draws() -> tuple:
        return torch.randn(3).tolist(), random.gauss(), random.random(), np.random.randn(3).tolist(), np.random.rand()

    before = random_state()
    try:
        for odd in (False, True):
            if odd:
                random.gauss()
                np.random.randn()
            save(tmp_path, 1, {}, {}, own=random_state())
            wanted = draws()
            assert draws() != wanted
            found = latest(tmp_path)
            assert found is not None
            set_random_state(found.own(0))
            assert draws() == wanted
            assert found.own(1) == {}
    finally:
        set_random_state(before)


# --- several ranks: each job runs in WORLD processes of its own, and its assertions count


def fsdp(kind: str, world: int, seed: int = 0) -> Net:
    mixed = kind == "mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16 if mixed else None, torch.float32 if mixed else None)
    model, mesh = make(kind, seed), init_device_mesh("cpu", (world,))
    for part in (model.first, model.second, model.last, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return model


RESHARDED = ("mixed", "stochastic")


def job_train_save_resume(rank: int, world: int, folder: Path) -> None:
    """Sharded: train, save, go on; a fresh one resumed on as many ranks goes the same way, bit for bit."""
    for kind in KINDS:
        model = fsdp(kind, world)
        optimizer = adamw(model, kind)
        train(model, optimizer, range(2), rank)
        tensors = everything(model, optimizer)
        assert isinstance(tensors["optim.first.weight.exp_avg"], DTensor)
        save(folder / kind, 2, tensors, {"kind": kind}, rank, world, dist.barrier, own={"who": torch.tensor([rank])})
        full = whole(tensors)
        save(folder / f"{kind}-whole", 2, full, {}, rank, world, dist.barrier)
        train(model, optimizer, range(2, 4), rank)
        resumed = fsdp(kind, world, seed=1)
        again = adamw(resumed, kind)
        found = at(folder / kind, 2)
        assert found.own(rank)["who"].tolist() == [rank]
        found.load(everything(resumed, again))
        assert equal(whole(everything(resumed, again)), full), kind
        train(resumed, again, range(2, 4), rank)
        assert equal(whole(everything(resumed, again)), whole(everything(model, optimizer))), kind
        local = torch.cat([p.to_local().flatten() for p in model.parameters()])
        assert 0 < local.numel() < sum(p.numel() for p in model.parameters())


def job_shards_draw_their_own_bits(rank: int, world: int, folder: Path) -> None:
    """Equal rows on unlike ranks are rounded unlike; copies of one tensor stay copies."""
    mesh = init_device_mesh("cpu", (world,))
    for placement, alike in ((Shard(0), False), (Replicate(), True)):
        p = torch.nn.Parameter(distribute_tensor(torch.full((world, 4096), 0.3, dtype=torch.bfloat16), mesh, [placement]))
        p.grad = torch.ones_like(p)
        StochasticAdamW([p], lr=1e-3, seed=0).step()
        rows = [torch.empty(4096, dtype=torch.bfloat16) for _ in range(world)]
        dist.all_gather(rows, p.detach().to_local()[0])
        assert len(rows[0].unique()) == 2, "some were to go up and some down"
        assert torch.equal(rows[0], rows[1]) == alike, placement


def job_reshard(rank: int, world: int, folder: Path) -> None:
    """What others wrote (sharded on 2 ranks, or whole) is read here in shards, and written again from them."""
    for kind in RESHARDED:
        for source in (kind, f"{kind}-whole"):
            model = fsdp(kind, world, seed=1)
            optimizer = adamw(model, kind)
            at(folder / source, 2).load(everything(model, optimizer))
            wanted = {name: torch.zeros_like(t) for name, t in whole(everything(model, optimizer)).items()}
            at(folder / f"{kind}-whole", 2).load(wanted)
            assert equal(whole(everything(model, optimizer)), wanted), (kind, source)
            train(model, optimizer, range(2, 3), rank)
            save(folder / f"{source}-by-{world}", 3, everything(model, optimizer), {}, rank, world, dist.barrier)
            save(folder / f"{source}-by-{world}-whole", 3, whole(everything(model, optimizer)), {}, rank, world, dist.barrier)
    if rank == 2:
        assert model.last.weight.to_local().numel() == 0, "this rank was to have rows of no kind in a matrix"


def spawned(rank: int, world: int, folder: Path, job: Callable[[int, int, Path], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{job.__name__}", rank=rank, world_size=world)
    try:
        job(rank, world, folder)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the others wait for this rank: gloo sees it go
    dist.destroy_process_group()
    os._exit(0)  # as `ranks` ends one: gloo's threads and the finalisers do not always get along


def on_ranks(world: int, folder: Path, job: Callable[[int, int, Path], None]) -> None:
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=spawned, args=(rank, world, folder, job)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=150)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
    assert codes == [0] * world


@contextmanager
def read_plain(folder: Path, kind: str) -> Iterator[dict[str, torch.Tensor]]:
    model = make(kind, seed=1)
    tensors = everything(model, adamw(model, kind))
    found = latest(folder)
    assert found is not None
    found.load(tensors)
    yield tensors


@pytest.mark.slow
def test_shards_draw_their_own_bits_and_copies_the_same(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, job_shards_draw_their_own_bits)


@pytest.mark.slow
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path: Path) -> None:
    """2 ranks write; they, 3 ranks and one plain process read; 3 ranks write and the plain process reads."""
    on_ranks(2, tmp_path, job_train_save_resume)
    on_ranks(3, tmp_path, job_reshard)
    for kind in RESHARDED:
        for sharded in (kind, f"{kind}-by-3", f"{kind}-whole-by-3"):
            ranks = {p.name.split(".")[0] for p in (tmp_path / sharded).rglob("*.safetensors")}
            assert len(ranks) == (3 if sharded.endswith("by-3") else 2), "each rank was to write its rows"
            plain = sharded + "-whole"
            assert {p.name.split(".")[0][:6] for p in (tmp_path / plain).rglob("*.safetensors")} == {"rank-0"}
            with read_plain(tmp_path / sharded, kind) as a, read_plain(tmp_path / plain, kind) as b:
                assert equal(a, b), sharded
                assert a["optim.first.weight.step"] == (3 if sharded.endswith("by-3") else 2)
        body = json.loads((tmp_path / kind / "step-00000002" / "manifest.json").read_text())["body"]
        assert [piece["rows"] for piece in body["tensors"]["model.first.weight"]["pieces"]] == [2, 1]
        assert [piece["rows"] for piece in body["tensors"]["model.last.weight"]["pieces"]] == [1]
        assert not list(tmp_path.rglob("*.partial"))
