"""Divergences against probabilities written out and against a whole model's logits."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from upft import divergence, models, statistics
from upft.analyses.divergences import Apart, Parted, over_seeds, summary
from upft.console import Console
from upft.machine import ComputeConfig
from upft.prefix import trace_row
from upft.report import analyses, latex, panels, spreadsheet
from upft.sample_log import SampleLog

WEIGHTS = Path(__file__).parents[2] / "upft" / "toy" / "weights"


@pytest.fixture(scope="module")
def pair():
    base = models.load_model(WEIGHTS, torch.float32)
    trained = copy.deepcopy(base)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for weight in trained.parameters():
            weight += 0.02 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
    return base, trained


@pytest.fixture(scope="module")
def traces():
    rng = np.random.default_rng(1)
    rows = [trace_row(f"q{n // 2}", rng.integers(3, 200, 5 + n).tolist(), rng.integers(3, 200, 3 + 4 * n).tolist())
            for n in range(5)]
    return [divergence.Trace(row.question_id, n % 2, row) for n, row in enumerate(rows)]


def compare(load, traces, folder, shards=(), **compute):
    with SampleLog(folder) as log:
        return divergence.compare(load, traces, ComputeConfig(**compute), log, Console(quiet=True), shards)


def never():
    raise AssertionError("nothing is left to compare")


def test_every_token_is_that_of_the_whole_logits(pair, traces, tmp_path):
    found, flops = compare(lambda: pair, traces, tmp_path, micro_batch_tokens=64)
    assert flops > 0
    for row, (forward, reverse) in zip([trace.row for trace in traces], found, strict=True):
        prompt = len(row.input_ids) - row.supervised
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([row.input_ids])).logits[0, prompt - 1:-1].double() for model in pair]
        p, q = (one.softmax(-1).numpy() for one in logits)
        assert forward.shape == (row.supervised,)
        np.testing.assert_allclose(forward, (p * np.log(p / q)).sum(-1), rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(reverse, (q * np.log(q / p)).sum(-1), rtol=1e-4, atol=1e-8)
        assert forward.min() > 0


def test_what_is_in_the_log_is_not_compared_again(pair, traces, tmp_path):
    first, spent = compare(lambda: pair, traces, tmp_path)
    again, counted = compare(never, traces, tmp_path)
    assert counted == pytest.approx(spent)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    lines = (tmp_path / "finished.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "finished.jsonl").write_text("".join(lines[:2]))
    resumed, counted = compare(lambda: pair, traces, tmp_path)
    assert counted == pytest.approx(spent), "of each trace once, in whatever batch it was"
    for one, other in zip(first, resumed, strict=True):
        np.testing.assert_allclose(one[0], other[0], rtol=1e-4, atol=1e-9)


def test_what_shards_have_compared_is_taken_from_them(pair, traces, tmp_path):
    """Each in its place, though they overlap, one has a damaged line and one tells of a trace that nobody asks for."""
    whole, spent = compare(lambda: pair, traces, tmp_path / "whole")
    for name, some in (("a", [3, 0, 4]), ("b", [4, 1, 2])):
        compare(lambda: pair, [traces[number] for number in some], tmp_path / name)
    joined, counted = compare(never, traces, tmp_path / "joined", [tmp_path / "a", tmp_path / "b"])
    assert counted == pytest.approx(spent)
    for one, other in zip(whole, joined, strict=True):
        for way in (0, 1):
            np.testing.assert_allclose(one[way], other[way], rtol=1e-4, atol=1e-9)
    damaged = tmp_path / "b" / "finished.jsonl"
    lines = damaged.read_text().splitlines(keepends=True)
    damaged.write_text("".join(line.replace("forward", "backward") if '"q1","index":0' in line else line for line in lines))
    asked = []

    def load():
        asked.append(1)
        return pair

    few = [trace for trace in traces if trace.question != "q2"]
    again, _ = compare(load, few, tmp_path / "again", [tmp_path / "a", tmp_path / "b"])
    assert len(again) == 4
    assert asked
    [line] = (tmp_path / "again" / "finished.jsonl").read_text().splitlines()
    assert '"q1","index":0' in line, "what the damaged line alone held"


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
def test_chunks_change_nothing(pair, chunk):
    parts = [models.take_apart(copy.deepcopy(model).double()) for model in pair]  # else the head rounds with the chunk
    hidden = [torch.randn(17, pair[0].config.hidden_size, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1)]
    with torch.no_grad():
        forward, reverse = divergence.apart(*parts, *hidden, chunk=chunk)
        p, q = ((part.head(h)).double().softmax(-1) for part, h in zip(parts, hidden, strict=True))
    torch.testing.assert_close(forward, (p * (p / q).log()).sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(reverse, (q * (q / p).log()).sum(-1), rtol=1e-9, atol=1e-12)


def test_a_model_beside_itself_is_nothing_apart(pair, traces, tmp_path):
    found, _ = compare(lambda: (pair[0], pair[0]), traces, tmp_path)
    assert max(np.abs(one).max() for both in found for one in both) == 0


def test_summary_of_hand_made_traces():
    traces = [Apart("a", np.array([4.0, 2.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])),
              Apart("a", np.array([2.0, 0.0]), np.array([3.0, 3.0])),
              Apart("b", np.array([1.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.0]))]
    found = summary(traces, 2, 3, 0)
    assert (found["questions"], found["traces"], found["tokens"], found["t"], found["known"]) == (2, 3, 9, [1, 2, 3], [2, 2, 2])
    assert found["forward"]["mean"] == pytest.approx([(3 + 1) / 2, (1 + 1) / 2, (1 + 3) / 2])
    assert found["reverse"]["mean"] == pytest.approx([1, 1, 0.5])
    assert found["prefix"]["forward"]["mean"] == pytest.approx((2 + 1) / 2)  # a: (3 + 1)/2
    assert found["continuation"]["forward"]["mean"] == pytest.approx((1 + 3) / 2)
    # sums: a has (6 + 2)/2 on the prefix of (8 + 2)/2, b 2 of 5
    assert found["share"]["value"] == pytest.approx((4 + 2) / (5 + 5))
    assert found["sequence"]["mean"] == pytest.approx(5)
    assert found["tokens_share"] == pytest.approx((2 + 2) / (3 + 3))
    half = 12.706204736 * math.sqrt(2) / math.sqrt(2)  # t(0.975, 1) * sd / sqrt(2) of 3 and 1
    assert found["forward"]["high"][0] == pytest.approx(2 + half)
    assert found["forward"]["low"][0] == 0
    assert summary([Apart("a", np.array([1.0]), np.array([1.0]))], 2, 3, 0)["continuation"]["forward"] is None


def test_one_question_has_no_interval_and_neither_page_nor_figure_make_one_up():
    """Of twelve questions one goes on: behind the others' ends its mean stands alone, and the figure ends with them."""
    rng = np.random.default_rng(3)
    traces = [Apart(f"q{n}", *rng.gamma(2.0, 1e-9, (2, 6 if n else 8))) for n in range(12)]
    found = summary(traces, 6, 64, 0)
    assert found["known"] == [12] * 6 + [1] * 2
    assert found["forward"]["mean"][6:] == list(traces[0].forward[6:])
    assert found["forward"]["low"][6:] == found["forward"]["high"][6:] == [None, None]
    assert None not in found["forward"]["low"][:6]
    rest = found["continuation"]["forward"]
    assert (rest["mean"], rest["low"], rest["high"]) == (pytest.approx(traces[0].forward[6:].mean()), None, None)
    [section] = analyses.sections({"kl": found}, "UPFT")
    assert f"{rest['mean']:.1e} (of one question) behind them" in section.text[0]
    last = section.tables[1].rows[-1].cells
    assert (last[1].text, last[3].interval, last[3].data["low"]) == ("8", "", None)
    assert "None" not in latex.table(section.tables[1]) + spreadsheet.table(section.tables[1])
    figure = panels.divergence(found, "UPFT")
    assert [list(line.get_xdata()) for line in figure.axes[0].lines[:2]] == [[1, 2, 3, 4, 5, 6]] * 2


def test_the_shares_interval_does_not_depend_on_the_size_of_the_divergence():
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, 1.0, (12, 2, 8))
    wide, tiny = (summary([Apart(f"q{n}", *(size * both)) for n, both in enumerate(values)], 2, 8, 0)["share"]
                  for size in (1.0, 2.0**-40))
    assert tiny == pytest.approx(wide)
    assert tiny["low"] < tiny["value"] < tiny["high"]


@pytest.mark.parametrize(("dtype", "named"), [("float32", False), ("bfloat16", True), (None, False)])
def test_the_page_names_the_floor_of_rounding(dtype, named):
    found = summary([Apart(f"q{n}", np.ones(3), np.ones(3)) for n in range(3)], 2, 3, 0)
    [section] = analyses.sections({"kl": found | ({} if dtype is None else {"dtype": dtype})}, "UPFT")
    assert ("Both models computed in bfloat16" in " ".join(section.text)) == named


def test_over_seeds_is_crossed_and_only_of_common_questions():
    rng = np.random.default_rng(4)

    def drawn(seed: int, questions: range) -> list[Apart]:
        return [Apart(f"q{q}", *(rng.gamma(2.0, 0.1 * (1 + seed / 10), (2, 5 if q % 2 else 3))))
                for q in questions for _ in range(2)]

    seeds = [drawn(seed, range(seed, 14)) for seed in (0, 1, 2)]
    found = over_seeds([Parted.of(one, 2, 4) for one in seeds], 2)
    common = [f"q{q}" for q in range(2, 14)]
    assert (found["questions"], found["traces"], found["t"], found["known"]) == (12, 78, [1, 2, 3, 4], [12, 12, 12, 6])

    def values(read, of=common):
        return np.array([[np.mean([read(one) for one in some if one.question == q]) for q in of] for some in seeds])

    first = values(lambda one: one.forward[0])
    band = {name: found["forward"][name][0] for name in ("mean", "low", "high")}
    assert band["mean"] == pytest.approx(first.mean())
    crossed = statistics.paired_over_seeds(np.zeros_like(first), first)  # the same model, where its ends are not cut
    assert (band["low"], band["high"]) == (pytest.approx(crossed.low), pytest.approx(crossed.high))
    assert found["forward"]["mean"][3] == pytest.approx(values(lambda one: one.forward[3], common[1::2]).mean())
    assert found["prefix"]["reverse"]["mean"] == pytest.approx(values(lambda one: one.reverse[:2].mean()).mean())
    part, whole = (values(lambda one, n=n: one.forward[:n].sum()).mean() for n in (2, 99))
    assert found["share"]["value"] == pytest.approx(part / whole)
    assert found["share"]["low"] < part / whole < found["share"]["high"]
    with pytest.raises(ValueError, match="1 questions in common"):
        over_seeds([Parted.of(drawn(0, range(3)), 2, 4), Parted.of(drawn(0, range(2, 5)), 2, 4)], 2)


def test_the_shares_interval_over_seeds_covers_the_truth():
    """300 studies of 4 trainings and 30 questions, each with an effect of its own on prefix and rest."""
    rng, inside, studies = np.random.default_rng(8), 0, 300
    for _ in range(studies):
        easy, tilt = rng.gamma(4.0, 0.25, 30), rng.normal(0, 0.05, 4)
        seeds = []
        for seed in range(4):
            first = easy * (0.4 + tilt[seed]) * rng.gamma(20, 1 / 20, 30)
            rest = easy * 0.6 * rng.gamma(20, 1 / 20, 30)
            seeds.append(Parted.of([Apart(str(q), np.array([first[q], rest[q]]), np.zeros(2)) for q in range(30)], 1, 2))
        share = over_seeds(seeds, 1)["share"]
        inside += share["low"] <= 0.4 <= share["high"]
    assert 0.92 <= inside / studies <= 0.985
