"""What a step is divided by: groups and counts by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from finetooth_hooks import Datum, EngineError, TokenChunk
from finetooth_steps.groups import group_indices
from finetooth_steps.normalizers import count_normalizers, divisor


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


def test_a_component_is_divided_by_its_own_normalizer() -> None:
    counts = {"weights": 4.5, "tokens": 0.0}
    assert divisor("a:loss", "weights", counts, 1.0) == 4.5
    assert divisor("a:loss", "none", counts, 1.0) == 1.0
    assert divisor("a:loss", "tokens", counts, np.float32(0.0)) == 1.0  # nothing counts, and nothing was added up
    with pytest.raises(EngineError, match="'a:loss': the normalizer 'tokens' of the step is 0"):
        divisor("a:loss", "tokens", counts, np.float32(0.5))
    with pytest.raises(EngineError, match="'a:loss' normalises by 'groups', which the normalizer given does not hold"):
        divisor("a:loss", "groups", counts, 1.0)
