"""A conversation as a renderer writes it down: markup and content as one text, with a weight for every character.

Two ways lead from the text to tokens. Where a tokenizer encodes the text between two control tokens as if it stood
alone (byte-level vocabularies do), each stretch is encoded by itself, which is quick. Where it does not (it puts a
blank before the first word only, or a control token swallows the blanks around it), the whole text is encoded at once
as the model's own template would have it done. `Controls` finds out which, by trying.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from finetooth_hooks.data.examples import Rendered, Weighted
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import Tokenizer
from finetooth_toolbox.messages.encoding import Encoder, Range
from finetooth_toolbox.messages.markup import Control, Piece, Stretch, token_weights, tokenise

PROBES = ("word", " word", "\nword\n", "  ", "é1", "\n\n", "{", "word ")
"""Texts by which it is tried whether they are encoded alike alone and between control tokens."""

REMEMBERED = 4096
"""How many pieces of markup are remembered."""


class Part(NamedTuple):
    """Text with its weight; made for every message of every row, so it is a tuple.

    Attributes:
        control: the control token that the text spells.
        said: data, in which nothing is a control token, whatever it spells.
        weights: ranges of the text that weigh something else.
    """

    text: str
    weight: float
    control: Control | None = None
    said: bool = False
    weights: tuple[Weighted, ...] = ()


class Controls:
    """The control tokens of a family's markup in one tokenizer.

    Args:
        name: of the renderer, for messages.
        required: spellings of tokens without which the family cannot speak.
        optional: further ones that are taken as control tokens where the tokenizer has them.

    Raises:
        RecipeError: the tokenizer lacks a required one.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.ids: dict[str, int] = {}
        for spelling in (*required, *optional):
            id_ = tokenizer.token_id(spelling)
            if id_ is not None:
                self.ids[spelling] = id_
            elif spelling in required:
                raise RecipeError(
                    "data.renderer",
                    f"the tokenizer has no {spelling}, so its model does not speak {name}",
                    action="set data.renderer: jinja, or another renderer of `ft plugins list`",
                )
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._split: dict[tuple[str, bool], tuple[Part, ...]] = {}
        self.alone = all(self._encodes_alone(spelling, id_) for spelling, id_ in self.ids.items())
        """Text between two of them is encoded as if it stood alone."""

    def split(self, markup: str, trained: bool) -> tuple[Part, ...]:
        """Markup in parts, control tokens apart."""
        known = self._split.get((markup, trained))
        if known is not None:
            return known
        if len(self._split) >= REMEMBERED:  # markup that holds data, as a date does, is not kept for ever
            self._split.clear()
        parts: list[Part] = []
        at = 0
        for match in self._pattern.finditer(markup):
            if match.start() > at:
                parts.append(Part(markup[at : match.start()], float(trained)))
            parts.append(Part(match.group(), float(trained), Control(self.ids[match.group()], float(trained))))
            at = match.end()
        if at < len(markup):
            parts.append(Part(markup[at:], float(trained)))
        self._split[markup, trained] = tuple(parts)
        return tuple(parts)

    def _encodes_alone(self, spelling: str, id_: int) -> bool:
        for text in PROBES:
            ids = self.tokenizer.encode(f"{spelling}{text}{spelling}", special=True)
            if list(ids) != [id_, *self.tokenizer.encode(text), id_]:
                return False
        return True


class Page:
    """What a renderer writes one conversation on.

    Args:
        controls: the control tokens of its markup.
    """

    def __init__(self, controls: Controls) -> None:
        self._controls = controls
        self._parts: list[Part] = []
        self._begins: list[int] = []

    def message(self) -> None:
        """The next message begins here: what is written from now on belongs to it (`Rendered.spans`)."""
        self._begins.append(len(self._parts))

    def markup(self, text: str, trained: bool = False) -> None:
        """Write markup; control tokens that it spells are control tokens."""
        self._parts += self._controls.split(text, trained)

    def say(
        self, text: str, trained: bool = False, weights: Sequence[Weighted] = (), *, cut: tuple[int, int] | None = None
    ) -> None:
        """Write data: text that spells a control token stays plain text.

        Args:
            weights: ranges of `text` that weigh otherwise than `trained` says.
            cut: only these characters of `text` are written, half-open.
        """
        begin, end = (0, len(text)) if cut is None else cut
        if begin >= end:
            return
        if not weights:
            self._parts.append(Part(text[begin:end], float(trained), said=True))
            return
        moved = (Weighted(max(p.start, begin) - begin, min(p.stop, end) - begin, p.weight) for p in weights)
        inside = tuple(part for part in moved if part.start < part.stop)
        self._parts.append(Part(text[begin:end], float(trained), said=True, weights=inside))

    @property
    def text(self) -> str:
        """All that is written."""
        return "".join(part.text for part in self._parts)

    def rendered(self) -> Rendered:
        """Tokens and weights of the page. A token over characters of different weights has the least of them."""
        return self._by_pieces() if self._controls.alone else self._as_a_whole()

    # --- each stretch by itself -----------------------------------------------------------------------------------

    def _by_pieces(self) -> Rendered:
        pieces, places = self._pieces()
        tokens: list[int] = []
        weights: list[float] = []
        begins: list[int] = []
        encoded = tokenise(pieces, self._controls.tokenizer)
        wanted = iter([*places, (len(pieces), 0)])
        piece, character = next(wanted)
        for index, (ids, values) in enumerate(encoded):
            while piece == index:
                begins.append(len(tokens) + self._token_at(pieces[index], character))
                piece, character = next(wanted)
            tokens += ids
            weights += values
        begins += [len(tokens)] * (len(places) - len(begins))
        return Rendered(tuple(tokens), tuple(weights), _ranges(begins, len(tokens)))

    def _pieces(self) -> tuple[list[Piece], list[tuple[int, int]]]:
        """Control tokens and stretches, and where each message begins: in which piece, at which character of it."""
        pieces: list[Piece] = []
        places: list[tuple[int, int]] = []
        run: list[Part] = []
        length = 0
        begins = iter([*self._begins, -1])
        begin = next(begins)
        for index, part in enumerate(self._parts):
            while begin == index:
                places.append((len(pieces), length))
                begin = next(begins)
            if part.control is None:
                run.append(part)
                length += len(part.text)
                continue
            if run:
                if places and places[-1] == (len(pieces), length):
                    places[-1] = (len(pieces) + 1, 0)  # at the end of the stretch is at the control token
                pieces.append(_stretch(run, length))
                run, length = [], 0
            pieces.append(part.control)
        places += [(len(pieces), length)] * (len(self._begins) - len(places))
        if run:
            pieces.append(_stretch(run, length))
        return pieces, places

    def _token_at(self, piece: Piece, character: int) -> int:
        """Index of the first token of a piece that begins at a character or after it."""
        if not character or isinstance(piece, Control):
            return 0
        ids, offsets = self._controls.tokenizer.encode_with_offsets(piece.text)
        return next((i for i, (start, _) in enumerate(offsets) if start >= character), len(ids))

    # --- the whole text at once -----------------------------------------------------------------------------------

    def _as_a_whole(self) -> Rendered:
        of_characters: list[float] = []
        plain: list[Range] = []
        controls: dict[int, float] = {}
        starts: list[int] = []
        for part in self._parts:
            at = len(of_characters)
            starts.append(at)
            of_characters += _of_characters(part)
            if part.said:
                plain.append((at, len(of_characters)))
            elif part.control is not None:
                controls[at] = part.weight
        encoded = self._controls.encoder.encode(self.text, plain)
        weights = token_weights(encoded.offsets, of_characters)
        for i, (start, stop) in enumerate(encoded.offsets):
            if encoded.special[i] or encoded.ids[i] in self._controls.ids.values():
                # a token that swallows the blanks around it counts for itself, not for them
                own = next((controls[at] for at in range(start, stop) if at in controls), None)
                weights[i] = weights[i] if own is None else own
        characters = [starts[begin] if begin < len(starts) else len(of_characters) for begin in self._begins]
        begins = [
            next((i for i, (start, _) in enumerate(encoded.offsets) if start >= at), len(encoded.ids))
            for at in characters
        ]
        return Rendered(encoded.ids, tuple(weights), _ranges(begins, len(encoded.ids)))


def _ranges(begins: Sequence[int], end: int) -> tuple[Range, ...]:
    """From each beginning to the next one."""
    return tuple(zip(begins, [*begins[1:], end], strict=True)) if begins else ()


def _stretch(run: Sequence[Part], length: int) -> Stretch:
    """One stretch of what stands between two control tokens."""
    text = run[0].text if len(run) == 1 else "".join([part.text for part in run])
    first = length  # where all begins to weigh 1
    for part in reversed(run):
        if part.weight != 1 or part.weights:
            break
        first -= len(part.text)
    if _weighs_before(run, first):
        return Stretch(text, None, tuple(_runs(run)))
    return Stretch(text, first if first < length else None)


def _weighs_before(run: Sequence[Part], end: int) -> bool:
    """Something that stands before a character does not weigh 0."""
    at = 0
    for part in run:
        if at >= end:
            return False
        if part.weight or part.weights:
            return True
        at += len(part.text)
    return False


def _runs(run: Sequence[Part]) -> Iterator[Weighted]:
    """The weights of all characters, in ranges that follow each other."""
    at = 0
    for part in run:
        done = 0
        for own in part.weights:
            if own.start > done:
                yield Weighted(at + done, at + own.start, part.weight)
            yield Weighted(at + own.start, at + own.stop, own.weight)
            done = own.stop
        if done < len(part.text):
            yield Weighted(at + done, at + len(part.text), part.weight)
        at += len(part.text)


def _of_characters(part: Part) -> list[float]:
    weights = [part.weight] * len(part.text)
    for own in part.weights:
        weights[own.start : own.stop] = [own.weight] * (own.stop - own.start)
    return weights
