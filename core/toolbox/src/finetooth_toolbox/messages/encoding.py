"""Encodes rendered text: only markup becomes special tokens; the spelling of one in a message stays plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetooth_hooks.protocols import Tokenizer

Range = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text.

    Attributes:
        ids: token ids.
        offsets: their half-open character ranges.
        special: for each id, whether it is a special token.
    """

    ids: tuple[int, ...]
    offsets: tuple[Range, ...]
    special: tuple[bool, ...]


class Encoder:
    """Encodes with one tokenizer and remembers which ids are special."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special: dict[int, bool] = {}

    def is_special(self, id_: int) -> bool:
        """Whether the id is a special token, which decoding can leave out."""
        if id_ not in self._special:
            left = self._tokenizer.decode([id_], skip_special=True)
            self._special[id_] = not left and bool(self._tokenizer.decode([id_]))
        return self._special[id_]

    def spells_special(self, text: str) -> str:
        """The first special token that a text spells, empty if none."""
        ids, offsets = self._tokenizer.encode_with_offsets(text, special=True)
        place = next((offset for id_, offset in zip(ids, offsets, strict=True) if self.is_special(id_)), None)
        return "" if place is None else text[slice(*place)]

    def encode(self, text: str, plain: Sequence[Range] = ()) -> Encoded:
        """Tokens of a text.

        Args:
            plain: character ranges without special tokens, even if the text spells one.
        """
        ids, offsets = self._tokenizer.encode_with_offsets(text, special=True)
        special = [self.is_special(id_) for id_ in ids]
        spelled = [(id_, offset) for id_, offset, is_special in zip(ids, offsets, special, strict=True) if is_special]
        markup = [(id_, offset) for id_, offset in spelled if not _touches(_spelled(text, offset), plain)]
        if len(markup) == len(spelled):  # nothing plain spells a special token: the tokenizer's own result is right
            return Encoded(tuple(ids), tuple(offsets), tuple(special))
        return self._between(text, markup)

    def _between(self, text: str, markup: Sequence[tuple[int, Range]]) -> Encoded:
        """Special tokens where the markup has them, everything between them as plain text."""
        ids: list[int] = []
        offsets: list[Range] = []
        special: list[bool] = []
        position = 0
        for id_, (begin, end) in [*markup, (None, (len(text), len(text)))]:
            inner, ranges = self._tokenizer.encode_with_offsets(text[position:begin])
            ids += inner
            offsets += [(start + position, stop + position) for start, stop in ranges]
            special += [False] * len(inner)
            if id_ is not None:
                ids.append(id_)
                offsets.append((begin, end))
                special.append(True)
            position = end
        return Encoded(tuple(ids), tuple(offsets), tuple(special))


def _spelled(text: str, offset: Range) -> Range:
    """The range of a token's spelling, without surrounding blanks that it absorbed."""
    start, stop = offset
    spelled = text[start:stop].strip()
    if not spelled:
        return offset
    begin = text.index(spelled, start)
    return begin, begin + len(spelled)


def _touches(offset: Range, plain: Sequence[Range]) -> bool:
    """Whether a token has characters in one of the ranges."""
    return any(offset[0] < end and begin < offset[1] for begin, end in plain)
