"""`excess_length: split`: pieces of a row train what the row would, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetooth_hooks import Rendered, Text
from finetooth_hooks.data.preparation import Limit
from finetooth_rows.preparing import render_rows
from finetooth_rows.storage.token_rows import TokenRows
from hypothesis import given
from hypothesis import strategies as st

ROW = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.0, 1.0, 0.5])), min_size=2, max_size=40).filter(
    lambda row: any(weight for _, weight in row[1:])
)


@given(st.lists(ROW, max_size=5), st.integers(1, 12))
def test_every_target_trains_once_with_its_weight(rows: list[list[tuple[int, float]]], max_length: int) -> None:
    rendered = {f"r{i}": Rendered(tuple(t for t, _ in row), tuple(w for _, w in row)) for i, row in enumerate(rows)}
    portion, tally = render_rows(
        [(id_, Text(id_)) for id_ in rendered], lambda example: rendered[example.text], Limit(max_length, "split")
    )
    pieces = list(TokenRows([portion]))
    assert len({piece.id for piece in pieces}) == len(pieces) == tally.used
    split = 0
    for id_, row in rendered.items():
        mine = [piece for piece in pieces if piece.id.partition("#")[0] == id_]
        wanted = [  # (read, predicted, weight) of every target that trains, in order
            (row.tokens[i - 1], row.tokens[i], row.weights[i]) for i in range(1, len(row.tokens)) if row.weights[i]
        ]
        found = [
            (int(read), int(target), float(weight))
            for piece in mine
            for read, target, weight in zip(piece.tokens, piece.targets, piece.fields["weights"], strict=True)
            if weight
        ]
        assert found == wanted
        assert all(0 < len(piece.tokens) <= max_length for piece in mine)
        if len(row.tokens) - 1 <= max_length:
            assert [piece.id for piece in mine] == [id_]
        else:
            split += 1
            assert all(f"{id_}#" in piece.id for piece in mine)
            begins = [(int(piece.id.partition("#")[2]) - 1) * max_length for piece in mine]
            assert [int(piece.tokens[0]) for piece in mine] == [row.tokens[begin] for begin in begins]
    assert tally.report("train").changed == ({"split at train.max_length": split} if split else {})
    left = sum(
        -(-(len(row.tokens) - 1) // max_length) for row in rendered.values() if len(row.tokens) - 1 > max_length
    ) - sum("#" in piece.id for piece in pieces)
    assert sum(tally.dropped.values()) == left  # pieces that train nothing, counted


def test_it_matters_not_who_splits(prepare: Callable[..., Any], write: Callable[..., Path]) -> None:
    write([f"row {'x' * i} {i}." for i in range(30)])
    outcomes = []
    for data in ({"workers": 0}, {}, {"workers": 2, "cache": "off"}):
        done, _ = prepare(limit=Limit(9, "split"), data=data)
        outcomes.append(([(datum.id, datum.targets.tolist()) for datum in done.data], done.report))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    report = outcomes[0][1]
    assert report.rows == 30 and report.used > 60 and report.changed == {"split at train.max_length": 26}
    assert max(len(targets) for _, targets in outcomes[0][0]) == 9
    dropped, context = prepare(limit=Limit(9, "drop"))
    assert len(dropped.data) == 4 and "made now" in context.decisions["data.cache.train"].reason
