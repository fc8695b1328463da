"""Rows into steps and micro-batches: nothing lost, nothing twice, little padding, the same again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from upft import packing
from upft.choices import Layout
from upft.errors import TrainError
from upft.prefix import Row


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.where(draw.random(count) < 0.1, draw.integers(200, 500, count), draw.integers(40, 90, count))


def order_of(steps: list[packing.Step]) -> list[list[int]]:
    return [sorted(r for m in step.micro_batches for r in m.rows) for step in steps]


def test_every_row_comes_once_an_epoch_in_steps_of_the_batch_size() -> None:
    lengths = lengths_of(101)
    steps = list(packing.plan_steps(lengths, 16, 1000, epochs=3, seed=5))
    assert len(steps) == 3 * packing.steps_per_epoch(101, 16) == 21
    for epoch in range(3):
        mine = steps[epoch * 7:(epoch + 1) * 7]
        assert [step.rows for step in mine] == [16] * 6 + [5]  # the last one is smaller, not dropped
        assert sorted(itertools.chain(*order_of(mine))) == list(range(101))


def test_order_follows_seed_and_epoch_and_nothing_else() -> None:
    lengths = lengths_of(64)

    def orders(seed: int, tokens: int = 1000) -> list[list[int]]:
        return order_of(list(packing.plan_steps(lengths, 8, tokens, epochs=2, seed=seed)))

    assert orders(0) == orders(0)
    assert orders(0) == orders(0, tokens=300)  # the machine's limit does not move rows between steps
    assert orders(0)[:8] != orders(0)[8:]
    assert orders(0) != orders(1) != orders(2)
    assert packing.epoch_order(64, 0, 0).tolist() != list(range(64)), "seed 0 is a seed, not `no shuffling`"
    assert packing.epoch_order(5, 0, -1).tolist() != packing.epoch_order(5, 0, 2).tolist()


def test_order_is_fixed_for_ever() -> None:
    """Artifacts are named by their seed, so the order behind a seed may not change with a library."""
    assert packing.epoch_order(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert packing.epoch_order(8, 1, 7).tolist() == [7, 6, 1, 4, 3, 2, 5, 0]


def test_a_micro_batch_keeps_the_limit_and_holds_rows_of_like_length() -> None:
    lengths = lengths_of(640)
    steps = list(packing.plan_steps(lengths, 64, 4096, epochs=1, seed=0))
    for step in steps:
        widths = [m.width for m in step.micro_batches]
        assert widths == sorted(widths, reverse=True)
        for micro in step.micro_batches:
            assert micro.tokens <= 4096
            assert micro.width == max(lengths[list(micro.rows)])
        # grouped by length: nobody in a narrower micro-batch is longer than somebody in a wider one
        for wide, narrow in itertools.pairwise(step.micro_batches):
            assert min(lengths[list(wide.rows)]) >= max(lengths[list(narrow.rows)])
    unsorted = 1 - lengths.sum() / sum(64 * max(m.width for m in step.micro_batches) for step in steps)
    assert packing.padding_share(steps, lengths) < 0.15 < 0.7 < unsorted


def test_padding_share_is_padding_over_forward_tokens() -> None:
    lengths = np.array([3, 5, 4])
    step = packing.Step((packing.MicroBatch((0, 1), 5), packing.MicroBatch((2,), 4)))
    assert packing.padding_share([step], lengths) == pytest.approx(2 / 14)
    assert packing.padding_share([], lengths) == 0.0


@pytest.mark.parametrize("limit", [8, 20, 300, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_split_costs_no_more_than_any_other_cut(limit: int, seed: int) -> None:
    """Against every way to cut nine sorted rows."""
    lengths = np.random.default_rng(seed).integers(2, 400, 9)
    rows = np.arange(9)
    ordered = np.sort(lengths)

    def cost(groups: list[np.ndarray]) -> float:
        if any(len(g) > 1 and len(g) * g[-1] > limit for g in groups):
            return float("inf")
        return sum(len(g) * g[-1] + packing.CALL_TOKENS for g in groups)

    cuts = (np.split(ordered, [i + 1 for i in range(8) if bits >> i & 1]) for bits in range(2**8))
    best = min(cost(groups) for groups in cuts)
    got = packing.split(rows, lengths, limit)
    assert sum(m.tokens + packing.CALL_TOKENS for m in got) == best
    assert sorted(r for m in got for r in m.rows) == rows.tolist()


def test_a_row_longer_than_the_limit_stands_alone() -> None:
    lengths = np.array([10, 500, 10, 700])
    got = packing.split(np.arange(4), lengths, 100)
    assert [m.rows for m in got] == [(3,), (1,), (0, 2)]
    assert packing.oversized(lengths, 100) == 2
    assert packing.oversized(lengths, 700) == 0


@pytest.mark.parametrize("limit", [1, 60, 100, 2000, 100_000])
def test_rows_end_to_end_keep_the_limit_in_parts_of_like_size(limit: int) -> None:
    """However small the limit: a row longer than it stands alone, and no row is lost."""
    lengths = lengths_of(64)
    got = packing.bins(np.arange(64), lengths, limit)
    assert sorted(r for m in got for r in m.rows) == list(range(64))
    for micro in got:
        assert micro.packed
        assert micro.tokens == lengths[list(micro.rows)].sum()
        assert micro.tokens <= limit or len(micro.rows) == 1
    sizes = [m.tokens for m in got]
    assert sizes == sorted(sizes, reverse=True)
    if limit == 1:
        assert len(got) == 64
    if limit == 2000:
        assert len(got) == -(-lengths.sum() // 2000)
        assert max(sizes) - min(sizes) < 0.1 * max(sizes)
    if limit == 100_000:
        assert len(got) == 1
    assert packing.bins(np.array([], dtype=np.int64), lengths, limit) == ()


@pytest.mark.parametrize("layout", [Layout.padded, Layout.packed])
def test_ranks_share_each_step_and_its_rows_are_those_of_one_rank(layout: Layout) -> None:
    lengths = lengths_of(50)
    whole = order_of(list(packing.plan_steps(lengths, 16, 500, 2, 3, layout)))
    shares = [list(packing.plan_steps(lengths, 16, 500, 2, 3, layout, rank, 3)) for rank in range(3)]
    for i, rows in enumerate(whole):
        assert sorted(itertools.chain(*(order_of(share)[i] for share in shares))) == rows
    loads = [int(lengths[order_of(share)[0]].sum()) for share in shares]
    assert max(loads) - min(loads) <= lengths.max()
    lonely = [step.micro_batches for rank in range(3)
              for step in packing.plan_steps(lengths[:2], 16, 500, 1, 0, layout, rank, 3)]
    assert sorted(map(len, lonely)) == [0, 1, 1], "a rank without rows has a step without micro-batches"


def test_pad_names_the_position_before_each_supervised_token() -> None:
    rows = [Row("a", "prefix", [7, 8, 9], [-100, -100, 9]), Row("b", "trace", [4, 5, 6, 3, 2], [-100, 5, -100, 3, 2])]
    padded = packing.pad(rows)
    assert padded.input_ids.tolist() == [[7, 8, 9, 0, 0], [4, 5, 6, 3, 2]]
    assert padded.target.tolist() == [9, 5, 3, 2]
    flat = padded.input_ids.reshape(-1)
    assert flat[padded.predictor].tolist() == [8, 4, 6, 3]  # the token that stands before each target
    assert padded.row.tolist() == [0, 1, 1, 1]
    assert padded.supervised.tolist() == [1, 3]
    assert padded.lengths.tolist() == [3, 5]


def test_a_row_whose_only_supervised_token_comes_first_is_refused_by_name() -> None:
    with pytest.raises(TrainError, match="row of question lonely"):
        packing.pad([Row("a", "prefix", [1, 2], [-100, 2]), Row("lonely", "prefix", [1, 2], [1, -100])])
