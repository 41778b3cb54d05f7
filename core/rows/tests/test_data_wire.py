"""What goes over the pipe comes out as it went in; what cannot is not sent."""

from __future__ import annotations

import io
from datetime import date
from typing import Any

import pytest
from finetooth_hooks import DataError, Row
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.protocols import Portion
from finetooth_rows import worker_wire as wire
from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import Work
from finetooth_rows.rendering_work import Rendered
from finetooth_rows.storage.token_rows import TokenPortion
from finetooth_rows.tally import Tally
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=3))
def test_rows_travel(values: list[dict[str, Any]]) -> None:
    work = Work(1, tuple(Row(f"r:{i}", row) for i, row in enumerate(values)), 7)
    packed = wire.pack_work(work, True)
    assert packed is not None
    assert wire.unpack_work(*packed) == work


@pytest.mark.parametrize("value", [b"bytes", date(2026, 1, 1), (1, 2), {1: "a"}, {1, 2}, float("nan")])
def test_what_json_would_change_stays(value: Any) -> None:
    assert wire.pack_work(Work(0, (Row("r:1", {"a": [value]}),), 1), True) is None


@given(st.binary(max_size=50), st.lists(st.integers(0, 2**40), max_size=2))
def test_portions_and_messages_travel(content: bytes, place: list[int]) -> None:
    work = Work(2, Portion(content, tuple(place)), len(content))
    packed = wire.pack_work(work, False)
    assert packed is not None
    pipe = io.BytesIO()
    wire.send(pipe, *packed)
    wire.send(pipe, {"second": 2})
    whole = pipe.getvalue()
    pipe.seek(0)
    received = wire.receive(pipe)
    assert received is not None
    assert wire.unpack_work(*received) == work and received[0]["render"] is False
    assert wire.receive(pipe) == ({"second": 2}, b"") and wire.receive(pipe) is None
    with pytest.raises(EOFError):
        broken = io.BytesIO(whole[:-1])
        wire.receive(broken)
        wire.receive(broken)


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, 0.5])), min_size=1), max_size=5))
def test_results_travel(rows: list[list[tuple[int, float]]]) -> None:
    tokens, weights = [t for row in rows for t, _ in row], [w for row in rows for _, w in row]
    portion = TokenPortion.pack([f"é{i}" for i in range(len(rows))], [len(row) for row in rows], tokens, weights)
    error = DataError("x:1", "wrong", action="mend it")
    tally = Tally(
        rows=9,
        dropped={"long": 2},
        dropped_ids={"long": ["a"]},
        unusable=Problems.of([error]),
        refused=Problems.of([error]),
    )
    reading = Reading({0: 4, 2: 5}, {2: Problems.of([error])}, Problems.of([error] * 7), bytearray(b"digests!"))
    header, parts = wire.pack_rendered(Rendered(portion, tally, reading, (("topic", "text"),), 11))
    found = wire.unpack_rendered(header, b"".join(parts))
    assert list(found.portion.ids) == list(portion.ids)
    for mine, sent in zip(found.portion.arrays, portion.arrays, strict=True):
        assert mine.dtype == sent.dtype and mine.tolist() == sent.tolist()
    assert found.tally.as_json() == tally.as_json() and found.reading.as_json() == reading.as_json()
    assert found.reading.digests == reading.digests and found.notes == (("topic", "text"),) and found.size == 11
    assert str(found.tally.refused.first[0]) == "x:1: wrong (mend it)" and found.reading.rows == 9
