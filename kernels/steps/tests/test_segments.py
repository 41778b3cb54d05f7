"""Where the segments of a datum begin, and the positions that begin anew with each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from finetooth_hooks import Datum
from finetooth_steps.segments import positions_in, starts_of


def test_a_segment_begins_where_the_parent_changes() -> None:
    datum = replace(Datum.from_tokens(range(1, 8)), parents=np.array([4, 4, 4, 9, 9, 2]))
    assert starts_of(datum) == (0, 3, 5)
    assert starts_of(Datum.from_tokens(range(1, 8))) == (0,)


def test_positions_begin_anew_with_every_segment() -> None:
    assert positions_in((0, 3, 5), 6).tolist() == [0, 1, 2, 0, 1, 0]
    assert positions_in((0,), 4).tolist() == [0, 1, 2, 3]
    assert positions_in((0, 4), 4).tolist() == [0, 1, 2, 3], "a segment behind the end is none of this length"
