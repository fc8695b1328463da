"""Best of n: what answers are ranked by, which one is chosen, and the artifact that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MODEL, PROMPT, WEIGHTS

from upft import adapters, models, prefix
from upft.choices import Precision, Score
from upft.errors import DataError
from upft.ledger import Ledger
from upft.prompts import Prompter
from upft.specs import LoraSpec, VerifySpec
from upft.stages import verify

SPEC = VerifySpec(MODEL, "toy", Score.likelihood, Precision.fp32, False)
TEXTS = {"What is 2 plus 2?": ["We add: 2 + 2 = 4, so \\boxed{4}", "So \\boxed{5}", "I guess \\boxed{9}"],
         "What is 3 plus 2?": ["So \\boxed{5}", "First, add: 3 + 2 = 5. The answer is \\boxed{5}", "I guess \\boxed{9}"]}
RIGHT = {"What is 2 plus 2?": "4", "What is 3 plus 2?": "5"}


@pytest.fixture
def answers(tokenizer: Any, tmp_path: Path) -> Path:
    """What an evaluation leaves: three answers to each of two questions."""
    folder, prompter = tmp_path / "answers", Prompter(tokenizer, PROMPT)
    folder.mkdir()
    with (folder / "answers.jsonl").open("w") as out:
        for question, texts in TEXTS.items():
            for index, text in enumerate(texts):
                ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                given = text.rpartition("{")[2].rstrip("}")
                out.write(json.dumps({
                    "id": prefix.question_id(question), "index": index, "question": question, "gold": RIGHT[question],
                    "completion": text, "extracted": given, "vote": given, "right": given == RIGHT[question],
                    "reason": "same text", "finish_reason": "stop", "tokens": len(ids), "prompt_ids": prompter.ids(question),
                    "ids": ids}) + "\n")
    (folder / "scores.json").write_text(json.dumps({"task": "sums", "protocol": "standard", "n": 3, "accuracy": 0.5}))
    return folder


@pytest.fixture
def verifiers(tokenizer: Any, tmp_path: Path) -> dict[str, Path]:
    """A training that saved whole weights and one that saved an adapter, neither of them the base model."""
    base = models.load_model(WEIGHTS, torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in base.parameters():
            p += 0.3 * p.std() * torch.randn_like(p)
    models.save_model(base, tokenizer, tmp_path / "whole" / "model", WEIGHTS)
    other = models.load_model(WEIGHTS, torch.float32)
    adapters.attach(other, LoraSpec(4, 8.0, 0.0, None, False), 0)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if "lora_B" in name:
                p += 0.3 * torch.randn_like(p)
    adapters.save(other, tmp_path / "lora" / "adapter", WEIGHTS)
    return {"whole": tmp_path / "whole", "lora": tmp_path / "lora"}


def by_hand(model: Any, rows: list[dict]) -> list[float]:
    out = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0].double().log_softmax(-1)
        begin = len(row["prompt_ids"])
        out.append(sum(logits[i - 1, ids[0, i]].item() for i in range(begin, ids.shape[1])))
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["whole", "lora"])
@pytest.mark.parametrize("score", list(Score))
def test_the_answer_with_the_best_score_is_chosen(kind: str, score: Score, answers: Path, verifiers: dict[str, Path],
                                                  run: Callable, tmp_path: Path) -> None:
    run(verify, replace(SPEC, score=score), {"answers": answers, "verifier": verifiers[kind]}, "out")
    rows = lines(answers / "answers.jsonl")
    if kind == "whole":
        model = models.load_model(verifiers[kind] / "model", torch.float32)
    else:
        model = models.load_model(WEIGHTS, torch.float32)
        adapters.load(model, verifiers[kind] / "adapter")
    wanted = by_hand(model, rows)
    if score is Score.mean:
        wanted = [w / row["tokens"] for w, row in zip(wanted, rows, strict=True)]
    if score is Score.reward:
        wanted = [w - b for w, b in zip(wanted, by_hand(models.load_model(WEIGHTS, torch.float32), rows), strict=True)]
    scored = lines(tmp_path / "out" / "candidates.jsonl")
    assert [(s["id"], s["index"], s["right"]) for s in scored] == [(r["id"], r["index"], r["right"]) for r in rows]
    assert [s["score"] for s in scored] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    chosen = lines(tmp_path / "out" / "answers.jsonl")
    best = [int(np.argmax(wanted[:3])), 3 + int(np.argmax(wanted[3:]))]
    assert [(c["id"], c["completion"], c["index"], c["chosen"]) for c in chosen] == [
        (rows[i]["id"], rows[i]["completion"], 0, rows[i]["index"]) for i in best]
    told = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert told["accuracy"] == sum(rows[i]["right"] for i in best) / 2
    assert (told["questions"], told["samples"], told["candidates"], told["protocol"]) == (2, 1, 3, "standard")
    assert (told["mean_of_candidates"], told["some_candidate_right"]) == (0.5, 1.0)
    pairs = [(0, 1), (0, 2), (3, 5), (4, 5)]
    assert told["ranked_right"] == sum(wanted[a] > wanted[b] for a, b in pairs) / 4
    read = sum(len(r["prompt_ids"]) + len(r["ids"]) for r in rows)
    assert Ledger.read(tmp_path / "out").scored_tokens == read * (2 if score is Score.reward else 1)
    assert Ledger.read(tmp_path / "out").flops > 0


def test_of_equal_scores_the_first_answer_is_chosen() -> None:
    assert verify.choose(["a", "b", "a", "b", "a"], np.array([1.0, 5.0, 2.0, 5.0, 2.0])) == [2, 1]


def test_answers_without_ids_are_refused(answers: Path, verifiers: dict[str, Path], run: Callable) -> None:
    rows = lines(answers / "answers.jsonl")
    del rows[1]["ids"]
    (answers / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"answers\.jsonl line 2 has no token ids"):
        run(verify, SPEC, {"answers": answers, "verifier": verifiers["whole"]}, "out")
