"""What a report says of lengths, against NumPy, and of what all rows begin with; and where rows begin among tokens laid
end to end."""

from __future__ import annotations

import numpy as np
from finetooth_hooks import Rendered, Text
from finetooth_rows.preparing import render_rows
from finetooth_rows.storage.token_rows import TokenPortion, TokenRows
from finetooth_rows.tally import Tally
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 3000), max_size=80)


def tally_of(lengths: list[int]) -> Tally:
    rows = iter([Rendered((1,) * (n + 1), (1.0,) * (n + 1)) for n in lengths])
    _, tally = render_rows([(f"row:{i}", Text("")) for i in range(len(lengths))], lambda _: next(rows), None)
    return tally


@given(LENGTHS, LENGTHS)
def test_lengths_at_equal_shares_whatever_the_portions(first: list[int], second: list[int]) -> None:
    tally = tally_of(first)
    tally.merge(tally_of(second))
    lengths = [*first, *second]
    assert Tally.from_json(tally.as_json()).lengths == tally.lengths == tally_of(lengths).lengths
    if not lengths:
        assert tally.lengths == ()
        return
    expected = np.quantile(lengths, np.linspace(0, 1, len(tally.lengths)), method="lower")
    found = np.array(tally.lengths)
    assert (np.abs(found - expected) <= 0.05 * expected + 0.5).all()
    assert found.max() <= max(lengths)


TOKENS = st.lists(st.integers(1, 2), max_size=6)


@given(TOKENS, st.lists(TOKENS, max_size=9), st.integers(0, 9))
def test_what_all_rows_begin_with_whatever_the_portions(begin: list[int], ends: list[list[int]], cut: int) -> None:
    """The last token of a row is no position."""
    rows = [[*begin, *end, 0] for end in ends]

    def read(some: list[list[int]]) -> Tally:
        rendered = iter([Rendered(tuple(row), (1.0,) * len(row)) for row in some])
        return render_rows([(f"row:{i}", Text("")) for i in range(len(some))], lambda _: next(rendered), None)[1]

    tally = read(rows[:cut])
    tally.merge(read(rows[cut:]))
    positions = [row[:-1] for row in rows]
    alike = [n for n in range(13) if len({tuple(row[:n]) for row in positions}) == 1 and min(map(len, positions)) >= n]
    assert Tally.from_json(tally.as_json()).report("train").beginning == max(alike, default=0)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_where_rows_begin(portions: list[list[int]], data: st.DataObject) -> None:
    made = [TokenPortion.pack(["r"] * len(of), of, [0] * sum(of), [1.0] * sum(of)) for of in portions]
    lengths = [length for of in portions for length in of]
    begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    begin = data.draw(st.integers(0, sum(lengths)))
    end = data.draw(st.integers(begin, sum(lengths) + 3))
    found = TokenRows(made).begins(begin, end)
    assert found.tolist() == [int(at) - begin for at in begins if begin <= at < end]
