"""The moving picture of a terminal says what was printed, when it was, and stands still for who asks for that."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from make_animation import LAST, LONGEST, Shown, draw, shown

PRINTED = [(0.0, "$ ft run\r\n"), (1.0, "step 1\r"), (100.0, "step <2>\r\n"), (100.5, "done\r\n")]


def test_a_line_is_seen_from_when_it_was_printed_until_it_was_written_over() -> None:
    lines, scrolled, whole = shown(PRINTED)
    assert set(lines) == {
        Shown(0, "$ ft run", 0.0, None),
        Shown(1, "step 1", 1.0, 1.0 + LONGEST),
        Shown(1, "step <2>", 1.0 + LONGEST, None),
        Shown(2, "done", 1.5 + LONGEST, None),
    }, "a wait of 99 s is shortened"
    assert scrolled == [(0.0, 0)] and whole == pytest.approx(1.5 + LONGEST + LAST)
    drawn = ElementTree.fromstring(draw(PRINTED))
    texts = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(filter(None, texts)) == ["$ ft run", "done", "step 1", "step <2>"]
    assert "prefers-reduced-motion" in "".join(drawn.itertext())
    many = [(float(n), f"line {n}\r\n") for n in range(40)]
    assert shown(many)[1][-1][1] == 41 - 26, "the last line stays in sight"
