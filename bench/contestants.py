"""The contestants: this project's trainer, TRL's SFTTrainer, and a plain PyTorch loop, each on one task.

Run as a worker by measure.py: `contestants.py TASK OUTCOME`. Each trains the same rows in the same optimiser
steps with the same loss (mean over the supervised tokens of a step), AdamW and constant rate, and notes the
loss and the clock at the end of each step. What is counted and compared is train.py's business.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import rows as bench_rows

from upft import fit, models, prefix
from upft.choices import Accelerator, Layout, Precision, Reduction
from upft.machine import ComputeConfig
from upft.prefix import UNSUPERVISED, Row
from upft.training import TrainConfig

BETAS = (0.9, 0.95)
CLIP = 1.0


@dataclass(frozen=True)
class Settings:
    """What a contestant may choose for itself: speed and memory, never the result."""

    micro_batch_tokens: int | None = None
    """upft: tokens of a forward pass; null = the trainer's own choice for the device."""
    layout: str = "auto"
    """upft: auto, packed or padded. trl: padded or padding_free."""
    share_prompts: bool = True
    """upft: compute what all rows of a micro-batch begin with once."""
    compile: bool = False
    """upft: torch.compile."""
    micro_batch_rows: int = 8
    """trl and plain: rows of a forward pass."""
    grouped: bool = True
    """trl and plain: the rows of a step sorted by length, so that a micro-batch holds rows of like length."""
    autocast: bool = False
    """trl: autocast over weights that are bf16 already (SFTConfig.bf16, its default)."""
    gradient_checkpointing: bool = False
    """upft and trl: recompute activations in the backward pass."""


@dataclass(frozen=True)
class Task:
    """One contestant's run."""

    contestant: str
    model: str
    rows: str
    precision: str
    lr: float
    batch_size: int
    seed: int
    device: str
    threads: int | None
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Task:
        """From JSON."""
        return cls(**{**values, "settings": Settings(**values["settings"])})


@dataclass
class Outcome:
    """Of each step its loss and the clock at its end; padding is the tokens of forward passes that no row has."""

    began: float = 0.0
    losses: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    padding: int = 0
    resident_bytes_before: int = 0
    high_water_bytes: int = 0
    device_peak_bytes: int = 0
    trainable: int = 0

    def step(self, loss: float) -> None:
        """A step is done."""
        self.losses.append(loss)
        self.clock.append(time.perf_counter())


def upft(task: Task, model: Any, rows: list[Row], outcome: Outcome) -> None:
    """`fit.fit` as the train stage calls it."""
    train(model, rows, task.settings, Precision(task.precision), task.lr, task.batch_size, task.seed, task.device, task.threads,
          lambda record: _reported(outcome, record))


def train(model: Any, rows: list[Row], settings: Settings, precision: Precision, lr: float, batch_size: int, seed: int,
          device: str, threads: int | None, report: Callable[[Mapping[str, float | int]], None]) -> fit.Fitted:
    """The one place where the benchmarks call this project's trainer."""
    science = TrainConfig(epochs=1, lr=lr, beta1=BETAS[0], beta2=BETAS[1], weight_decay=0.0, warmup_ratio=0.0,
                          batch_size=batch_size, grad_clip=CLIP, max_length=2**31, reduction=Reduction.token,
                          precision=precision)
    compute = ComputeConfig(
        accelerator=Accelerator.gpu if device == "cuda" else Accelerator.cpu, threads=threads,
        micro_batch_tokens=settings.micro_batch_tokens, layout=Layout(settings.layout), share_prompts=settings.share_prompts,
        compile=settings.compile, gradient_checkpointing=settings.gradient_checkpointing, checkpoint_every_s=None)
    with tempfile.TemporaryDirectory() as folder:
        return fit.fit(model, rows, science, seed, compute, Path(folder), report)


def _reported(outcome: Outcome, record: Mapping[str, float | int]) -> None:
    outcome.padding += int(record["padding_tokens"])
    outcome.step(float(record["loss"]))


def trl(task: Task, model: Any, rows: list[Row], outcome: Outcome) -> None:
    """TRL's SFTTrainer on rows that are tokenised already, with its default loss (a fused head, no full logits).

    Its sampler must not choose the rows of a step, or losses could not be compared: it is `sequential` over
    rows that lie in the order of the steps and, where `grouped`, by length within each step.
    """
    import torch
    from datasets import Dataset
    from datasets.utils import logging as dataset_logging
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    settings = task.settings
    dataset_logging.disable_progress_bar()
    tokenizer = models.load_tokenizer(Path(task.model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    ordered = [rows[i] for step in _steps(task, rows) for i in step]
    data = Dataset.from_dict({"input_ids": [row.input_ids for row in ordered],
                              "completion_mask": [[int(x != UNSUPERVISED) for x in row.labels] for row in ordered]})
    size = settings.micro_batch_rows
    if task.batch_size % size:
        raise ValueError(f"micro_batch_rows={size} does not divide the {task.batch_size} rows of a step")

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            outcome.began = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
            if "loss" in logs:  # reading it has waited for the device
                outcome.step(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=size, gradient_accumulation_steps=task.batch_size // size,
            num_train_epochs=1, learning_rate=task.lr, lr_scheduler_type="constant", warmup_steps=0, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], weight_decay=0.0, max_grad_norm=CLIP, seed=task.seed, bf16=_autocast(task),
            gradient_checkpointing=settings.gradient_checkpointing, max_length=None, packing=False,
            padding_free=settings.layout == "padding_free", completion_only_loss=True, shuffle_dataset=False,
            train_sampling_strategy="sequential", logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=task.device == "cpu", dataloader_pin_memory=task.device == "cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer,
                                 callbacks=[Watch()])
        collate = trainer.data_collator

        def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(examples)
            outcome.padding += batch["input_ids"].numel() - sum(len(e["input_ids"]) for e in examples)
            return batch

        trainer.data_collator = counting
        trainer.train()
    if task.device == "cuda":
        torch.cuda.synchronize()


def _autocast(task: Task) -> bool:
    precision = Precision(task.precision)
    return precision is Precision.bf16_mixed or (precision is not Precision.fp32 and task.settings.autocast)


def plain(task: Task, model: Any, rows: list[Row], outcome: Outcome) -> None:
    """What one writes by hand: padded micro-batches, the head on supervised positions only, AdamW."""
    import torch
    import torch.nn.functional as F

    body, head = model.get_decoder(), model.get_output_embeddings()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, betas=BETAS, weight_decay=0.0, fused=True)
    mixed = Precision(task.precision) is Precision.bf16_mixed
    model.train()
    outcome.began = time.perf_counter()
    for step in _steps(task, rows):
        supervised = sum(rows[i].supervised for i in step)
        total = 0.0
        optimizer.zero_grad()
        for start in range(0, len(step), task.settings.micro_batch_rows):
            micro = [rows[i] for i in step[start:start + task.settings.micro_batch_rows]]
            width = max(len(row.input_ids) for row in micro)
            ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in micro], device=task.device)
            labels = torch.tensor([row.labels + [UNSUPERVISED] * (width - len(row.labels)) for row in micro],
                                  device=task.device)
            outcome.padding += ids.numel() - sum(len(row.input_ids) for row in micro)
            target = labels[:, 1:]
            keep = target != UNSUPERVISED
            with torch.autocast(task.device, torch.bfloat16) if mixed else nullcontext():
                hidden = body(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][keep]  # causal: no mask needed
                logits = head(hidden)
            loss = F.cross_entropy(logits.float(), target[keep], reduction="sum") / supervised
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        outcome.step(total)


def _steps(task: Task, rows: list[Row]) -> list[list[int]]:
    """Row numbers of each step, by length within it where the contestant groups."""
    steps = [[int(i) for i in step] for step in bench_rows.steps_of(len(rows), task.batch_size, task.seed)]
    if task.settings.grouped:
        return [sorted(step, key=lambda i: -len(rows[i].input_ids)) for step in steps]
    return steps


CONTESTANTS: dict[str, Callable[[Task, Any, list[Row], Outcome], None]] = {"upft": upft, "trl": trl, "plain": plain}


def run(task: Task) -> Outcome:
    """Load the model, let the contestant train it, note memory."""
    import torch

    if task.threads is not None:
        torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    rows = list(prefix.read_rows(Path(task.rows)))
    mixed_or_more = Precision(task.precision) in (Precision.fp32, Precision.bf16_mixed)
    dtype = torch.float32 if mixed_or_more else torch.bfloat16
    model = models.load_model(Path(task.model), dtype).to(task.device)
    outcome = Outcome(trainable=sum(p.numel() for p in model.parameters()))
    outcome.resident_bytes_before = measure.resident_bytes()
    outcome.began = time.perf_counter()
    if task.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    CONTESTANTS[task.contestant](task, model, rows, outcome)
    if task.device == "cuda":
        outcome.device_peak_bytes = int(torch.cuda.max_memory_allocated())
    outcome.high_water_bytes = measure.high_water_bytes()
    steps = math.ceil(len(rows) / task.batch_size)
    if len(outcome.losses) != steps:
        raise RuntimeError(f"{task.contestant} reported {len(outcome.losses)} steps of {steps}")
    return outcome


if __name__ == "__main__":
    done = run(Task.read(json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(dataclasses.asdict(done)))
