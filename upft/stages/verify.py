"""Stage `verify`: of several answers to each question, the one that the verifier likes best.

Reads an evaluation's answers.jsonl, writes the same format with one row a question (the chosen answer, its score and how many
it was chosen from), candidates.jsonl (the score of every answer), scores.json and ledger.json. Of a row it needs id, index,
prompt_ids, ids and right; the rest travels along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upft import adapters, answers, fit, ledger, models, prefix, scoring, traces
from upft.choices import Score
from upft.errors import DataError
from upft.specs import VerifySpec
from upft.stages import Host
from upft.store import RESUME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Candidate:
    """One answer: its row of answers.jsonl, and the training row that is scored."""

    told: dict[str, Any]
    row: prefix.Row


def run(spec: VerifySpec, inputs: Mapping[str, Path], out: Path, host: Host) -> None:
    """Score every answer and keep the best of each question."""
    host.engines.close()  # an engine holds the memory that the verifier needs
    with host.meter(out) as meter:
        candidates = read(inputs["answers"] / "answers.jsonl")
        rows = [c.row for c in candidates]

        def scored(verifier: Path | None, label: str) -> scoring.Scored:
            return scoring.score(lambda: _opened(spec, verifier), rows, spec.precision, host.compute, out / RESUME / label,
                                 host.console, label)

        found = scored(inputs["verifier"], "verifier")
        logprobs, tokens, flops = found.logprobs, found.tokens, found.flops
        base = None
        if spec.score is Score.reward:
            base = scored(None, "base model")
            tokens, flops = tokens + base.tokens, flops + base.flops
        scores = rank(spec.score, logprobs, np.array([row.supervised for row in rows]), None if base is None else base.logprobs)
        best = choose([c.told["id"] for c in candidates], scores)
    host.settle(ledger.Ledger(scored_tokens=tokens, flops=flops), meter, out)
    with (out / "candidates.jsonl").open("w", encoding="utf-8") as stream:
        for candidate, logprob, score in zip(candidates, logprobs.tolist(), scores.tolist(), strict=True):
            told = candidate.told
            stream.write(json.dumps({"id": told["id"], "index": told["index"], "logprob": logprob, "score": score,
                                     "right": told["right"]}) + "\n")
    chosen = ({**candidates[i].told, "index": 0, "chosen": candidates[i].told["index"], "score": float(scores[i])}
              for i in best)
    asked = json.loads((inputs["answers"] / answers.SCORES).read_text(encoding="utf-8"))
    answers.write(out, chosen, {**asked, **summary(spec, candidates, scores)})


def read(path: Path) -> list[Candidate]:
    """The answers of an evaluation. Raises DataError where they do not carry their token ids."""
    found = []
    for number, told in enumerate(traces.lines(path), 1):
        if not told.get("prompt_ids") or not told.get("ids"):
            raise DataError(f"{path} line {number} has no token ids",
                            "the artifact is damaged: set it aside and run the same command again")
        found.append(Candidate(told, prefix.trace_row(told["id"], told["prompt_ids"], told["ids"])))
    return found


def rank(score: Score, logprobs: np.ndarray, tokens: np.ndarray, base: np.ndarray | None) -> np.ndarray:
    """What answers are ranked by: [answers], more is better. base: log-probabilities under the base model (for `reward`,
    whose factor beta changes no order and is left out)."""
    if score is Score.mean:
        return logprobs / tokens
    if score is Score.reward:
        assert base is not None  # asked for by the caller
        return logprobs - base
    return logprobs


def choose(ids: Sequence[str], scores: np.ndarray) -> list[int]:
    """The place of the best answer to each question, in the order in which the questions come first; of equals the first."""
    best: dict[str, int] = {}
    for place, id_ in enumerate(ids):
        if id_ not in best or scores[place] > scores[best[id_]]:
            best[id_] = place
    return list(best.values())


def summary(spec: VerifySpec, candidates: Sequence[Candidate], scores: np.ndarray) -> dict[str, Any]:
    """What scores.json holds of the choice. ranked_right: share of pairs of a right and a wrong answer to one question of
    which the right one has the better score (ties count half)."""
    right: dict[str, list[bool]] = {}
    by_question: dict[str, list[int]] = {}
    for place, candidate in enumerate(candidates):
        right.setdefault(candidate.told["id"], []).append(bool(candidate.told["right"]))
        by_question.setdefault(candidate.told["id"], []).append(place)
    won = pairs = 0.0
    for places in by_question.values():
        good = scores[[p for p in places if candidates[p].told["right"]]]
        bad = scores[[p for p in places if not candidates[p].told["right"]]]
        won += float((good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum())
        pairs += len(good) * len(bad)
    return {
        "task": spec.task, "candidates": len(candidates) / len(by_question), "score": spec.score.name,
        "mean_of_candidates": float(np.mean([np.mean(r) for r in right.values()])),
        "some_candidate_right": float(np.mean([any(r) for r in right.values()])),
        "ranked_right": won / pairs if pairs else None,
    }


def _opened(spec: VerifySpec, verifier: Path | None) -> PreTrainedModel:
    """The verifier, or (None) the base model."""
    source, adapter = models.trained_as(models.resolve(spec.model.source), verifier)
    model = models.load_model(source, fit.weights_dtype(spec, spec.frozen), spec.model.trust_remote_code)
    if adapter is not None:
        adapters.load(model, adapter)
    return model
