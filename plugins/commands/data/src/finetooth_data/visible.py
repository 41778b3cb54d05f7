"""Text as it can be seen: control tokens set apart from text that spells them, unseen characters written out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from finetooth_toolbox.text.controls import escaped

from finetooth_data.views import Piece

OPEN, CLOSE = "\u27e8", "\u27e9"
"""Stand around a control token; where text has them, they are written as escapes."""
FEED = "\u23ce"
BEGIN, END = "[[", "]]"
"""Stand around what trains, where colour is missing."""

_JOINER, _NON_JOINER = "\u200d", "\u200c"
_FLAG = "\U0001f3f4"
_TAGS = range(0xE0020, 0xE0080)
_SELECTORS = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0), range(0x180B, 0x1810))
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that Unicode does not count among the unseen ones, and that show nothing."""


def visible(pieces: Sequence[Piece], *, controls: bool = True, brackets: bool = False) -> list[str]:
    """What to show of each piece of a row.

    A line feed is its sign and a new line. What joins the parts of an emoji, a flag or a ligature stays, since it shows
    in what it joins; all else that cannot be seen is an escape (`\\u200b`).

    Args:
        controls: control tokens stand in angle brackets that text cannot have.
        brackets: double square brackets mark what trains, so text must not seem to have them.
    """
    shown: list[str] = []
    for at, piece in enumerate(pieces):
        before = _neighbour(pieces, at, -1)
        after = _neighbour(pieces, at, 1)
        text = "".join(_characters(piece.text, before, after, controls=controls))
        if piece.special:
            shown.append(f"{OPEN}{text}{CLOSE}" if controls else text)
        else:
            shown.append(_unbracketed(pieces, at, text) if brackets else text)
    return shown


def trains(piece: Piece) -> bool:
    """The piece is shown as what trains."""
    return any(piece.weights) and not piece.cut


def _neighbour(pieces: Sequence[Piece], at: int, step: int) -> str:
    """The text next to a piece, empty at an end and for a control token."""
    other = at + step
    same = 0 <= other < len(pieces) and not pieces[other].special and not pieces[at].special
    if not same:
        return ""
    if step > 0:
        return pieces[other].text
    # a flag's tags are many pieces behind it
    begin = at
    text = ""
    while begin > 0 and not pieces[begin - 1].special and len(text) < 16:
        begin -= 1
        text = pieces[begin].text + text
    return text


def _characters(text: str, before: str, after: str, *, controls: bool) -> Iterator[str]:
    whole = before + text + after
    for place in range(len(before), len(before) + len(text)):
        character = whole[place]
        if character == "\n":
            yield f"{FEED}\n"
        elif controls and character in (OPEN, CLOSE, FEED):
            yield escaped(character)
        elif character in (_JOINER, _NON_JOINER) or ord(character) in _TAGS:
            yield character if _joins(whole, place) else escaped(character)
        elif any(ord(character) in selectors for selectors in _SELECTORS):
            yield character if place and _takes_selector(whole[place - 1]) else escaped(character)
        else:
            seen = character.isprintable() and character not in _BLANK
            yield character if seen else escaped(character)


def _joins(whole: str, place: int) -> bool:
    """A joiner or tag where it shows: in an emoji, a flag, after a virama, between Arabic letters (RFC 5892, A.1 and
    A.2)."""
    before = whole[place - 1] if place else ""
    after = whole[place + 1] if place + 1 < len(whole) else ""
    if ord(whole[place]) in _TAGS:
        start = place
        while start and ord(whole[start]) in _TAGS:
            start -= 1
        return whole[start] == _FLAG
    if not before or not after:
        return False
    if unicodedata.combining(before) == 9:
        return True
    if whole[place] == _NON_JOINER:
        return unicodedata.bidirectional(before) == "AL" == unicodedata.bidirectional(after)
    return _is_emoji(before) and unicodedata.category(after) == "So"


def _is_emoji(character: str) -> bool:
    skin = 0x1F3FB <= ord(character) <= 0x1F3FF
    return skin or character == "\ufe0f" or unicodedata.category(character) == "So"


def _takes_selector(character: str) -> bool:
    """A variation selector behind it changes how it looks."""
    return character.isprintable() and not character.isspace() and not any(ord(character) in s for s in _SELECTORS)


def _unbracketed(pieces: Sequence[Piece], at: int, text: str) -> str:
    """Text in which no bracket can be taken for a mark around what trains: the second of two is an escape,
    and so is a bracket next to a mark in text that does not train."""
    piece = pieces[at]
    plain = not trains(piece)
    characters: list[str] = []
    previous = _last(pieces, at)
    for place, character in enumerate(text):
        first, last = place == 0, place == len(text) - 1
        beside = plain and (
            (character == "]" and first and at > 0 and trains(pieces[at - 1]))
            or (character == "[" and last and at + 1 < len(pieces) and trains(pieces[at + 1]))
        )
        double = character in "[]" and character == previous
        characters.append(_escape_bracket(character) if beside or double else character)
        previous = "" if beside or double else character
    return "".join(characters)


def _last(pieces: Sequence[Piece], at: int) -> str:
    """The character before a piece, if it is text that trains or does not as the piece does."""
    if not at or pieces[at - 1].special or trains(pieces[at - 1]) != trains(pieces[at]) or not pieces[at - 1].text:
        return ""
    return pieces[at - 1].text[-1]


def _escape_bracket(character: str) -> str:
    return f"\\x{ord(character):02x}"
