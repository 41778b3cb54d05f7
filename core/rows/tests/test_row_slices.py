"""Slices of rows mean what they mean in Python and, in percent, in the datasets library."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from finetooth_hooks import RecipeError
from finetooth_rows.choices.choice import SourceChoice
from finetooth_rows.choices.slices import Slice, split_reference
from hypothesis import given, settings
from hypothesis import strategies as st

NUMBERS = st.none() | st.integers(-30, 30)


def text(start: int | None, stop: int | None, unit: str = "") -> str:
    return "[" + ":".join("" if bound is None else f"{bound}{unit}" for bound in (start, stop)) + "]"


@given(NUMBERS, NUMBERS, st.integers(0, 20))
def test_rows_are_sliced_as_a_list_is(start: int | None, stop: int | None, size: int) -> None:
    found = Slice.parse(text(start, stop), "data.train.slice")
    assert list(found.of(size)) == list(range(size))[start:stop]
    assert found.is_empty == (not any(range(many)[start:stop] for many in range(100)))
    if not found.needs_size:
        assert [place for place in found.of(None)[:100] if place < size] == list(range(size))[start:stop]


@settings(deadline=None)  # the first example imports the library
@given(st.none() | st.integers(-100, 100), st.none() | st.integers(-100, 100), st.integers(1, 1000))
def test_percentages_are_those_of_datasets(start: int | None, stop: int | None, size: int) -> None:
    datasets = pytest.importorskip("datasets")
    if start is None and stop is None:
        return
    try:
        peer = datasets.ReadInstruction.from_spec(f"train{text(start, stop, '%')}").to_absolute({"train": size})[0]
    except ValueError:  # it refuses a slice that begins behind its end
        return
    halves = any(bound is not None and bound * size % 100 == 50 for bound in (start, stop))
    first = 0 if peer.from_ is None else peer.from_
    last = size if peer.to is None else peer.to
    nothing = any(bound is not None and bound < 0 and -bound * size < 50 for bound in (start, stop))
    if not halves and not nothing:  # it rounds half a row to the even one, and takes -0 rows from the end for row 0
        assert Slice.parse(text(start, stop, "%"), "").of(size) == range(first, max(first, last))


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 999))
def test_neighbours_neither_overlap_nor_leave_a_gap(bounds: list[int], size: int) -> None:
    ends = [0, *sorted(bounds), 100]
    parts = [Slice.parse(f"[{a}%:{b}%]", "").of(size) for a, b in pairwise(ends)]
    assert [place for part in parts for place in part] == list(range(size))


@pytest.mark.parametrize("wrong", ["[5]", "[a:b]", "[1:2:3]", "[1.5:]", ":5", "[:5", "[%:]", ""])
def test_what_is_no_slice_is_refused(wrong: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.train\.slice: .*is not a slice of rows \(write \[:500\]"):
        Slice.parse(wrong, "data.train.slice")


def test_more_than_all_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than 100 %"):
        Slice.parse("[:101%]", "data.train.slice")


def test_a_slice_stands_behind_a_reference(tmp_path: Path) -> None:
    assert split_reference("rows.jsonl[:10%]") == ("rows.jsonl", "[:10%]")
    assert split_reference("org/name[100:200]") == ("org/name", "[100:200]")
    for whole in ("rows.jsonl", "data/*.jsonl", "data/[ab].jsonl", "data/part[0-9]", "[:5]", ""):
        assert split_reference(whole) == (whole, "")
    named = tmp_path / "odd[1:2]"
    named.touch()
    assert split_reference(str(named)) == (str(named), "")


def test_a_slice_of_a_list_does_not_replace_that_of_what_it_lists() -> None:
    first, second = (Slice.parse(text, "data.train.slice") for text in ("[:500]", "[100:200]"))
    listing, listed = SourceChoice("data.train", first, 7), SourceChoice("data.train.0", second, 9, 3.0)
    with pytest.raises(RecipeError, match=r"data.train: \[:500\] of what data.train.0 lists, which takes \[100:200\]"):
        listing.within(listed)
    plain = SourceChoice("data.train.0")
    assert (listing.within(plain).slice, SourceChoice("data.train").within(listed).slice) == (first, second)
