"""Several processes that train one model: real ones, over gloo on a CPU, against one process and against a plain loop."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch
from rank_work import defective
from test_resume import counts, rows_artifact, timeless, told

from upft import adapters, checkpoint, models, notice, packing, ranks
from upft.choices import Precision, Reduction, Strategy
from upft.console import Console
from upft.errors import ConfigError, Stopped, TrainError
from upft.fit import Fitted, fit
from upft.hashing import Hasher
from upft.machine import ComputeConfig, TrackerConfig
from upft.origins import model_ref
from upft.prefix import UNSUPERVISED, Row
from upft.ranks import World
from upft.sampler import EnginePool
from upft.specs import LoraSpec, ModelSpec, TrainSpec
from upft.stages import Host, train
from upft.store import RESUME
from upft.training import TrainConfig

LORA = LoraSpec(rank=4, alpha=8.0, dropout=0.0, targets=None, merge=False)
LIMIT = 60
"""Small, so that one rank gets more micro-batches than the other."""
CUT_AT = 3
"""The step whose checkpoint others go on from."""
STRATEGIES = {"ddp": Strategy.ddp, "fsdp": Strategy.fsdp}


@dataclass(frozen=True)
class Case:
    """One training of `compare`. keep: save a copy of the checkpoint of step CUT_AT there; resume: go on from one."""

    name: str
    strategy: Strategy
    settings: TrainConfig
    lora: bool = False
    keep: Path | None = None
    resume: Path | None = None


@dataclass
class Result:
    """Of one training."""

    weights: dict[str, torch.Tensor]
    records: list[dict]
    fitted: Fitted


def rows_of(count: int) -> list[Row]:
    """Unlike lengths; all begin with one system prompt, and some share a longer beginning."""
    draw = random.Random(0)
    system = [draw.randrange(1, 320) for _ in range(9)]
    rows: list[Row] = []
    for i in range(count):
        question = [draw.randrange(1, 320) for _ in range(draw.randint(3, 12))]
        prompt = rows[-1].input_ids[:14] if i % 4 == 3 else system + question
        completion = [draw.randrange(1, 320) for _ in range(draw.choice((1, 2, 5, 30)))]
        rows.append(Row(f"q{i}", "prefix", prompt + completion, [UNSUPERVISED] * len(prompt) + completion))
    return rows


ROWS = rows_of(13)  # 6 a step: the third step has one row, and a rank without any


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}


def fresh(folder: Path, lora: bool) -> torch.nn.Module:
    model = models.load_model(folder, torch.float32)
    if lora:
        adapters.attach(model, LORA, 0)
    return model


def one(world: World, case: Case, model_folder: Path, out: Path) -> Result | None:
    """One training; its result on the first rank."""
    model, records = fresh(model_folder, case.lora), []
    folder = out / f"{case.name}-checkpoints"

    def report(record: dict) -> None:
        records.append(dict(record))
        if case.keep is not None and record["step"] == CUT_AT + 1:  # the newest is what a kill here would leave
            shutil.copytree(folder, case.keep)

    compute = ComputeConfig(devices=world.ranks, strategy=case.strategy, micro_batch_tokens=LIMIT, threads=1,
                            checkpoint_every_s=None if case.keep is None else 0)
    fitted = fit(model, ROWS, case.settings, 3, compute, out, report, world=world, checkpoints=folder,
                 resume=None if case.resume is None else checkpoint.at(case.resume, CUT_AT))
    whole = ranks.gathered(model, lambda: fresh(model_folder, case.lora), world)
    assert (whole is not None) == world.first
    return None if whole is None else Result(trained(whole), records, fitted)


def several(world: World, cases: list[Case], model_folder: Path, out: Path) -> None:
    """Every case in turn, in the same processes."""
    for case in cases:
        if (result := one(world, case, model_folder, out)) is not None:
            torch.save(result, out / f"{case.name}.pt")


def plain_training(plain_loss: Callable, model: torch.nn.Module, s: TrainConfig) -> list[float]:
    """The same training with nothing packed, shared, dealt out or fused. Returns the losses."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": [p for p in chosen if p.ndim >= 2], "weight_decay": s.weight_decay},
                                   {"params": [p for p in chosen if p.ndim < 2], "weight_decay": 0}],
                                  lr=s.lr, betas=(s.beta1, s.beta2), eps=s.eps, fused=False)
    total = math.ceil(len(ROWS) / s.batch_size) * s.epochs
    rising, done, losses = math.ceil(s.warmup_ratio * total), 0, []
    for epoch in range(s.epochs):
        order = packing.epoch_order(len(ROWS), epoch, 3)
        for start in range(0, len(ROWS), s.batch_size):
            loss = plain_loss(model, [ROWS[i] for i in order[start:start + s.batch_size]], s.reduction)
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in chosen))
            if s.grad_clip is not None and norm > s.grad_clip:
                for p in chosen:
                    p.grad *= s.grad_clip / norm
            for group in optimizer.param_groups:
                group["lr"] = s.lr * (min(1, (done + 1) / rising) if rising else 1)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            done += 1
    return losses


def close(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    """Each tensor within 1e-4 of how far it moved."""
    assert list(got) == list(wanted)
    for name in wanted:
        moved = (wanted[name] - before[name]).norm()
        assert moved > 0, name
        assert (got[name] - wanted[name]).norm() < 1e-4 * moved, name


def astray(result: Result, exact: Result, before: dict[str, torch.Tensor]) -> float:
    """How far all weights ended from those of an exact training, as a share of how far those moved."""
    apart = math.fsum(float((result.weights[name] - exact.weights[name]).square().sum()) for name in before)
    moved = math.fsum(float((exact.weights[name] - before[name]).square().sum()) for name in before)
    return math.sqrt(apart / moved)


@pytest.fixture
def published(tiny: Callable, tmp_path: Path) -> Path:
    """The tiny model with fp32 weights in a folder, tokenizer included."""
    from upft.toy import tokenizer

    folder = tmp_path / "published"
    tiny(tie_word_embeddings=True).save_pretrained(folder)
    tokenizer.build(["What is 2 + 3? It is 5."], vocab_size=320).save_pretrained(folder)
    return folder


@pytest.fixture
def science(settings: Callable) -> Callable[..., TrainConfig]:
    """AdamW's epsilon is large here, as its division makes rounding of a gradient near 0 visible otherwise."""
    return lambda **changes: settings(epochs=2, warmup_ratio=0.5, grad_clip=0.5, weight_decay=0.1, eps=1e-3, lr=1e-3, **changes)


@pytest.mark.slow
def test_two_ranks_train_what_one_does(published: Path, science: Callable, plain_loss: Callable, tmp_path: Path) -> None:
    """DDP and FSDP, sums by sequence and by token, all weights and adapters; and from each other's checkpoints."""
    single = {"full": Case("full", Strategy.single, science(), keep=tmp_path / "kept-1"),
              "token": Case("token", Strategy.single, science(reduction=Reduction.token)),
              "lora": Case("lora", Strategy.single, science(), lora=True),
              "mixed": Case("mixed", Strategy.single, science(precision=Precision.bf16_mixed))}
    alone: dict[str, Result] = {}
    for kind, case in single.items():
        result = one(World(), case, published, tmp_path)
        assert result is not None
        alone[kind] = result
    cases = [replace(case, name=f"{kind}-{name}", strategy=strategy,
                     keep=tmp_path / f"kept-{name}" if kind == "full" else None)
             for name, strategy in STRATEGIES.items() for kind, case in single.items()]
    cases += [Case(f"resumed-{name}", strategy, science(), resume=tmp_path / "kept-1") for name, strategy in STRATEGIES.items()]
    cases += [Case("fsdp-after-ddp", Strategy.fsdp, science(), resume=tmp_path / "kept-ddp")]
    ranks.launch(several, (cases, published, tmp_path), 2)
    results: dict[str, Result] = {case.name: torch.load(tmp_path / f"{case.name}.pt", weights_only=False) for case in cases}

    # the layout of the test itself: unequal shares, and a step with a row for one rank only
    lengths = torch.tensor([len(r.input_ids) for r in ROWS]).numpy()
    plans = [list(packing.plan_steps(lengths, 6, LIMIT, 2, 3, rank=rank, ranks=2)) for rank in (0, 1)]
    passes = [[len(step.micro_batches) for step in plan] for plan in plans]
    assert any(a != b for a, b in zip(*passes, strict=True))
    assert 0 in passes[0] + passes[1]
    for kind in ("full", "token", "lora"):
        book = fresh(published, kind == "lora")
        before = trained(book)
        losses = plain_training(plain_loss, book, single[kind].settings)
        truth = alone[kind]
        close(truth.weights, trained(book), before)
        assert truth.fitted.shared_tokens > 0, "prompts were to be shared"
        for name in STRATEGIES:
            result = results[f"{kind}-{name}"]
            close(result.weights, trained(book), before)
            assert [r["loss"] for r in result.records] == pytest.approx(losses, rel=1e-5)
            for key in ("loss", "grad_norm", "lr"):
                assert [r[key] for r in result.records] == pytest.approx([r[key] for r in truth.records], rel=1e-4), key
            for key in ("step", "rows", "tokens", "supervised_tokens", "padding_tokens"):
                assert [r[key] for r in result.records] == [r[key] for r in truth.records], key
            for key in ("rows", "steps", "supervised_tokens", "forward_tokens", "padding_tokens", "layout"):
                assert getattr(result.fitted, key) == getattr(truth.fitted, key), key
    # bf16 arithmetic: not farther from fp32's course than rounding takes one process, with FSDP's narrower sums at most twice
    before = trained(fresh(published, False))
    rounding = astray(alone["mixed"], alone["full"], before)
    assert 0 < rounding < 0.1
    for name in STRATEGIES:
        assert 0 < astray(results[f"mixed-{name}"], alone["full"], before) < 2 * rounding, name
    # checkpoints: each way of training goes on from the other's
    before, wanted = trained(fresh(published, False)), alone["full"]
    for name in STRATEGIES:
        case = Case(f"single-after-{name}", Strategy.single, science(), resume=tmp_path / f"kept-{name}")
        result = one(World(), case, published, tmp_path)
        assert result is not None
        results[case.name] = result
    written = {p.name.split(".")[0] for p in (tmp_path / "kept-fsdp").rglob("*.safetensors")}
    assert written == {"rank-0-of-2", "rank-1-of-2"}, "each rank was to write what it holds"
    for name in ("resumed-ddp", "resumed-fsdp", "fsdp-after-ddp", "single-after-ddp", "single-after-fsdp"):
        close(results[name].weights, wanted.weights, before)
        assert [r["step"] for r in results[name].records] == list(range(CUT_AT + 1, 7)), name
        assert results[name].fitted.forward_tokens == wanted.fitted.forward_tokens
        assert results[name].fitted.first_loss == pytest.approx(wanted.fitted.first_loss, rel=1e-5)


# --- the stage

@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_stage_starts_its_ranks_and_leaves_one_artifact(published: Path, tmp_path: Path, lora: bool,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights with FSDP, adapters with DDP. Told to stop the ranks do so together, and go on from what they wrote."""
    rows = rows_artifact(tmp_path / "rows", published, ROWS)
    spec = TrainSpec(ModelSpec(model_ref(published, Hasher()), False), 2, 1e-3, 0.9, 0.95, 1e-3, 0.1, 0.5, 6, 0.5,
                     Reduction.sequence, Precision.fp32, replace(LORA, merge=True) if lora else None, 0)

    def run(name: str, compute: ComputeConfig) -> Path:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        with EnginePool(compute) as engines:
            train.run(spec, {"rows": rows}, out, Host(compute, TrackerConfig(), Console(quiet=True), engines))
        return out

    alone = run("alone", ComputeConfig(micro_batch_tokens=LIMIT, checkpoint_every_s=0))
    strategy = Strategy.auto if lora else Strategy.fsdp
    both_ranks = ComputeConfig(devices=2, strategy=strategy, micro_batch_tokens=LIMIT, checkpoint_every_s=3600)
    word = tmp_path / "stop"
    monkeypatch.setenv(notice.VARIABLE, str(word))
    word.touch()
    with pytest.raises(Stopped, match=f"after step 1 of {told(alone)['steps']}"):
        run("several", both_ranks)
    word.unlink()
    several = run("several", both_ranks)
    assert {p.relative_to(several) for p in several.rglob("*") if RESUME not in p.parts} == {
        p.relative_to(alone) for p in alone.rglob("*") if RESUME not in p.parts}
    before = models.load_model(published, torch.float32)
    one, two = (models.load_model(out / "model", torch.float32) for out in (alone, several))
    for (name, p), (_, q), (_, start) in zip(one.named_parameters(), two.named_parameters(), before.named_parameters(),
                                             strict=True):
        if lora and torch.equal(p, start):
            assert torch.equal(q, start), name
            continue
        # merging rounds to the weight's own precision, which shows where the adapters moved it little
        rounding = 2 ** -22 * start.norm() if lora else 0.0
        assert (p - q).norm() < 1e-4 * (p - start).norm() + rounding, name
    if lora:
        assert json.loads((several / "adapter" / "adapter_config.json").read_text())["r"] == LORA.rank
    assert counts(several) | {"shared_tokens": 0, "flops": 0} == counts(alone) | {"shared_tokens": 0, "flops": 0}
    assert counts(several)["shared_tokens"] <= counts(alone)["shared_tokens"], "a prompt is computed once on each rank"
    both = [told(alone), told(several)]
    assert (both[0].pop("ranks"), both[1].pop("ranks")) == (1, 2)
    for key in ("first_loss", "last_loss"):
        assert both[1].pop(key) == pytest.approx(both[0].pop(key), rel=1e-5)
    for each in both:
        each.pop("peak_device_bytes", None)
    assert both[0] == both[1]
    read = [timeless([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
            for out in (alone, several)]
    for a, b in zip(*read, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert (b["step"], b["tokens"], b["supervised_tokens"]) == (a["step"], a["tokens"], a["supervised_tokens"])


# --- when a rank breaks down

def spoilt(world: World, model_folder: Path, out: Path) -> None:
    """One row has a token whose embedding is no number; only one rank holds it."""
    model, rows = fresh(model_folder, False), list(ROWS)
    rows = [Row(r.question_id, r.kind, [t % 319 for t in r.input_ids],
                [x if x < 0 else x % 319 for x in r.labels]) for r in rows]
    rows[7] = Row("poisoned", "prefix", [1, 2, 319, 4, 5], [-100, -100, -100, 4, 5])
    with torch.no_grad():
        model.model.embed_tokens.weight[319] = math.nan
        model.lm_head.weight = torch.nn.Parameter(torch.randn(320, 64))  # untied: else every logit of 319 is none
    seen: list[int] = []
    settings = TrainConfig(epochs=1, lr=1e-3, max_length=256, batch_size=6, grad_clip=None, warmup_ratio=0.0,
                           precision=Precision.fp32)
    compute = ComputeConfig(devices=2, micro_batch_tokens=1, threads=1)
    try:
        fit(model, rows, settings, 0, compute, out, lambda record: seen.append(int(record["step"])), world=world)
    finally:
        (out / f"rank-{world.rank}.json").write_text(json.dumps(
            {"steps": seen, "error": repr(sys.exc_info()[1])}))


def killed(world: World, model_folder: Path, out: Path) -> None:
    """The second rank is killed in the third step, as by a machine that is short of memory."""
    model, forward = fresh(model_folder, False), itertools.count()

    def kill(*_: object) -> None:
        if world.rank == 1 and torch.is_grad_enabled() and next(forward) == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    model.model.layers[0].register_forward_hook(kill)
    settings = TrainConfig(epochs=50, lr=1e-3, max_length=256, batch_size=6, grad_clip=None, warmup_ratio=0.0,
                           precision=Precision.fp32)
    (out / f"pid-{world.rank}").write_text(str(os.getpid()))
    fit(model, ROWS, settings, 0, ComputeConfig(devices=2, micro_batch_tokens=LIMIT, threads=1), out, world=world)


def ranks_left(parent: psutil.Process) -> list[str]:
    """Command lines of spawned ranks below a process (Python's own resource tracker is none)."""
    out = []
    for child in parent.children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        if "spawn_main" in line:
            out.append(line)
    return out


@pytest.mark.slow
def test_a_number_that_is_not_finite_on_one_rank_stops_all(published: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss of step .* is not a finite number; questions poisoned") as caught:
        ranks.launch(spoilt, (published, tmp_path), 2)
    assert "train.lr" in caught.value.remedy
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    step = packing.epoch_order(13, 0, 0).tolist().index(7) // 6 + 1
    assert (written["step"], written["question_ids"]) == (step, ["poisoned"])
    assert sum(not math.isfinite(float(loss)) for loss in written["losses"]) == 1
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["steps"] == list(range(1, step))
    assert "poisoned" in first["error"]
    assert "poisoned" in second["error"]
    assert second["steps"] == [], "only the first rank reports"
    assert ranks_left(psutil.Process()) == []


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_training(published: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"rank 1 of 2 died \(SIGKILL\)") as caught:
        ranks.launch(killed, (published, tmp_path), 2)
    assert "goes on from the last checkpoint" in caught.value.remedy
    assert ranks_left(psutil.Process()) == []
    assert not any(psutil.pid_exists(int((tmp_path / f"pid-{rank}").read_text())) for rank in (0, 1))


@pytest.mark.slow
def test_a_defect_on_a_rank_keeps_its_traceback() -> None:
    """It is not the user's to mend, so it is not told as one."""
    with pytest.raises(Exception, match="ZeroDivisionError: a defect") as caught:
        ranks.launch(defective, (), 2)  # the other rank, which sleeps for an hour, is not waited for
    assert not isinstance(caught.value, TrainError)
    assert "in defective" in str(caught.value)
    assert ranks_left(psutil.Process()) == []


LAUNCHER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rank_work
from upft import ranks
if __name__ == "__main__":
    ranks.launch(rank_work.lasting, (Path(sys.argv[2]), Path(sys.argv[3])), 2)
"""


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for a job in the background


@pytest.mark.slow
@pytest.mark.parametrize(("how", "prepare"), [
    pytest.param(signal.SIGKILL, hear_interrupts, id="killed"),
    pytest.param(signal.SIGKILL, ignore_interrupts, id="killed in the background"),
    pytest.param(signal.SIGINT, hear_interrupts, id="interrupted")])
def test_no_rank_outlives_the_process_that_started_it(published: Path, tmp_path: Path, how: signal.Signals,
                                                      prepare: Callable[[], None]) -> None:
    """Else it would write into the folder of the training that takes over."""
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    launcher = subprocess.Popen([sys.executable, str(script), str(Path(__file__).parent), str(published), str(tmp_path)],
                                env=env, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "step").exists():
            assert launcher.poll() is None, launcher.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
        assert all(psutil.pid_exists(pid) for pid in pids)
        launcher.send_signal(how)
        launcher.wait(timeout=30)
        assert launcher.returncode != 0
        deadline = time.monotonic() + 15
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            assert time.monotonic() < deadline, "a rank goes on"
            time.sleep(0.1)
    finally:
        launcher.kill()
        launcher.wait()


# --- who is who

def test_several_nodes_need_a_process_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"compute\.nodes=2: no process has been started on the other nodes") as caught:
        ranks.here(ComputeConfig(nodes=2, devices=4))
    assert "srun --ntasks=8 --nodes=2" in caught.value.remedy
    assert ranks.here(ComputeConfig(devices=2)) is None
    assert ranks.here(ComputeConfig()) == World(0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "5")
    with pytest.raises(ConfigError, match="no process has been started on the other nodes"):
        ranks.here(ComputeConfig(nodes=2, devices=4))  # a batch script: it asked for tasks, srun would start them
    assert ranks.here(ComputeConfig(devices=8)) is None
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert ranks.here(ComputeConfig(nodes=2, devices=4)) == World(5, 8)
    assert ranks.here(ComputeConfig(devices=2)) is None, "an allocation of another shape is not ours to read"
    assert ranks.here(ComputeConfig()) == World(0, 1)


def test_auto_is_ddp_for_several_devices_only() -> None:
    assert ranks.chosen(ComputeConfig()) is Strategy.single
    assert ranks.chosen(ComputeConfig(devices=2)) is Strategy.ddp
    assert ranks.chosen(ComputeConfig(nodes=2)) is Strategy.ddp
    assert ranks.chosen(ComputeConfig(strategy=Strategy.fsdp)) is Strategy.fsdp
