"""Control characters are written out, all else stays as it is."""

from __future__ import annotations

import unicodedata

from finetooth_toolbox.text.controls import escape_controls
from hypothesis import given
from hypothesis import strategies as st


def test_escapes_are_those_of_python() -> None:
    assert escape_controls("a\x1b[31mb\r\x00\x9b2J\x7f") == "a\\x1b[31mb\\r\\x00\\x9b2J\\x7f"


@given(st.text())
def test_no_control_character_is_left_and_nothing_else_changes(text: str) -> None:
    made = escape_controls(text)
    kept = "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\t\n")
    assert not [c for c in made if unicodedata.category(c) == "Cc" and c not in "\t\n"]
    assert made == text or len(kept) < len(text)
    assert escape_controls(kept) == kept and escape_controls(made) == made
