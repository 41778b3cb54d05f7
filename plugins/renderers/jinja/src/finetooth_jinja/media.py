"""Images, sounds and videos in rendered text: the chat template writes one placeholder for each, the model's processor
what it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from finetooth_hooks import Message, Rendered
from finetooth_hooks.data.examples import PLURALS, Medium, RenderedMedium
from finetooth_hooks.protocols import MediumPlace, Processor
from finetooth_toolbox.messages.encoding import Encoded

from finetooth_jinja.template import RenderedText, TemplateRefused


@dataclass(frozen=True)
class Stood:
    """An image, sound or video in a text.

    Attributes:
        begin, end: half-open range of characters of what stands for it, markup around it included.
        place: what that is.
    """

    begin: int
    end: int
    place: MediumPlace


class Media:
    """Puts images, sounds and videos in the place of placeholders.

    Args:
        processor: asked for with the first one.
    """

    def __init__(self, processor: Callable[[], Processor]) -> None:
        self._processor = processor
        self._places: dict[Medium, MediumPlace] = {}

    def forget(self) -> None:
        """Another conversation comes; what it holds is opened once, however often it is rendered."""
        self._places = {}

    def put(self, rendered: RenderedText, messages: Sequence[Message]) -> RenderedText:
        """The text with what stands for the media in it.

        Raises:
            TemplateRefused: it has other placeholders than the messages have media.
            DataError: one cannot be used, or the model takes none of its kind.
        """
        media = [placed.medium for message in messages for placed in message.media]
        if not media:
            return rendered
        processor = self._processor()
        placeholders = {kind: processor.placeholder(kind) for kind in dict.fromkeys(medium.kind for medium in media)}
        spelled = re.compile("|".join(map(re.escape, placeholders.values())))
        texts, written = spelled.split(rendered.text), spelled.findall(rendered.text)
        if written != [placeholders[medium.kind] for medium in media]:
            counted = ", ".join(
                f"{placeholders[kind]} {written.count(placeholders[kind])} times for "
                f"{sum(medium.kind == kind for medium in media)} {PLURALS[kind]}"
                for kind in placeholders
            )
            raise TemplateRefused(
                f"it writes {counted}; either the template knows no such parts or moves them, or a text spells the "
                "placeholder"
            )
        text, at, shifts = texts[0], len(texts[0]), [(0, 0)]
        stood = []
        for medium, placeholder, after in zip(media, written, texts[1:], strict=True):
            place = self._place(medium)
            stood.append(Stood(len(text), len(text) + len(place.text), place))
            text += place.text + after
            at += len(placeholder)
            shifts.append((at, shifts[-1][1] + len(place.text) - len(placeholder)))
            at += len(after)

        def moved(place: int) -> int:
            return place + next(shift for start, shift in reversed(shifts) if place >= start)

        generated = tuple((moved(begin), moved(end)) for begin, end in rendered.generated)
        return RenderedText(text, generated, tuple(stood))

    def _place(self, medium: Medium) -> MediumPlace:
        places = self._places  # of this conversation, even if another one comes meanwhile in another thread
        if medium not in places:
            places[medium] = self._processor().place(medium)
        return places[medium]


def with_media(rendered: Rendered, encoded: Encoded, media: Sequence[Stood]) -> Rendered:
    """The rendered conversation with the places of its media, none of whose tokens trains."""
    if not media:
        return rendered
    weights = list(rendered.weights)
    places = []
    for stood in media:
        begin, end = stood.begin + stood.place.start, stood.begin + stood.place.stop
        inside = [i for i, (start, stop) in enumerate(encoded.offsets) if begin <= start and stop <= end]
        for i, (start, stop) in enumerate(encoded.offsets):
            if start < stood.end and stood.begin < stop:
                weights[i] = 0.0
        assert inside and all(b == a + 1 for a, b in pairwise(inside))  # special tokens, each on its own
        places.append(RenderedMedium(inside[0], len(inside), stood.place.medium, stood.place.size))
    return replace(rendered, weights=tuple(weights), media=tuple(places))


def segments(message: Message) -> list[tuple[int, int]]:
    """Ranges of a message's content between its media; one range of all of it without any. Empty ones are left out,
    but for the only one."""
    ends = [placed.at for placed in message.media]
    ranges = list(zip([0, *ends], [*ends, len(message.content)], strict=True))
    return [(start, stop) for start, stop in ranges if stop > start] if message.media else ranges
