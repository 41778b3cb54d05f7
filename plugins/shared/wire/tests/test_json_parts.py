"""JSON read and written in parts is JSON: `json` judges."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetooth_kit import draws
from finetooth_wire import json_parts
from hypothesis import given, settings
from hypothesis import strategies as st

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=5)
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_parts, "PART", 7)
    monkeypatch.setattr(json_parts, "SIZES", (3, 7))
    monkeypatch.setattr(json_parts, "VALUES", 3)


@settings(max_examples=draws(200), deadline=None)
@given(value=VALUES, indent=st.none() | st.integers(0, 2))
def test_what_is_read_and_written_is_what_json_reads_and_writes(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert repr(json_parts.loads(text.encode())) == repr(json.loads(text))
    assert json_parts.dumps(value) == json.dumps(value, separators=(",", ":")).encode()


@settings(max_examples=draws(300), deadline=None)
@given(value=VALUES, data=st.data())
def test_what_is_no_json_is_none_here_either(value: Any, data: st.DataObject) -> None:
    """A letter of a text left out, doubled or exchanged."""
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(["", text[at] * 2, ",", "[", "]", "{", "}", '"', ":", "0", " "]))
    broken = (text[:at] + letter + text[at + 1 :]).encode()
    try:
        expected = repr(json.loads(broken))
    except ValueError as error:
        with pytest.raises(type(error)):
            json_parts.loads(broken)
    else:
        assert repr(json_parts.loads(broken)) == expected


@pytest.mark.parametrize(
    "text", ["[1,2,3,4,5,]", "[,1,2,3,4,5]", "[1,2,3,,4,5]", "[1,2,3,4,5", "[11111111,]", "[1,2,3 4,5,6]"]
)
def test_a_list_that_is_cut_into_parts_hides_no_mistake(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as found:
        json_parts.loads(text.encode())
    assert abs(found.value.pos - expected.value.pos) <= 1


def test_other_encodings_and_depths() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32-le"):
        assert json_parts.loads('["é\\ud800", 1, 2, 3]'.encode(encoding)) == ["é\ud800", 1, 2, 3]
    with pytest.raises(RecursionError):
        json_parts.loads(b"[" * 10**5)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_parts.dumps([1.0, 2.0, 3.0, 4.0, float("nan")], allow_nan=False)
    with pytest.raises(TypeError):
        json_parts.dumps([1.0, 2.0, 3.0, 4.0, object()])


def test_the_longest_stretch_in_one_go_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text of many values, and of rows: no call of Python's own reader or writer gets more than its part."""
    monkeypatch.undo()
    longest = []
    read, write = json.loads, json.JSONEncoder.encode
    monkeypatch.setattr(json, "loads", lambda text: (longest.append(len(text)), read(text))[1])
    monkeypatch.setattr(json.JSONEncoder, "encode", lambda self, o: (longest.append(len(str(o))), write(self, o))[1])
    rows = [{"tokens": list(range(100, 200)), "targets": [7] * 100} for _ in range(400)]
    for value in ({"prompt": list(range(10**6))}, {"data": rows, "loss": "cross_entropy"}):
        assert json_parts.loads(json_parts.dumps(value)) == value
    assert len(longest) > 50 and max(longest) <= 2 * json_parts.PART
