"""Evidence -> results.json: every number the page and the terminal show.

All statistics of a report are computed here, once. Knows no text, no figure, no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from upft import statistics
from upft.answers import GAVE_UP
from upft.errors import DataError
from upft.ledger import Ledger
from upft.report import methods, wording
from upft.report.evidence import Answers, Evidence, StageRecord

MAKING = ("pilot", "samples", "diagnosis", "grades", "rows", "train", "pairs", "reference", "verifier")
"""Roles of the stages that make the trained model (of an earlier round: with its number); the others measure."""
SCHEMA = 1
"""Version of a cell's results.json; cell.schema.json describes it."""
ASKED = ("kind", "n", "temperature", "top_p", "top_k", "max_tokens", "protocol_context", "engine")
"""How a task was asked, of its scores.json."""
UNDECIDED = "other"
"""Style of an answer whose opening is none of the known ones."""


def results(evidence: Evidence) -> dict[str, Any]:
    """The tables as plain JSON. Raises DataError where base and trained model answered other questions."""
    spec = evidence.spec
    tasks = {task: _task(task, base, trained, spec.seed, evidence.asked.get(task, {}))
             for task, (base, trained) in evidence.tasks.items()}
    ledgers = {record.role: record.ledger for record in evidence.stages}
    costs = methods.costs(evidence)
    making = total([one for role, one in ledgers.items() if _makes(role)])
    return {
        "schema": SCHEMA, "title": spec.title, "model": spec.model, "data": spec.data, "method": evidence.method,
        "prefix_len": evidence.rows.get("prefix_len", spec.prefix_len),
        "prefix_len_from": evidence.rows.get("prefix_len_from"), "ratio": spec.ratio, "seed": spec.seed,
        **({"train_seed": evidence.train_seed} if evidence.train_seed != spec.seed else {}),
        "headline": [" ".join(wording.finding(task, entry, evidence.method)) for task, entry in tasks.items()],
        "tasks": tasks, "mean": _mean(evidence, tasks) if len(tasks) > 1 else None,
        "generator": {task: _task(task, base, trained, spec.seed, evidence.asked.get(task, {}))
                      for task, (base, trained) in evidence.generator.items()},
        "diagnosis": dict(evidence.diagnosis) or None,
        "training": _training(evidence),
        "tokens": _tokens(evidence, ledgers, costs),
        "choosing": _choosing(evidence),
        "comparison": costs,
        **({"analyses": {name: dict(found) for name, found in evidence.analyses.items()}} if evidence.analyses else {}),
        "stages": [_stage(record) for record in evidence.stages],
        "totals": {
            "making": dataclasses.asdict(making),
            "evaluating": dataclasses.asdict(total([one for role, one in ledgers.items() if not _makes(role)])),
            "all": dataclasses.asdict(total(list(ledgers.values()))),
        },
    }


def _makes(role: str) -> bool:
    return role.partition(":")[0] in MAKING


def total(ledgers: Sequence[Ledger]) -> Ledger:
    """Sum of several ledgers (largest of their peaks)."""
    out = Ledger()
    for one in ledgers:
        out = out.plus(one)
    return out


def _mean(evidence: Evidence, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over tasks of their accuracies, as the paper's tables have it."""
    before, after = ([pair[side].correct.mean(axis=1) for pair in evidence.tasks.values()] for side in (0, 1))
    paired = statistics.paired_macro(before, after, evidence.spec.seed)
    sides = {side: {"accuracy": dataclasses.asdict(statistics.macro(
        [statistics.Estimate(**entry[side]["accuracy"]) for entry in tasks.values()]))} for side in ("base", "trained")}
    return {**sides, "paired": dataclasses.asdict(paired), "protocol": _one([e["protocol"] for e in tasks.values()])}


def _one(protocols: Sequence[str | None]) -> str | None:
    """The protocol where all agree."""
    return protocols[0] if len(set(protocols)) == 1 else None


def _task(task: str, base: Answers, trained: Answers, seed: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    if base.ids != trained.ids:
        raise DataError(f"task {task}: base and trained model answered other questions "
                        f"({len(base.ids)} and {len(trained.ids)}, {len(set(base.ids) & set(trained.ids))} in common)",
                        "evaluate both with the same eval.tasks and eval.limit")
    paired = statistics.paired(base.correct, trained.correct, seed)
    change = trained.correct.mean(axis=1) - base.correct.mean(axis=1)
    half = (paired.high - paired.low) / 2
    return {
        "protocol": asked.get("protocol"), "asked": {name: asked.get(name) for name in ASKED},
        "questions": len(base.ids), "samples": base.samples,
        "base": _side(base), "trained": _side(trained),
        "paired": {**dataclasses.asdict(paired),
                   "smallest_detectable": statistics.smallest_detectable(half, len(base.ids))},
        "several": _several(base, trained, seed) if min(base.samples, trained.samples) > 1 else [],
        "questions_gained": int((change > 1e-9).sum()), "questions_lost": int((change < -1e-9).sum()),
        "styles": _styles(base, trained) if any(a.styled for a in base.rows + trained.rows) else None,
    }


def _several(base: Answers, trained: Answers, seed: int) -> list[dict[str, Any]]:
    """What several answers a question say beside their mean: the majority answer's accuracy (maj@k), and the share of
    questions that one answer of k solves (pass@k), both at the k that both sides have."""
    k = min(base.samples, trained.samples)
    both = (base, trained)
    majority = ([statistics.majority_at_k(a.votes, a.correct, k) for a in both],
                [statistics.majority_values(a.votes, a.correct, k) for a in both])
    solved = [statistics.pass_at_k(a.correct, k) for a in both], [statistics.pass_values(a.correct, k) for a in both]
    return [{"measure": f"{name}@{k}", "base": dataclasses.asdict(estimates[0]), "trained": dataclasses.asdict(estimates[1]),
             "paired": dataclasses.asdict(statistics.paired_values(values[0], values[1], seed))}
            for name, (estimates, values) in (("maj", majority), ("pass", solved))]


def _side(answers: Answers) -> dict[str, Any]:
    rows = answers.rows
    return {
        "accuracy": dataclasses.asdict(statistics.accuracy(answers.correct)),
        "answers": len(rows), "samples": answers.samples, "right": sum(a.right for a in rows),
        "unfinished": sum(a.finish_reason == "length" for a in rows),
        "no_answer": sum(a.extracted is None for a in rows),
        "not_graded": sum(a.reason in GAVE_UP for a in rows),
        "judge_accepted": sum(bool(a.judged) for a in rows) if any(a.judged is not None for a in rows) else None,
        "mean_tokens": sum(a.tokens for a in rows) / len(rows),
    }


def _styles(base: Answers, trained: Answers) -> dict[str, Any]:
    """Share of each opening (coverage) and accuracy behind it, and what each did to the whole.

    Accuracy is the sum over openings of share x accuracy. The change of a sum of products splits, without a
    rest, into changed shares at mean accuracies and changed accuracies at mean shares (Kitagawa 1955,
    doi:10.1080/01621459.1955.10501299). An opening that one side never used has no accuracy there: the other
    side's stands in, so all of its effect counts as coverage.
    """
    def cells(answers: Answers) -> dict[str, list[bool]]:
        found: dict[str, list[bool]] = {}
        for answer in answers.rows:
            found.setdefault(answer.style or UNDECIDED, []).append(answer.right)
        return found

    def side(right: list[bool], of: int) -> dict[str, Any]:
        return {"answers": len(right), "share": len(right) / of, "right": sum(right),
                "accuracy": sum(right) / len(right) if right else None}

    before, after = cells(base), cells(trained)
    names = sorted({*before, *after}, key=lambda name: (name == UNDECIDED, -len(before.get(name, [])), name))
    table, coverage, accuracy = [], 0.0, 0.0
    for name in names:
        a = side(before.get(name, []), len(base.rows))
        b = side(after.get(name, []), len(trained.rows))
        table.append({"style": name, "base": a, "trained": b})
        right_a = a["accuracy"] if a["accuracy"] is not None else b["accuracy"]
        right_b = b["accuracy"] if b["accuracy"] is not None else a["accuracy"]
        coverage += (b["share"] - a["share"]) * (right_a + right_b) / 2
        accuracy += (right_b - right_a) * (a["share"] + b["share"]) / 2
    return {"openings": table, "coverage_effect": coverage, "accuracy_effect": accuracy}


def _training(evidence: Evidence) -> dict[str, Any]:
    rows, train, samples = evidence.rows, evidence.train, evidence.samples
    losses = [m["loss"] for m in evidence.metrics if "loss" in m]
    length = rows.get("mean_supervised", train.get("mean_supervised_tokens"))
    return {
        "questions": samples.get("questions"), "duplicates": samples.get("duplicates"), "too_long": samples.get("too_long"),
        "prefix_requests": samples.get("prefix_requests"), "trace_requests": samples.get("trace_requests"),
        "prefix_rows": rows.get("prefix_rows"), "trace_rows": rows.get("trace_rows"),
        "left_out": dict(rows.get("left_out", {})),
        "graded": dict(evidence.grades) or None, "repeated": rows.get("repeated"),
        "rounds": len(evidence.earlier) + 1,
        "mean_trained_length": length, "mean_prompt_length": rows.get("mean_prompt"),
        "steps": train.get("steps", len(losses) or None), "epochs": train.get("epochs"), "lr": train.get("lr"),
        "parameters": train.get("parameters"),
        "first_loss": train.get("first_loss", losses[0] if losses else None),
        "last_loss": train.get("last_loss", losses[-1] if losses else None),
    }


def _tokens(evidence: Evidence, ledgers: Mapping[str, Ledger], costs: Mapping[str, Any]) -> dict[str, int]:
    """The paper's count has response tokens only; the honest one adds the prompts they came with. sampled: as `methods.costs`
    has it. discarded: of these, those in no row. trained: over all epochs, generator, verifier and every round."""
    used = sum(int(one["used_tokens"]) if "used_tokens" in one else
               ledgers.get("samples", Ledger()).sampled_tokens - ledgers.get("rows", Ledger()).discarded_tokens
               for one in (*evidence.earlier, evidence.rows))
    trained = total([one for role, one in ledgers.items() if role.partition(":")[0] in ("train", "verifier")])
    return {
        "sampled": costs["sampled"], "sampled_with_prompts": costs["sampled_with_prompts"],
        "discarded": costs["sampled"] - used,
        "trained": trained.supervised_tokens, "trained_with_prompts": trained.forward_tokens,
        "trained_padding": trained.padding_tokens,
    }


def _choosing(evidence: Evidence) -> dict[str, Any] | None:
    """What a verifier was trained on and how it chose; None where there is none."""
    if not evidence.verifier:
        return None
    return {"pairs": dict(evidence.pairs), "training": dict(evidence.verifier),
            "tasks": {task: dict(scores) for task, scores in evidence.chosen.items()}}


def _stage(record: StageRecord) -> dict[str, Any]:
    return {"role": record.role, "label": record.label, "key": record.key, "making": _makes(record.role),
            "ledger": dataclasses.asdict(record.ledger)}
