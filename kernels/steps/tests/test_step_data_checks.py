"""What cannot be computed, or not side by side, is refused by name before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Datum, EngineError, ImageChunk, TokenChunk
from finetooth_steps.data_checks import check_data, check_fields, check_gradients


def _data(lengths: list[int], groups: list[int] | None = None) -> list[Datum]:
    keys = [None] * len(lengths) if groups is None else [f"g{g}" for g in groups]
    return [
        Datum.from_tokens([1] * (n + 1), id=f"d{i}", group=key)
        for i, (n, key) in enumerate(zip(lengths, keys, strict=True))
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": (ImageChunk(b"", "png", 4),)}, "image"),
        ({"parents": np.array([-1, 0, 0, 2])}, "parents is a tree"),
        ({"parents": np.array([-1, 1, 1, 2])}, "parents[1] is 1, which does not stand before position 1"),
        ({"parents": np.array([0, 0, 1, 2])}, "parents[0] is 0"),
        ({"parents": np.array([-1, 0, -2, 2])}, "parents[2] is -2"),
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


def test_the_first_id_beyond_the_vocabulary_is_refused_and_the_last_within_is_not() -> None:
    last = Datum.from_tokens([1, 2, 49], id="last")
    check_data([last], vocab_size=50, max_positions=0)
    with pytest.raises(DataError, match=r"last: (input|target) id 49"):
        check_data([last], vocab_size=49, max_positions=0)


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


def test_a_field_or_scalar_that_only_some_data_have_is_refused_but_for_weights() -> None:
    plain = Datum.from_tokens([1, 2, 3], id="plain:1")
    check_fields([plain, replace(plain, fields={"weights": np.ones(2)})])
    with pytest.raises(DataError, match=r"^plain:1: it lacks the scalar 'label'"):
        check_fields([replace(plain, scalars={"label": 1.0}), plain])
    with pytest.raises(DataError, match=r"^plain:1: it lacks the field 'advantages'"):
        check_fields([plain, replace(plain, fields={"advantages": np.ones(2)}, id="other:2")])
    with pytest.raises(DataError, match=r"^wide:1: field 'weights' has shape"):
        each = replace(plain, fields={"weights": np.ones(2)})
        check_fields([each, replace(plain, fields={"weights": np.ones((2, 3))}, id="wide:1")])


def test_gradients_belong_to_their_data() -> None:
    data = _data([3, 2])
    check_gradients(data, [np.ones(3), np.zeros(2)])
    for grads, words in (
        ([np.ones(3)], "1 gradients for 2 data"),
        ([np.ones(3), np.ones(3)], "gradient of 'd1' has shape"),
        ([np.array([0.0, np.nan, 1.0]), np.ones(2)], "gradient of 'd0' is not finite"),
    ):
        with pytest.raises(EngineError, match=words):
            check_gradients(data, grads)
