"""The pieces of a datum by its parents, against the paths that the parents say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from finetooth_hooks import Datum
from finetooth_steps.segments import Piece, is_tree, pieces_of, positions_of
from hypothesis import given
from hypothesis import strategies as st


def test_sequences_of_a_row() -> None:
    datum = replace(Datum.from_tokens(range(1, 8)), parents=np.array([-1, 0, 1, -1, 3, -1]))
    assert pieces_of(datum) == (Piece(0, 3), Piece(3, 5), Piece(5, 6))
    assert pieces_of(Datum.from_tokens(range(1, 8))) == (Piece(0, 6),)
    assert not is_tree(pieces_of(datum)) and positions_of(pieces_of(datum)).tolist() == [0, 1, 2, 0, 1, 0]
    assert pieces_of(datum, 4) == (Piece(0, 3), Piece(3, 4)), "cut off behind"


def test_a_segment_is_cut_where_another_continues_it() -> None:
    datum = replace(Datum.from_tokens(range(1, 8)), parents=np.array([-1, 0, 1, 2, 1, 4]))
    pieces = pieces_of(datum)
    assert pieces == (Piece(0, 2), Piece(2, 4, 0, 2), Piece(4, 6, 0, 2)) and is_tree(pieces)


@given(st.data())
def test_positions_are_the_lengths_of_paths(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 24))
    parents = np.array([data.draw(st.integers(-1, i - 1)) for i in range(n)])
    datum = replace(Datum.from_tokens(range(1, n + 2)), parents=parents)
    pieces = pieces_of(datum)
    assert [at for piece in pieces for at in range(piece.start, piece.stop)] == list(range(n))
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    assert positions_of(pieces).tolist() == depths
    for number, piece in enumerate(pieces):
        assert piece.above < number
        last = -1 if piece.above < 0 else pieces[piece.above].stop - 1
        assert parents[piece.start] == last
