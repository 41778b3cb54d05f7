"""What is said of rows as a whole, against plain counting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finetooth_data.survey import histogram, padding, quantiles, training_steps
from finetooth_hooks.data.examples import Rendered, Text
from finetooth_hooks.data.preparation import Limit
from finetooth_kit.fake_context import TRAIN
from finetooth_methods.batched import Batches
from finetooth_rows.choices.repeats import digests_of, repeats, shared
from finetooth_rows.preparing import render_rows
from finetooth_rows.storage.token_rows import TokenPortion, TokenRows
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_row_is_in_one_range(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths))
    assert len(bars) <= 10 and bars[0][0] == min(lengths) and bars[-1][1] == max(lengths)
    for start, stop, count in bars:
        assert count == sum(start <= length <= stop for length in lengths)
    assert sum(count for _, _, count in bars) == len(lengths)


@given(LENGTHS)
def test_quantiles_are_lengths_that_are_there(lengths: list[int]) -> None:
    low, median, high, most = quantiles(np.array(lengths))
    assert (low, most) == (min(lengths), max(lengths)) and {median, high} <= set(lengths)
    assert sum(length <= median for length in lengths) >= len(lengths) / 2
    assert sum(length <= high for length in lengths) >= 0.95 * len(lengths)


@given(st.lists(LENGTHS, min_size=1, max_size=8), st.integers(300, 2000))
def test_padding_is_what_rectangles_hold_beside_rows(steps: list[list[int]], budget: int) -> None:
    whole = in_budget = used = 0
    for step in steps:
        batch = sorted(step)
        used += sum(batch)
        whole += len(batch) * batch[-1]
        while batch:
            size = max(n for n in range(1, len(batch) + 1) if n == 1 or n * batch[n - 1] <= budget)
            in_budget += size * batch[size - 1]
            batch = batch[size:]
    assert padding(steps) == 1 - used / whole
    assert padding(steps, budget) == 1 - used / in_budget


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 9), st.booleans(), st.integers(0, 3), st.one_of(st.none(), st.integers(1, 20)))
def test_steps_are_those_that_train(
    lengths: list[int], batch_size: int, shuffle: bool, seed: int, max_steps: int | None
) -> None:
    train = replace(TRAIN, batch_size=batch_size, shuffle=shuffle, seed=seed, epochs=2, max_steps=max_steps)
    batches = list(Batches.of(len(lengths), train))
    of_epoch = -(-len(lengths) // batch_size)
    expected = [[lengths[i] for i in batch] for batch in batches[:of_epoch]]
    assert training_steps(np.array(lengths), train) == expected


def rows(*tokens: list[int], ids: list[str] | None = None) -> TokenRows:
    portion = TokenPortion.pack(
        ids or [f"row {i}" for i in range(len(tokens))],
        [len(row) for row in tokens],
        [token for row in tokens for token in row],
        [1.0] * sum(map(len, tokens)),
    )
    return TokenRows([portion])


def test_repeats_name_the_row_they_repeat() -> None:
    found = repeats(digests_of(rows([1, 2, 3], [4, 5], [1, 2, 3], [1, 2], [1, 2, 3])))
    assert (found.count, found.first) == (2, (("row 2", "row 0"), ("row 4", "row 0")))


def test_a_row_taken_again_repeats_nothing() -> None:
    again = digests_of(rows([1, 2], [1, 2], [3, 4], [1, 2], ids=["a:1", "a:1~2", "a:2", "a:3"]))
    assert repeats(again).first == (("a:3", "a:1"),)


def split(cut: int, texts: dict[str, str]) -> TokenRows:
    """Texts as letters, split at so many positions."""

    def render(example: object) -> Rendered:
        assert isinstance(example, Text)
        return Rendered(tuple(map(ord, example.text)), (1.0,) * len(example.text))

    portion, _ = render_rows([(id_, Text(text)) for id_, text in texts.items()], render, Limit(cut, "split"))
    return TokenRows([portion])


def test_pieces_of_a_row_are_one_row() -> None:
    texts = {"a": "xx" * 9, "b": "other", "c": "xx" * 9, "d": "xx" * 9 + "y", "e": "xx" * 4 + "x"}
    data = split(4, texts)
    assert len(data) > len(texts)
    digests = digests_of(data, 4)
    assert [id_ for _, id_ in digests] == list(texts)
    assert repeats(digests).first == (("c", "a"),)
    assert repeats(digests_of(data)).count > 4  # what it would be piece by piece


@pytest.mark.slow
@given(st.lists(st.text("xy", min_size=2, max_size=14), min_size=1, max_size=8), st.integers(1, 5))
def test_split_rows_repeat_as_whole_ones_do(texts: list[str], cut: int) -> None:
    named = {f"r{i}": text for i, text in enumerate(texts)}
    assert repeats(digests_of(split(cut, named), cut)) == repeats(digests_of(split(100, named)))


def test_ids_that_look_like_pieces_stay_rows() -> None:
    named = digests_of(rows([1, 2], [1, 2], [7] * 9, ids=["a#1", "a#2", "b#1"]), 3)
    assert [id_ for _, id_ in named] == ["a#1", "a#2", "b#1"] and repeats(named).first == (("a#2", "a#1"),)


@pytest.mark.parametrize("split_name", ["train", "eval"])
def test_what_is_in_both_splits(split_name: str) -> None:
    digests = {"train": digests_of(rows([1, 2, 3], [4, 5])), "eval": digests_of(rows([4, 5], [6, 7], [4, 5]))}
    assert shared(digests).first == (("row 0", "row 1"), ("row 2", "row 1"))
    assert shared({split_name: digests[split_name]}).count == 0
