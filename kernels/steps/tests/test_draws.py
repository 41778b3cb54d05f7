"""Random numbers of data: a function of their keys alone, and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_steps.draws import keep_mask, places_of, position_keys, uniform_words


def test_a_longer_datum_begins_with_the_numbers_of_a_shorter() -> None:
    short, long = (uniform_words(position_keys(3, 5, 2, length), "layers.0", 16) for length in (7, 20))
    np.testing.assert_array_equal(long[:7], short)


def test_every_key_changes_the_numbers() -> None:
    given = {"seed": 3, "step": 5, "place": 2, "length": 8}
    first = uniform_words(position_keys(**given), "layers.0", 64)
    for name in ("seed", "step", "place"):
        other = uniform_words(position_keys(**{**given, name: given[name] + 1}), "layers.0", 64)
        assert (other == first).mean() < 0.01
    assert (uniform_words(position_keys(**given), "layers.1", 64) == first).mean() < 0.01
    assert len(np.unique(first)) == first.size


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 0.9])
def test_the_share_is_kept_in_rows_columns_and_pairs(share: float) -> None:
    """Within five standard deviations of independent draws: as a whole, by row, by column, and in neighbours."""
    keep = np.concatenate(
        [keep_mask(uniform_words(position_keys(0, 1, place, 64), "q", 256), share) for place in range(16)]
    )
    dropped = 1.0 - keep
    deviation = np.sqrt(share * (1 - share))
    assert abs(dropped.mean() - share) < 5 * deviation / np.sqrt(dropped.size)
    for axis in (0, 1):
        means = dropped.mean(axis)
        assert np.abs(means - share).max() < 6 * deviation / np.sqrt(dropped.shape[axis])
    for pairs in (dropped[1:] * dropped[:-1], dropped[:, 1:] * dropped[:, :-1], dropped[64:] * dropped[:-64]):
        of_pairs = np.sqrt(share**2 * (1 - share**2))
        assert abs(pairs.mean() - share**2) < 8 * of_pairs / np.sqrt(pairs.size)


def test_data_without_a_place_are_counted() -> None:
    data = [Datum.from_tokens([1, 2, 3]) for _ in range(3)]
    assert places_of(data) == (0, 1, 2)
    assert places_of(data, 4) == (4, 5, 6)
    placed = [Datum(data[0].input, data[0].targets, place=9), data[1]]
    assert places_of(placed, 4) == (9, 5)
