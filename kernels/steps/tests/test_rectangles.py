"""Rows of data side by side: what stands where none of them reaches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from finetooth_hooks import Datum
from finetooth_steps.layout import lay_out
from finetooth_steps.rectangles import loss_data, make_rectangle


def test_padding_stays_at_the_last_position_of_its_row() -> None:
    """A position that falls back is read as the beginning of another row, and one that goes on may be one that the
    model does not have."""
    whole = [Datum.from_tokens(list(range(1, n + 2)), id=str(n)) for n in (6, 3)]
    data = [replace(one, positions=np.arange(7, 7 + len(one.targets))) for one in whole]
    (batch,) = lay_out(data, budget=64)
    made = make_rectangle(data, batch, pad_id=0, convert=np.asarray)
    assert made.positions is not None
    by_length = dict(zip(batch.lengths, made.positions.tolist(), strict=True))
    assert by_length == {6: [7, 8, 9, 10, 11, 12], 3: [7, 8, 9, 9, 9, 9]}


def test_weights_that_nobody_gave_are_the_mask() -> None:
    """Beside data that have weights of their own, and where nothing is computed any more."""
    plain = Datum.from_tokens([1] * 6, [0, 0, 1, 0, 1, 1])
    given = Datum.from_tokens([1] * 4, [0, 0.5, 0, 2])
    masked = replace(plain, fields={}, mask=plain.mask)
    (batch,) = lay_out([masked, given], budget=64)
    seen = loss_data([masked, given], batch, np.asarray)
    assert seen.fields["weights"].tolist() == [[0, 1, 0, 1, 1], [0.5, 0, 2, 0, 0]]
    assert seen.mask.tolist() == [[False, True, False, True, True], [True, False, True, False, False]]


def test_targets_stand_under_the_tokens_that_they_follow() -> None:
    """Where a row's mask is false, and beyond its end, there are zeros."""
    data = [Datum.from_tokens([5, 6, 7, 8, 9], [0, 1, 0, 1, 1]), Datum.from_tokens([3, 4, 2], [0, 1, 1])]
    (batch,) = lay_out(data, budget=64)
    made = make_rectangle(data, batch, pad_id=0, convert=np.asarray)
    assert dict(zip(batch.lengths, made.tokens.tolist(), strict=True)) == {4: [5, 6, 7, 8], 2: [3, 4, 0, 0]}
    assert dict(zip(batch.lengths, made.targets.tolist(), strict=True)) == {4: [6, 0, 8, 9], 2: [4, 2, 0, 0]}
