"""The table of the paper's comparison of methods: tokens sampled and trained, accuracy on each task, a line a cell.

`costs` counts one cell; `table` puts any cells' results.json side by side. Pure: numbers in, numbers and text out.

    python -m upft.report.methods store/report/*
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft.alone import Pilot
from upft.ledger import Ledger
from upft.report import wording as w
from upft.report.evidence import Evidence
from upft.statistics import Estimate

NO_PILOT = Pilot(0, 0, 0.0, 0)


def costs(evidence: Evidence) -> dict[str, Any]:
    """What a method takes, as the paper counts and as machines do.

    sampled: response tokens that the method needs, whatever sampling they were taken from, and what a pilot adds
    (`alone.Pilot`); trained: tokens of its rows and pairs, each once (the paper's count: its UPFT on 12,000 questions trains on
    15.8 tokens a question = 0.2M in two epochs);
    verifier: of these, those of the pairs. The others: with prompts, over all epochs, FLOPs; seconds: grading, building and
    training; device_seconds: wall-clock times GPUs of all stages after sampling. sampling_seconds, sampling_device_seconds,
    sampling_share: see `sampling_alone`.
    """
    kinds: dict[str, list[Ledger]] = {}
    for record in evidence.stages:
        kinds.setdefault(record.role.partition(":")[0], []).append(record.ledger)

    def all_of(*roles: str) -> Ledger:
        out = Ledger()
        for role in roles:
            for one in kinds.get(role, []):
                out = out.plus(one)
        return out

    rounds = [*evidence.earlier, evidence.rows]
    alone = [one["alone"] for one in rounds if "alone" in one]
    sampling, training, verifier = all_of("samples"), all_of("train"), all_of("verifier")
    pilot = evidence.pilot or NO_PILOT
    known = len(alone) == len(rounds)
    sampled = sum(int(one["sampled_tokens"]) for one in alone) if known else sampling.sampled_tokens
    prompts = sum(int(one["prompt_tokens"]) for one in alone) if known else sampling.prompt_tokens
    flops = [*(one["flops"] for one in alone), pilot.flops]
    paired = int(evidence.pairs.get("supervised_tokens", 0))
    rows = sum(int(one.get("supervised_tokens", 0)) for one in rounds)
    sampled, prompts = sampled + pilot.sampled_tokens, prompts + pilot.prompt_tokens
    return {
        "sampled": sampled, "trained": rows + paired, "verifier": paired,
        "sampled_with_prompts": sampled + prompts,
        "trained_all_epochs": training.supervised_tokens + verifier.supervised_tokens,
        "trained_with_prompts": training.forward_tokens + verifier.forward_tokens,
        "scored": all_of("reference").scored_tokens,
        "sampling_flops": None if not known or None in flops else sum(flops),
        "training_flops": training.flops + verifier.flops + all_of("reference").flops,
        "seconds": training.seconds + verifier.seconds + all_of("grades", "rows", "pairs", "reference").seconds,
        "device_seconds": all_of("diagnosis", "grades", "rows", "train", "pairs", "reference", "verifier").device_seconds,
        **sampling_alone(evidence),
    }


def sampling_alone(evidence: Evidence) -> dict[str, float | None]:
    """Seconds, and wall-clock seconds times GPUs, of the sampling that the method needs alone: those measured, times
    `sampling_share`, the tokens it needs over the tokens drawn while they were measured (at 1 nothing is estimated).

    A sampling that several methods share draws more than one of them needs. One that took samples over from others drew fewer:
    where it drew less than half of its tokens itself, all three are None. A pilot belongs to the first round.
    """
    ledgers = {record.role: record.ledger for record in evidence.stages}
    seconds = device_seconds = drawn = needed = 0.0
    rounds = [*(f":{number}" for number in range(1, len(evidence.earlier) + 1)), ""]
    for place, (mark, rows) in enumerate(zip(rounds, [*evidence.earlier, evidence.rows], strict=True)):
        sample = ledgers.get(f"samples{mark}", Ledger())
        pilot = ledgers.get("pilot", Ledger()) if place == 0 else Ledger()
        more = evidence.pilot if place == 0 and evidence.pilot is not None else NO_PILOT
        every = pilot.sampled_tokens + sample.sampled_tokens - more.shared_tokens
        measured = pilot.sampled_tokens - pilot.reused_tokens + sample.sampled_tokens - sample.reused_tokens
        if measured <= 0 or 2 * measured < every:
            return dict.fromkeys(("sampling_seconds", "sampling_device_seconds", "sampling_share"))
        alone = int(rows.get("alone", {}).get("sampled_tokens", sample.sampled_tokens)) + more.sampled_tokens
        seconds += (pilot.seconds + sample.seconds) * alone / measured
        device_seconds += (pilot.device_seconds + sample.device_seconds) * alone / measured
        drawn, needed = drawn + measured, needed + alone
    return {"sampling_seconds": seconds, "sampling_device_seconds": device_seconds, "sampling_share": needed / drawn}


@dataclass(frozen=True)
class Line:
    """One cell of the comparison. accuracy: task -> share with its interval; mean: over the tasks."""

    method: str
    model: str
    data: str
    seed: int | None
    train_seed: int | None
    costs: Mapping[str, Any]
    accuracy: Mapping[str, Estimate]

    @property
    def mean(self) -> float:
        """Mean accuracy over the tasks."""
        return sum(a.value for a in self.accuracy.values()) / len(self.accuracy)


def table(results: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines of several cells' results.json: for each model and data the base model, then the cells as they come."""
    lines: list[Line] = []
    for one in results:
        where = one["model"], one["data"]
        if not any((line.model, line.data, line.method) == (*where, "base") for line in lines):
            lines.append(Line("base", *where, None, None, {}, _accuracy(one, "base")))
        lines.append(Line(one["method"], *where, one["seed"], one.get("train_seed"), one["comparison"],
                          _accuracy(one, "trained")))
    return sorted(lines, key=lambda line: (line.model, line.data))  # stable: cells stay in their order


def _accuracy(results: Mapping[str, Any], side: str) -> dict[str, Estimate]:
    return {task: Estimate(**entry[side]["accuracy"]) for task, entry in results["tasks"].items()}


def columns(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """(header, cells) as text."""
    tasks = list(dict.fromkeys(task for line in lines for task in line.accuracy))
    header = ["model, data", "method", "seed", "sampled", "trained", "of a verifier", "sampled, with prompts",
              "trained, all epochs with prompts", "FLOPs of sampling", "FLOPs of training", "time to sample", "time to train",
              *(f"{task} %" for task in tasks)]
    if len(tasks) > 1:
        header.append("mean %")
    cells = []
    for line in lines:
        c = line.costs
        counts = [w.or_none(w.count(c[key]), c[key]) if c else "" for key in (
            "sampled", "trained", "verifier", "sampled_with_prompts", "trained_with_prompts")]
        spent = [w.NONE if not c or not c[key] else w.flops(c[key]) for key in ("sampling_flops", "training_flops")]
        cells.append([f"{line.model}, {line.data}", line.method, w.seeds(line.seed, line.train_seed), *counts,
                      *([*spent, _time_to_sample(c), w.seconds(c["seconds"])] if c else [""] * 4),
                      *(_shown(line.accuracy.get(task)) for task in tasks), *([w.points(line.mean)] if len(tasks) > 1 else [])])
    return header, cells


def _time_to_sample(costs: Mapping[str, Any]) -> str:
    """A dash where it is not known, or not told by an earlier version."""
    seconds, share = costs["sampling_seconds"], costs.get("sampling_share")
    return w.NONE if seconds is None or share is None else w.about(w.seconds(seconds), share != 1)


def _shown(accuracy: Estimate | None) -> str:
    return w.NONE if accuracy is None else f"{w.points(accuracy.value)} {w.interval(accuracy.low, accuracy.high)}"


def markdown(lines: Sequence[Line]) -> str:
    """The table as markdown."""
    header, cells = columns(lines)
    ruled = ["---"] * 3 + ["---:"] * (len(header) - 3)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ruled, *cells)) + "\n"


def main(folders: Sequence[str]) -> int:
    """Print the table of the report artifacts in `folders`."""
    files = [Path(folder) / "results.json" for folder in folders]
    missing = [str(file.parent) for file in files if not file.is_file()]
    if missing or not files:
        print(f"no report in {', '.join(missing) or 'nothing'}\n  remedy: python -m upft.report.methods store/report/*",
              file=sys.stderr)
        return 2
    print(markdown(table([json.loads(file.read_text(encoding="utf-8")) for file in files])), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
