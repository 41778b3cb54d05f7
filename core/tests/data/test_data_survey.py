"""What is said of rows as a whole, against plain counting."""

from __future__ import annotations

import numpy as np
from finetooth_core.data.survey import digests_of, histogram, padding, repeats
from finetooth_hooks.token_rows import TokenPortion, TokenRows
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=60)


@given(LENGTHS)
def test_every_row_is_in_one_range(lengths: list[int]) -> None:
    bars = histogram(np.array(lengths))
    assert len(bars) <= 10 and bars[0][0] == min(lengths) and bars[-1][1] == max(lengths)
    for start, stop, count in bars:
        assert count == sum(start <= length <= stop for length in lengths)
    assert sum(count for _, _, count in bars) == len(lengths)


@given(LENGTHS, st.integers(1, 9), st.integers(300, 2000))
def test_padding_is_what_rectangles_hold_beside_rows(lengths: list[int], batch_size: int, budget: int) -> None:
    whole = in_budget = used = 0
    for start in range(0, len(lengths), batch_size):
        batch = sorted(length - 1 for length in lengths[start : start + batch_size])
        used += sum(batch)
        whole += len(batch) * batch[-1]
        while batch:
            size = max(n for n in range(1, len(batch) + 1) if n == 1 or n * batch[n - 1] <= budget)
            in_budget += size * batch[size - 1]
            batch = batch[size:]
    assert padding(np.array(lengths), batch_size, None) == 1 - used / whole
    assert padding(np.array(lengths), batch_size, budget) == 1 - used / in_budget


def test_repeats_name_the_row_they_repeat() -> None:
    tokens = [[1, 2, 3], [4, 5], [1, 2, 3], [1, 2], [1, 2, 3]]
    portion = TokenPortion.pack(
        [f"row {i}" for i in range(5)],
        [len(row) for row in tokens],
        [token for row in tokens for token in row],
        [1.0] * 13,
    )
    found = repeats(digests_of(TokenRows([portion])))
    assert (found.count, found.first) == (2, (("row 2", "row 0"), ("row 4", "row 0")))
