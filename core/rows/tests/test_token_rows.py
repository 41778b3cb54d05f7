"""Rows in portions are the rows, however they are cut; a sum of tallies does not depend on the cut either."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from finetooth_hooks import DataError, Datum, Rendered, Text
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.preparing import render_rows
from finetooth_rows.storage.token_rows import TokenPortion, TokenRows
from finetooth_rows.tally import Tally
from hypothesis import given, settings
from hypothesis import strategies as st

ROW = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.sampled_from([0.0, 1.0, 0.25, -2.0])), min_size=2, max_size=9)


@st.composite
def cut_rows(draw: st.DrawFn) -> tuple[list[tuple[str, list[int], list[float]]], TokenRows]:
    """Rows, and the same in portions, some of them empty."""
    rows = [
        (f"f:{i}", [t for t, _ in row], [w for _, w in row]) for i, row in enumerate(draw(st.lists(ROW, max_size=8)))
    ]
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    portions = []
    for begin, end in pairwise([0, *cuts, len(rows)]):
        part = rows[begin:end]
        tokens = [token for _, row, _ in part for token in row]
        weights = [weight for _, _, row in part for weight in row]
        portions.append(
            TokenPortion.pack([id_ for id_, _, _ in part], [len(row) for _, row, _ in part], tokens, weights)
        )
    return rows, TokenRows(portions)


@settings(deadline=None)
@given(cut_rows())
def test_rows_come_out_as_they_went_in(given: tuple[list[tuple[str, list[int], list[float]]], TokenRows]) -> None:
    assert given[1].lengths.tolist() == [len(tokens) for _, tokens, _ in given[0]]
    rows, found = given
    assert len(found) == len(rows)
    for datum, (id_, tokens, weights) in zip(found, rows, strict=True):
        wanted = Datum.from_tokens(tokens, weights, id=id_)
        assert datum.id == id_ and datum.tokens.tolist() == wanted.tokens.tolist()
        assert datum.targets.tolist() == wanted.targets.tolist() and datum.targets.dtype == np.int64
        assert datum.fields["weights"].tolist() == wanted.fields["weights"].tolist()
        assert datum.fields["weights"].dtype == np.float32 and datum.mask.tolist() == wanted.mask.tolist()
    assert [datum.id for datum in found[1:-1]] == [id_ for id_, _, _ in rows[1:-1]]
    if rows:
        assert found[-1].id == rows[-1][0]
    for index in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            found[index]


@settings(deadline=None)
@given(cut_rows(), st.integers(0, 80), st.integers(0, 30))
def test_spans_and_places(
    given: tuple[list[tuple[str, list[int], list[float]]], TokenRows], begin: int, n: int
) -> None:
    rows, found = given
    flat = [(id_, i, token) for id_, tokens, _ in rows for i, token in enumerate(tokens)]
    assert found.token_count == len(flat)
    assert found.span(begin, begin + n).tolist() == [token for _, _, token in flat[begin : begin + n]]
    if begin < len(flat):
        assert found.place(begin) == flat[begin][:2]


def _render(example: object) -> Rendered:
    assert isinstance(example, Text)
    if example.text.startswith("b"):
        raise DataError("", "bad")
    return Rendered(
        tuple(range(len(example.text))), tuple(float(c != ".") for c in example.text), remarks=(example.text[:1],)
    )


@settings(deadline=None)
@given(
    st.lists(st.text("ab.", max_size=7), max_size=12),
    st.integers(0, 12),
    st.sampled_from(["drop", "truncate", "raise"]),
)
def test_tallies_add_up(texts: list[str], cut: int, excess: str) -> None:
    rows = [(f"f:{i}", Text(text)) for i, text in enumerate(texts)]
    limit = Limit(4, excess)
    _, whole = render_rows(rows, _render, limit)
    _, first = render_rows(rows[:cut], _render, limit)
    _, second = render_rows(rows[cut:], _render, limit)
    added = Tally()
    for part in (first, second):
        added.merge(Tally.from_json(json.loads(json.dumps(part.as_json()))))
    if whole.refused is not None:  # what follows a refused row is not looked at
        assert str(added.refused) == str(whole.refused)
        return
    assert added.as_json() == whole.as_json()
