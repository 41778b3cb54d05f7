"""Datum: lengths always agree, alignment is that of the wire, defaults are the documented ones."""

from __future__ import annotations

import numpy as np
import pytest
from finetooth_hooks import Datum, ImageChunk, TokenChunk
from hypothesis import given
from hypothesis import strategies as st

tokens_and_weights = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 99), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n),
    )
)


@given(tokens_and_weights)
def test_targets_are_the_next_tokens(pair: tuple[list[int], list[float]]) -> None:
    tokens, weights = pair
    datum = Datum.from_tokens(tokens, weights, scalars={"label": 1.0}, group="g", id="x:1")
    assert len(datum) == len(tokens) - 1
    assert [*datum.tokens.tolist(), tokens[-1]] == tokens
    assert datum.targets.tolist() == tokens[1:]
    assert datum.mask.tolist() == [w != 0 for w in weights[1:]]
    np.testing.assert_allclose(datum.fields["weights"], weights[1:])
    assert (datum.scalars, datum.group, datum.id) == ({"label": 1.0}, "g", "x:1")


@given(st.lists(st.integers(0, 99), min_size=2, max_size=9))
def test_without_weights_every_target_counts(tokens: list[int]) -> None:
    datum = Datum.from_tokens(tokens)
    assert datum.mask.all() and "weights" not in datum.fields


@given(tokens_and_weights, st.integers(1, 3))
def test_wrong_lengths_are_refused_by_name(pair: tuple[list[int], list[float]], extra: int) -> None:
    n = len(pair[0])
    chunk = TokenChunk(np.array(pair[0]))
    right = np.zeros(n, dtype=np.int64)
    wrong = np.zeros(n + extra)
    for name, arguments in {
        "targets": {"targets": wrong},
        "mask": {"targets": right, "mask": wrong},
        "advantages": {"targets": right, "fields": {"advantages": wrong}},
        "positions": {"targets": right, "positions": wrong},
        "parents": {"targets": right, "parents": wrong},
    }.items():
        with pytest.raises(ValueError, match=name) as error:
            Datum((chunk,), **arguments, id="row:9")  # type: ignore[arg-type]
        assert "row:9" in str(error.value)


def test_several_targets_a_position() -> None:
    weights = np.array([[0.5, 0.5], [0.0, 0.0], [0.0, 1.0]])
    datum = Datum((TokenChunk(np.arange(3)),), np.zeros((3, 2)), fields={"weights": weights})
    assert datum.mask.tolist() == [True, False, True]


def test_arrays_are_read_only() -> None:
    mine = np.array([1, 2, 3])
    datum = Datum.from_tokens(mine.tolist())
    for array in (datum.targets, datum.mask, datum.input[0].tokens):  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9


def test_images_count_by_their_length() -> None:
    datum = Datum((TokenChunk(np.arange(2)), ImageChunk(b"", "png", 3)), np.zeros(5, dtype=np.int64), id="picture")
    assert len(datum) == 5
    with pytest.raises(ValueError, match="picture"):
        datum.tokens  # noqa: B018


@pytest.mark.parametrize(("tokens", "weights"), [([1], None), ([], None), ([1, 2], [1.0])])
def test_too_little_is_refused(tokens: list[int], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="row:3"):
        Datum.from_tokens(tokens, weights, id="row:3")
