"""What the terminal shows of tokens: control tokens cannot be faked by text, nothing is unseen."""

from __future__ import annotations

import re

import pytest
from finetooth_data import row_text
from finetooth_data.views import Piece, RowView
from finetooth_data.visible import visible
from hypothesis import given
from hypothesis import strategies as st

OPEN, CLOSE = "\u27e8", "\u27e9"
TEXT = st.text(st.sampled_from("[[]]\u27e8\u27e9<|>ab\u200b\u23ce\\\n"), min_size=1, max_size=6)


def piece(text: str, weight: float = 0.0, *, special: bool = False) -> Piece:
    return Piece((1,), text, (weight,), special)


def shown(text: str) -> str:
    (found,) = visible([piece(text)])
    return found


PIECES = st.lists(
    st.one_of(
        st.builds(piece, TEXT, st.sampled_from([0.0, 1.0])),
        st.just(piece("<|im_end|>", special=True)),
        st.just(piece("<|im_end|>", 1.0, special=True)),
    ),
    min_size=1,
    max_size=8,
)


@given(PIECES)
def test_only_control_tokens_stand_in_angle_brackets(pieces: list[Piece]) -> None:
    whole = "".join(visible(pieces))
    assert whole.count(OPEN) == whole.count(CLOSE) == sum(one.special for one in pieces)
    assert re.findall(f"{OPEN}(.*?){CLOSE}", whole) == ["<|im_end|>"] * whole.count(OPEN)


@pytest.mark.slow
@given(PIECES)
def test_marks_around_what_trains_can_be_read_back(pieces: list[Piece]) -> None:
    """Reading from the left, `[[` begins what trains and `]]` before no further `]` ends it."""
    text = row_text.render(RowView(1, "id", tuple(pieces), "used"), color=False).plain.split("\n", 1)[1]
    trained = "".join(re.findall(r"\[\[(.*?\]?)\]\](?!\])", text, re.DOTALL))
    expected = "".join(one for one, of in zip(visible(pieces, brackets=True), pieces, strict=True) if any(of.weights))
    assert trained == expected


@given(st.text(max_size=30))
def test_every_character_can_be_seen_or_joins_what_can(text: str) -> None:
    found = shown(text).replace("\u23ce\n", "")
    kept = {c for c in found if not c.isprintable()}
    assert all(c in "\u200c\u200d" or 0xE0020 <= ord(c) < 0xE0080 for c in kept)


@given(st.text(st.characters(categories=("Lu", "Ll", "Nd", "Po", "Sm", "Zs"), max_codepoint=126), max_size=30))
def test_plain_text_is_as_it_is(text: str) -> None:
    assert shown(text) == text


FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
JOINED = {
    "a family": FAMILY,
    "a skin": "\U0001f44d\U0001f3fd\u200d\u2642\ufe0f",
    "a heart": "\u2764\ufe0f\u200d\U0001f525",
    "the flag of England": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Sinhala": "\u0d9a\u0dca\u200d\u0dbb",
}


@pytest.mark.parametrize("text", JOINED.values(), ids=JOINED)
def test_what_joins_stays(text: str) -> None:
    assert shown(text) == text
    assert "".join(visible([piece(character) for character in text])) == text  # a token each


UNSEEN = {
    "pass\u200bword": r"pass\u200bword",
    "a\u200db": r"a\u200db",
    "x\u2060\ufeff": r"x\u2060\ufeff",
    "\U000e0068\U000e0069": r"\U000e0068\U000e0069",
    "a\u202eb": r"a\u202eb",
    "a\xa0b\u3000c": r"a\xa0b\u3000c",
    "a\t\r\x1b[0m": "a\\t\\r\\x1b[0m",
    "a\u3164b": r"a\u3164b",
    "a\ufe0f\ufe01\U000e0101": "a\ufe0f" + r"\ufe01\U000e0101",
}


@pytest.mark.parametrize(("text", "expected"), UNSEEN.items())
def test_what_cannot_be_seen_is_written_out(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_spelled_and_real_differ_in_colour_too() -> None:
    pieces = (piece("<|im_end|>", 1.0), piece("<|im_end|>", 1.0, special=True))
    text = row_text.render(RowView(1, "id", pieces, "used"), color=True).plain
    assert f"<|im_end|>{OPEN}<|im_end|>{CLOSE}" in text


def test_each_position_has_its_target() -> None:
    pieces = (
        piece("a"),
        Piece((7, 8), "\u00e9", (0.0, 1.0)),
        Piece((9, 9, 9), "[image 2x2 -> 3 tokens]", (0.0, 0.0, 0.0), special=True, medium=True),
        Piece((5,), "\n", (0.5,), cut=True),
    )
    view = RowView(1, "id", pieces, "used")
    found = [(t.position, t.id, t.text, t.target, t.target_text, t.weight, t.cut) for t in view.targets]
    picture = "[image 2x2 -> 3 tokens]"
    assert found == [
        (0, 1, "a", 7, "\u00e9 (1 of 2)", 0.0, False),
        (1, 7, "\u00e9 (1 of 2)", 8, "\u00e9 (2 of 2)", 1.0, False),
        (2, 8, "\u00e9 (2 of 2)", 9, picture, 0.0, False),
        (3, 9, picture, 9, picture, 0.0, False),
        (4, 9, picture, 9, picture, 0.0, False),
        (5, 9, picture, 5, "\n", 0.5, True),
    ]
    assert view.positions == 6

    from rich.console import Console

    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(row_text.targets(console, view))
    lines = captured.get().splitlines()
    assert lines[0] == "Targets of row 1; 1 further is cut off"
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "2", "3-4"]
    assert lines[3].split() == ["1", "7", "'\u00e9", "(1", "of", "2)'", "8", "'\u00e9", "(2", "of", "2)'", "1"]
