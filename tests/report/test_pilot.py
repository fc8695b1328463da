"""What a pilot costs a method: told by the traces themselves, so the same whatever else was in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import answer, diagnose, evaluated, making, spec, write

from upft.ledger import Ledger, forward_flops
from upft.prefix import carries_trace
from upft.report import methods, results
from upft.report.evidence import Evidence
from upft.shapes import shape_of
from upft.stages import report

CONFIG = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32,
          "max_position_embeddings": 64}
PREFIX, PREFIX_TOO, WHOLE = (*[f"q{n}" for n in range(99) if not carries_trace(f"q{n}", 0.1)][:2],
                             next(f"q{n}" for n in range(99) if carries_trace(f"q{n}", 0.1)))
LENGTH, LONGEST = 3, 8


def sampling(folder: Path, sizes: Mapping[str, list[int]], cost: Ledger, **told: Any) -> Path:
    """Traces of so many tokens each; the n-th question's prompt has 10 + n."""
    places = {PREFIX: 0, PREFIX_TOO: 1, WHOLE: 2}
    return write(folder, {"samples.json": {"questions": len(sizes), "context": 64, **told}}, cost, {
        "questions.jsonl": [{"id": q, "text": q, "answer": None, "prompt_ids": [1] * (10 + places[q])} for q in sizes],
        "samples.jsonl": [{"id": q, "index": i, "kind": "trace" if carries_trace(q, 0.1) else "prefix", "ids": [7] * size,
                           "finish_reason": "stop" if size != LONGEST else "length"}
                          for q, all_of in sizes.items() for i, size in enumerate(all_of)]},
        spec={"stage": "sample", "spec": {}})


def cell(root: Path, reused: int = 0, pilot_reused: int = 0, rounds: int = 1, adapter: bool = False,
         length: int | None = LENGTH) -> Evidence:
    """UPFT with prefix.len=auto: the pilot draws 2 traces each of PREFIX and WHOLE, the sampling one each of all three.

    Of PREFIX's first trace the pilot has 8 tokens, the method needs 3; WHOLE's has 20.
    """
    inputs = making(root, diagnosed=diagnose(4, LONGEST))
    inputs["pilot"] = sampling(root / "pilot", {PREFIX: [8, 5], WHOLE: [20, 30]},
                               Ledger(prompt_tokens=44, sampled_tokens=63, reused_tokens=pilot_reused, seconds=7.0))
    inputs["samples"] = sampling(root / "main", {PREFIX: [LENGTH], PREFIX_TOO: [LENGTH], WHOLE: [20]},
                                 Ledger(sampled_tokens=26, reused_tokens=reused, seconds=5.0))
    built = {"traces": 1, "cap": 1, "ratio": 0.1, "right": False, "prefix_len": None}
    told = {"prefix_len": length, "prefix_len_from": "diagnosis", "supervised_tokens": 30, "used_tokens": 26,
            "prefix_rows": 2, "trace_rows": 1, "left_out": {}, "mean_supervised": 9.0, "mean_prompt": 11.0, "examples": [],
            "alone": {"prompt_tokens": 33, "sampled_tokens": 26, "flops": 1000.0}}
    inputs["rows"] = write(root / "rows", {"rows.json": told}, Ledger(), spec={"stage": "build", "spec": built})
    if adapter:
        write(root / "base", {"config.json": CONFIG}, Ledger())
        (inputs["train"] / "adapter").mkdir()
        (inputs["train"] / "adapter" / "adapter_config.json").write_text(json.dumps(
            {"base_model_name_or_path": str(root / "base"), "revision": None}))
    else:
        (inputs["train"] / "model").mkdir()
        (inputs["train"] / "model" / "config.json").write_text(json.dumps(CONFIG))
    if rounds == 2:
        inputs |= {f"{role}:1": inputs[role] for role in ("samples", "rows", "train", "diagnosis")}
        inputs["samples"] = sampling(root / "second", {PREFIX: [LENGTH], PREFIX_TOO: [LENGTH], WHOLE: [11]},
                                     Ledger(sampled_tokens=17, seconds=4.0))
        again = told | {"used_tokens": 17, "alone": {"prompt_tokens": 33, "sampled_tokens": 17, "flops": 500.0}}
        inputs["rows"] = write(root / "rows2", {"rows.json": again}, Ledger(), spec={"stage": "build", "spec": built})
    for side in ("base", "trained"):
        inputs[f"{side}:toy"] = evaluated(root, side, [answer(f"{n:02d}", n != 3) for n in range(40)])
    return report.read(replace(spec("toy"), prefix_len=None), inputs)


MORE = (8 - 3) + 5 + 30
"""Tokens that the pilot adds: PREFIX's first trace behind the prefix, and the second traces; WHOLE's first is shared."""


def test_a_pilot_adds_what_the_sampling_does_not_need_anyway(tmp_path: Path) -> None:
    found = results.results(cell(tmp_path))
    told = found["comparison"]
    assert told["sampled"] == found["tokens"]["sampled"] == 26 + MORE
    assert told["sampled_with_prompts"] == found["tokens"]["sampled_with_prompts"] == 26 + MORE + 33 + 10 + 12
    assert found["tokens"]["discarded"] == MORE
    shape = shape_of(CONFIG)
    # each question's prompt is read once, and once it is for the sampling
    flops = sum(forward_flops(shape, end) for end in (10 + 8, 12 + 30)) - forward_flops(shape, 10 + 3) + (
        forward_flops(shape, 10 + 5) - forward_flops(shape, 10) - forward_flops(shape, 12))
    assert told["sampling_flops"] == pytest.approx(1000 + flops)


@pytest.mark.parametrize(("reused", "pilot_reused"), [(23, 0), (26, 0), (26, 63), (0, 10)])
def test_what_was_in_the_store_changes_no_count(reused: int, pilot_reused: int, tmp_path: Path) -> None:
    fresh, used = (methods.costs(cell(tmp_path / str(n), *of)) for n, of in enumerate(((23, 0), (reused, pilot_reused))))
    counts = [{name: value for name, value in told.items() if not name.startswith("sampling_") or name == "sampling_flops"}
              for told in (fresh, used)]
    assert counts[0] == counts[1]
    assert fresh["sampling_share"] == 1, "23 tokens were the pilot's, and all was drawn in the time that is known"
    assert (used["sampling_share"] is None) == (pilot_reused == 63)
    if (reused, pilot_reused) == (26, 0):
        assert used["sampling_share"] == pytest.approx((26 + MORE) / 63), "three tokens came from elsewhere"


def test_a_pilot_belongs_to_the_first_round(tmp_path: Path) -> None:
    found = results.results(cell(tmp_path, 23, rounds=2))
    assert found["comparison"]["sampled"] == found["tokens"]["sampled"] == 26 + 17 + MORE
    assert found["tokens"]["discarded"] == MORE


def test_an_adapter_names_the_model_whose_size_counts(tmp_path: Path) -> None:
    whole, adapter = (methods.costs(cell(tmp_path / str(of), adapter=of)) for of in (False, True))
    assert whole["sampling_flops"] == adapter["sampling_flops"] is not None
    assert whole["sampled"] == adapter["sampled"]


def test_a_pilot_for_an_analysis_alone_is_no_cost_of_the_method(tmp_path: Path) -> None:
    told = methods.costs(cell(tmp_path, length=None))
    assert (told["sampled"], told["sampled_with_prompts"], told["sampling_flops"]) == (26, 26 + 33, 1000.0)
