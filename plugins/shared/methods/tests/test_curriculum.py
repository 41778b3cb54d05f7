"""Rows in the order of their length in the first epoch, exact over a resume, and refused where there are no lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finetooth_hooks import RecipeError
from finetooth_kit.fake_context import TRAIN
from finetooth_methods.batched import Batches, refuse_curriculum

LENGTHS = [5, 1, 9, 3, 3, 7, 2]


def begun(order: str | None, seed: int = 0) -> Batches:
    train = replace(TRAIN, batch_size=2, epochs=2.0, max_steps=None, seed=seed, shuffle=True, curriculum=order)
    return Batches.of(len(LENGTHS), train, lambda: LENGTHS)


def rows(batches: Batches) -> list[int]:
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize("order, sign", [("shortest_first", 1), ("longest_first", -1)])
def test_the_first_epoch_is_sorted_and_the_second_as_without(order: str, sign: int) -> None:
    found, plain = rows(begun(order)), rows(begun(None))
    first = [sign * LENGTHS[row] for row in found[:7]]
    assert first == sorted(first) and sorted(found[:7]) == list(range(7))
    assert found[7:] == plain[7:] and plain[:7] != found[:7]


def test_equal_rows_come_in_the_order_of_the_seed() -> None:
    ties = {tuple(row for row in rows(begun("shortest_first", seed))[:7] if LENGTHS[row] == 3) for seed in range(20)}
    assert ties == {(3, 4), (4, 3)}
    assert rows(begun("shortest_first", 4)) == rows(begun("shortest_first", 4))


@pytest.mark.parametrize("done", [1, 3, 4, 6])
def test_a_restored_cursor_yields_what_would_have_come_next(done: int) -> None:
    whole = list(begun("longest_first"))
    again = begun("longest_first")
    again.restore({"step": done, "size": 7, "batch_size": 2})
    np.testing.assert_equal(list(again), whole[done:])


def test_a_method_without_lengths_refuses() -> None:
    train = replace(TRAIN, curriculum="shortest_first")
    for refused in (lambda: Batches.of(7, train), lambda: refuse_curriculum(train)):
        with pytest.raises(RecipeError, match=r"train\.shuffle: shortest_first: this method does not know"):
            refused()
