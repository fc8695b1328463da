"""Stage `train`: optimise the base model on the rows, or on pairs of them against a reference (a verifier).

Writes model/ (a Hugging Face folder) or adapter/ (a PEFT folder), metrics.jsonl (a line a step), train.json
(what happened) and ledger.json. While it runs, resume/ holds checkpoints: a training that was interrupted
goes on from the last one. With several devices each has a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from upft import adapters, card, checkpoint, fit, ledger, models, prefix, ranks, scoring, tracking, wandb_run
from upft.choices import Style
from upft.console import Console
from upft.hashing import canonical
from upft.machine import ComputeConfig, TrackerConfig
from upft.ranks import World
from upft.specs import TrainSpec
from upft.stages import Host
from upft.store import PARTIAL, RESUME

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL, ADAPTER = "model", "adapter"


@dataclass(frozen=True)
class Job:
    """What every process of a training is told.

    rows: the artifact of the build stage; out: of this one. done: the step of the checkpoint to go on from, 0 =
    from the start. before: the training whose model is trained further, None = the base model; reference: the artifact with
    the log-probabilities of the rows, where they are pairs. shown: what a tracker calls the training.
    """

    spec: TrainSpec
    rows: Path
    out: Path
    compute: ComputeConfig
    tracker: TrackerConfig
    style: Style
    done: int
    before: Path | None = None
    reference: Path | None = None
    shown: tracking.Card | None = None


def run(spec: TrainSpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Train on `inputs["rows"]` and save the model in the number format it was published in.

    With `inputs["model"]` the training goes on from that one's model, with `inputs["reference"]` the rows are pairs.
    """
    host.engines.close()  # an engine holds the memory that training needs
    fit.pick_device(host.compute.accelerator)
    world = ranks.here(host.compute)
    held, first = host.gpus * host.compute.nodes, world is None or world.first
    with ledger.Meter(out / RESUME if first else None, held) as meter:
        if first:
            _tidy(out)
        found = checkpoint.latest(out / RESUME, 0 if world is None else world.rank, host.console.warn)
        if found is not None:
            host.console.say(f"  training goes on after step {found.step}")
        job = Job(spec, inputs["rows"], out, host.compute, host.tracker, host.console.style, 0 if found is None else found.step,
                  inputs.get("model"), inputs.get("reference"), host.shown)
        if world is not None:
            work(world, job, host.console)
        else:
            count = ranks.planned(host.compute)
            threads = host.compute.threads or max(1, (os.cpu_count() or 1) // count)
            ranks.launch(work, (replace(job, compute=replace(host.compute, threads=threads)),), count)
    if not first:
        return
    book = ledger.Ledger.read(out)
    meter.fill(book)
    told = json.loads((out / "train.json").read_text(encoding="utf-8"))
    book.peak_device_bytes = max(book.peak_device_bytes, told.pop("peak_device_bytes"))
    unseen = max(0.0, told["seconds"] - book.seconds)  # of attempts that kept checkpoints, but no time (older versions)
    book.seconds += unseen
    book.device_seconds += unseen * held
    book.write(out)
    (out / "train.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for folder in (MODEL, ADAPTER):
        if (out / folder).is_dir():
            if spec.beta is not None:
                card.write_verifier(out / folder, spec, inputs["rows"], told)
            else:
                card.write(out / folder, card.of_training(spec, inputs["rows"], out))


def _tidy(out: Path) -> None:
    """Remove what an attempt that ended early has left (half a model, the report of a breakdown), but not what counts."""
    for path in out.iterdir():
        if path.name in (RESUME, tracking.FILE):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def work(world: World, job: Job, console: Console | None = None) -> None:
    """One process of a training. The first one reports and saves."""
    import torch

    spec, out = job.spec, job.out
    console = console or Console(job.style if world.first else Style.quiet)
    source = models.resolve(spec.model.source)
    dtype = fit.weights_dtype(spec, spec.lora is not None)

    def fresh() -> PreTrainedModel:
        start = source if job.before is None or spec.lora is not None else job.before / MODEL
        model = models.load_model(start, dtype, spec.model.trust_remote_code)
        if spec.lora is not None:
            adapters.attach(model, spec.lora, spec.seed)
            if job.before is not None:
                adapters.fill(model, job.before / ADAPTER)
        return model

    tokenizer = models.load_tokenizer(source, spec.model.trust_remote_code)
    rows = prefix.read_rows(job.rows / prefix.FILE)
    model = fresh()
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    checkpoints = out / RESUME
    preference = None
    if spec.beta is not None:
        assert job.reference is not None  # the plan puts it upstream
        preference = spec.beta, scoring.read(job.reference)

    def train(tracker: tracking.Tracker | None) -> fit.Fitted:
        return fit.fit(model, rows, spec, spec.seed, job.compute, out, None if tracker is None else tracker.log, console,
                       world, checkpoints, None if job.done == 0 else checkpoint.at(checkpoints, job.done), preference)

    if world.first:
        key = out.name.removesuffix(PARTIAL)
        before = tracking.cut(out, job.done)
        shown = job.shown or tracking.Card(key, f"train {key[:8]}", "train", canonical(spec))
        with tracking.open_tracker(job.tracker, out, shown, console, wandb_run.home(),
                                   tracking.events_folder(job.tracker, out, shown.name)) as tracker:
            tracker.catch_up(before)
            fitted = train(tracker)
    else:
        fitted = train(None)
    whole = ranks.gathered(model, fresh, world)
    if whole is None:
        return
    peak = torch.cuda.max_memory_allocated() if fitted.device == "gpu" else 0
    if spec.lora is not None:
        adapters.save(whole, out / ADAPTER, source)
        if spec.lora.merge:
            adapters.merge(whole)
    if spec.lora is None or spec.lora.merge:
        models.save_model(whole, tokenizer, out / MODEL, source)
    ledger.Ledger(supervised_tokens=fitted.supervised_tokens, forward_tokens=fitted.forward_tokens,
                  shared_tokens=fitted.shared_tokens, padding_tokens=fitted.padding_tokens, flops=fitted.flops).write(out)
    (out / "train.json").write_text(json.dumps({
        "rows": fitted.rows, "steps": fitted.steps, "epochs": spec.epochs, "first_loss": fitted.first_loss,
        "last_loss": fitted.last_loss, "mean_supervised_tokens": float(rows.supervised.mean()), "lr": spec.lr,
        "parameters": parameters, "trained_parameters": trained, "layout": fitted.layout, "ranks": world.ranks,
        "seconds": fitted.seconds, "peak_device_bytes": peak}, indent=1) + "\n", encoding="utf-8")
