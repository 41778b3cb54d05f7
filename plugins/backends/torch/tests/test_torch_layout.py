"""The layout: every datum once, within the budget, groups whole; and the counts it is normalised by."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Datum, ImageChunk, TokenChunk
from finetooth_torch.layout import check_data, computed_length, count_normalizers, group_indices, lay_out, one_batch
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
        if together == "group":
            for group in units:
                assert [i for i in batch.rows if groups[i] == group] == [
                    i for i, key in enumerate(groups) if key == group
                ]


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


def test_normalizers_by_hand() -> None:
    data = [
        Datum.from_tokens([1, 2, 3], [0, 0.5, 2.0], group="a"),
        Datum.from_tokens([1, 2], [0, 0.0], group="a"),
        Datum.from_tokens([1, 2, 3]),
    ]
    assert count_normalizers(data) == {"weights": 4.5, "tokens": 4.0, "sequences": 2.0, "groups": 2.0, "none": 1.0}
    wide = Datum((TokenChunk(np.arange(3)),), np.ones((3, 4), int), mask=np.array([True, False, True]))
    assert count_normalizers([wide])["weights"] == 2.0
    each = replace(wide, fields={"weights": np.full((3, 4), 0.5)})
    assert count_normalizers([each])["weights"] == 4.0
    assert count_normalizers([wide])["tokens"] == 2.0


def test_groups_are_numbered_in_their_order() -> None:
    data = [Datum.from_tokens([1, 2], group=key) for key in ("b", "b", None, None, "a")]
    assert group_indices(data).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": (ImageChunk(b"", "png", 4),)}, "image"),
        ({"parents": np.zeros(4, int)}, "packing"),
        ({"input": (TokenChunk(np.array([1, 2, 3, 99])),)}, "input id 99"),
        ({"targets": np.array([1, 2, -1, 1])}, "target id -1"),
        ({"targets": np.ones((4, 2), int)}, "same number of targets"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    good = Datum.from_tokens([1, 2, 3, 4, 5], id="good:1")
    bad = replace(good, id="bad:7", **change)
    with pytest.raises(DataError, match="bad:7") as caught:
        check_data([good, bad], vocab_size=50, max_positions=0)
    assert words in str(caught.value)


def test_a_masked_target_may_be_anything() -> None:
    datum = Datum((TokenChunk(np.array([1, 2])),), np.array([-100, 3]), mask=np.array([False, True]))
    check_data([datum], vocab_size=50, max_positions=0)


def test_empty_too_long_and_torn_data_are_refused() -> None:
    empty = Datum((), np.zeros(0, int), id="none:1")
    for data, words in (
        ([], "no data"),
        ([empty], "none:1: it has no positions"),
        (_data([20]), "made for 10"),
        (_data([2, 2, 2], [0, 1, 0]), "do not stand next to each other"),
    ):
        with pytest.raises(DataError, match=words):
            check_data(data, vocab_size=50, max_positions=10)


def test_a_row_larger_than_the_budget_is_refused_by_name(kit: SimpleNamespace) -> None:
    data = kit.data(5, longest=20)
    longest = max(data, key=len)
    engine = kit.engine(micro_batch_tokens=len(longest) - 1)
    for call in (lambda: engine.forward_backward(data, kit.nll), lambda: engine.logprobs(data)):
        with pytest.raises(DataError, match=f"^{longest.id}: {len(longest)} positions, more than train.micro_batch"):
            call()
    assert len(kit.engine(micro_batch_tokens=len(longest)).logprobs(data)) == 5
