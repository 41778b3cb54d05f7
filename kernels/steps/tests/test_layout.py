"""The layout: every datum once, within the budget, groups whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_steps.layout import SHORTEST_SHARED, lay_out, least_saved, worth_sharing
from finetooth_steps.micro_batches import computed_length, one_batch
from finetooth_steps.row_filling import fill_rows, positions_of
from hypothesis import given
from hypothesis import strategies as st


def _data(lengths: list[int], groups: list[int] | None = None) -> list[Datum]:
    keys = [None] * len(lengths) if groups is None else [f"g{g}" for g in groups]
    return [
        Datum.from_tokens([1] * (n + 1), id=f"d{i}", group=key)
        for i, (n, key) in enumerate(zip(lengths, keys, strict=True))
    ]


lengths_and_groups = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=25).map(
    lambda rows: ([n for n, _ in rows], [int(x) for x in np.cumsum([new for _, new in rows])])
)


@given(lengths_and_groups, st.integers(1, 200), st.sampled_from(["sequence", "group"]))
def test_every_datum_once_within_the_budget(rows: Any, budget: int, together: Any) -> None:
    lengths, groups = rows
    data = _data(lengths, groups)
    batches = lay_out(data, budget=budget, together=together)
    assert sorted(i for batch in batches for i in batch.rows) == list(range(len(data)))
    for batch in batches:
        assert list(batch.rows) == sorted(batch.rows)
        assert batch.lengths == tuple(lengths[i] for i in batch.rows)
        units = {groups[i] for i in batch.rows} if together == "group" else set(batch.rows)
        assert batch.positions <= budget or len(units) == 1
        assert bool(batch.pieces) == (batch.positions > budget and len(batch.rows) > 1)
        assert sorted(row for piece in batch.computed for row in piece.rows) == list(batch.rows)
        for piece in batch.computed:
            assert piece.positions <= budget or len(piece.rows) == 1
            assert piece.lengths == tuple(lengths[i] for i in piece.rows)
        if together == "group":
            for group in units:
                assert [i for i in batch.rows if groups[i] == group] == [
                    i for i, key in enumerate(groups) if key == group
                ]


def _groups(sizes: list[tuple[int, list[int]]]) -> list[Datum]:
    """Groups of rows with a prompt of their own in common: its length, and how much longer each row is."""
    return [
        Datum.from_tokens([*range(1, prompt + 1), *([100 + i] * more), 0], id=f"{g}.{i}", group=str(g))
        for g, (prompt, rests) in enumerate(sizes)
        for i, more in enumerate(rests)
    ]


prompts_and_rests = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=9)), min_size=1, max_size=5
)


@given(prompts_and_rests, st.integers(90, 400), st.sampled_from(["sequence", "group"]), st.booleans())
def test_what_a_group_begins_with_counts_once(sizes: Any, budget: int, together: Any, shares: bool) -> None:
    data = _groups(sizes)
    batches = lay_out(data, budget=budget, together=together, packed=True, shares=shares)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(data)))
    for batch in batches:
        groups = {data[row].group for row in batch.rows}
        if together == "group":
            assert {row for row, datum in enumerate(data) if datum.group in groups} == set(batch.rows)
        assert not batch.pieces or (together == "group" and batch.positions > budget and len(groups) == 1)
        assert sorted(row for piece in batch.computed for row in piece.rows) == list(batch.rows)
        for piece in batch.computed:
            beginnings = {group: [row for row in piece.rows if data[row].group == group] for group in groups}
            once = sum(
                (len(rows) - 1) * sizes[int(str(group))][0]
                for group, rows in beginnings.items()
                if rows and shares and sizes[int(str(group))][0] >= SHORTEST_SHARED
            )
            rows = [(len(data[row].tokens), row) for row in piece.rows]
            found = piece.positions
            assert found == sum(n for n, _ in rows) - piece.shared
            if together == "group" or len(batches) == 1:  # otherwise parts of one group may have met by chance
                assert piece.shared == once
            assert found <= budget


def test_a_group_that_shares_its_prompt_fits_where_its_rows_would_not() -> None:
    data = _groups([(50, [10] * 8)])  # 8 x 60 positions, 130 with the prompt once
    (whole,) = lay_out(data, budget=130, together="group", packed=True, shares=True)
    assert (whole.positions, whole.pieces) == (130, ())
    (cut,) = lay_out(data, budget=129, together="group", packed=True, shares=True)
    assert [(piece.rows, piece.positions) for piece in cut.pieces] == [((0, 1, 2, 3), 90), ((4, 5, 6, 7), 90)]
    (apart,) = lay_out(data, budget=130, together="group", packed=True)
    assert [len(piece.rows) for piece in apart.pieces] == [2, 2, 2, 2]
    moved = [replace(data[0], positions=np.arange(60) * 2), *data[1:]]  # then nothing is shared
    assert lay_out(moved, budget=130, together="group", packed=True, shares=True)[0].pieces
    # whatever the loss sees at once, rows of a group stay together as far as there is room
    several = lay_out(_groups([(50, [10] * 4)] * 3), budget=200, packed=True, shares=True)
    assert [batch.rows for batch in several] == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7)]
    assert [batch.positions for batch in several] == [180, 90]


def test_rows_of_similar_length_share_a_micro_batch_longest_first() -> None:
    batches = lay_out(_data([3, 30, 4, 29, 5]), budget=60)
    assert [batch.rows for batch in batches] == [(1, 3), (0, 2, 4)]
    assert [batch.width for batch in batches] == [30, 5]


def test_a_big_budget_makes_one_micro_batch_in_the_given_order() -> None:
    data = _data([3, 30, 4])
    (batch,) = lay_out(data, budget=10_000)
    assert batch == one_batch(data)
    assert batch.positions == 90


def test_what_comes_after_the_last_target_is_not_computed() -> None:
    datum = Datum.from_tokens([1] * 9, [0, 0, 1, 1, 0, 1, 0, 0, 0])
    assert computed_length(datum) == 5
    assert lay_out([datum], budget=100)[0].lengths == (5,)
    assert lay_out([datum], budget=100, whole=True)[0].lengths == (8,)
    assert computed_length(Datum.from_tokens([1] * 9, [0.0] * 9)) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 300))
def test_shared_rows_hold_every_datum_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = fill_rows(lengths, budget)
    assert sorted(place for rows in batches for row in rows for place in row) == list(range(len(lengths)))
    for rows in batches:
        width = max(lengths[place] for row in rows for place in row)
        assert all(sum(lengths[place] for place in row) <= width for row in rows)  # no wider than without
        assert positions_of(rows, lengths) == len(rows) * width <= max(budget, width)


def test_as_few_rows_as_are_needed() -> None:
    assert fill_rows([10, 1, 9, 5, 5, 3, 7], 1000) == [[[0], [2, 1], [6, 5], [3, 4]]]
    assert fill_rows([10, 1, 9, 5, 5, 3, 7], 25) == [[[0], [2, 1]], [[6], [3], [4]], [[5]]]


@pytest.mark.parametrize("filling", ["rows", "stream"])
def test_data_with_positions_of_their_own_share_no_rows(filling: Any) -> None:
    """A row that is shared counts each datum's positions from 0."""
    data = _data([20, 4, 4, 4, 4])
    (shared,) = lay_out(data, budget=200, filling=filling)
    assert shared.filled
    own = [replace(data[0], positions=np.arange(20) * 2), *data[1:]]
    assert lay_out(own, budget=200, filling=filling) == lay_out(own, budget=200)
    assert not any(batch.filled for batch in lay_out(own, budget=200, filling=filling))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 300), st.sampled_from(["rows", "stream"]))
def test_rows_are_shared_only_where_that_saves(lengths: list[int], budget: int, filling: Any) -> None:
    data = _data(lengths)
    padded, packed = lay_out(data, budget=budget), lay_out(data, budget=budget, filling=filling)
    assert sorted(row for batch in packed for row in batch.rows) == list(range(len(data)))
    before, after = (sum(batch.positions for batch in batches) for batches in (padded, packed))
    assert packed == padded or after <= 0.95 * before
    for batch in packed:
        assert batch.lengths == tuple(lengths[row] for row in batch.rows)
        assert not batch.filled or sorted(p for row in batch.filled for p in row) == list(range(len(batch.rows)))
        assert batch.positions <= budget or len(batch.rows) == 1
    assert lay_out(data, budget=budget, together="group", filling=filling) == lay_out(
        data, budget=budget, together="group"
    )


def test_on_a_gpu_a_beginning_is_shared_where_that_saves_an_eighth_of_what_is_left() -> None:
    least = least_saved("cuda")
    assert least_saved("cpu") == 0.0
    assert worth_sharing(30, [4096] * 4, least_saved("cpu"))
    assert not worth_sharing(30, [4096] * 4, least)  # a system message of 30 tokens: 90 saved of 16,264
    assert worth_sharing(200, [700] * 8, least)  # answers to one prompt: 1,400 saved of 4,000
    assert worth_sharing(100, [900, 900], 100 / 1600)
    assert not worth_sharing(100, [900, 901], 100 / 1600)
    alike = [Datum.from_tokens([*range(100), 200 + i, *range(600)], group="g") for i in range(2)]
    shared = [sum(b.shared for b in lay_out(alike, budget=10**4, packed=True, shares=True, least_saved=share))
              for share in (0.0, 0.5)]  # fmt: skip
    assert shared == [100, 0]
