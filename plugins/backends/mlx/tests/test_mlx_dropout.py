"""Dropout drops what the reference drops, in NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from finetooth_mlx.dropout import Draws
from finetooth_steps.draws import keep_mask, position_keys, uniform_words


def test_masks_are_those_of_the_reference() -> None:
    keys, draws = np.stack([position_keys(3, 5, place, 9) for place in (0, 7)]), Draws()
    with draws.keyed(keys):
        found = np.array(draws.dropped(mx.ones((2, 9, 32)), 0.25, "layers.0.q_proj"))
    mask = keep_mask(uniform_words(keys, "layers.0.q_proj", 32), 0.25)
    assert 0.15 < 1 - mask.mean() < 0.35
    np.testing.assert_allclose(found, mask / 0.75, rtol=1e-6)
