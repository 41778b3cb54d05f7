"""Images in rendered text: the chat template writes one placeholder for each, the model's processor what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from finetooth_hooks import Message, Rendered
from finetooth_hooks.examples import Image, RenderedImage
from finetooth_hooks.protocols import ImagePlace, Processor
from finetooth_toolbox.rendering.encoding import Encoded

from finetooth_jinja.template import RenderedText, TemplateRefused


@dataclass(frozen=True)
class Picture:
    """An image in a text.

    Attributes:
        begin, end: half-open range of characters of what stands for it, markup around it included.
        place: what that is.
    """

    begin: int
    end: int
    place: ImagePlace


class Pictures:
    """Puts images in the place of placeholders.

    Args:
        processor: asked for with the first image.
    """

    def __init__(self, processor: Callable[[], Processor]) -> None:
        self._processor = processor
        self._places: dict[Image, ImagePlace] = {}

    def forget(self) -> None:
        """Another conversation comes; its images are opened once, however often it is rendered."""
        self._places = {}

    def put(self, rendered: RenderedText, messages: Sequence[Message]) -> RenderedText:
        """The text with images in it.

        Raises:
            TemplateRefused: it has another number of placeholders than the messages have images.
            DataError: an image cannot be used.
        """
        images = [placed.image for message in messages for placed in message.images]
        if not images:
            return rendered
        placeholder = self._processor().placeholder
        texts = rendered.text.split(placeholder)
        if len(texts) - 1 != len(images):
            raise TemplateRefused(
                f"it writes {placeholder} {len(texts) - 1} times for {len(images)} images; either the template knows "
                "no images, or a text spells the placeholder"
            )
        text, at, shifts = texts[0], len(texts[0]), [(0, 0)]
        pictures = []
        for image, after in zip(images, texts[1:], strict=True):
            place = self._place(image)
            pictures.append(Picture(len(text), len(text) + len(place.text), place))
            text += place.text + after
            at += len(placeholder)
            shifts.append((at, shifts[-1][1] + len(place.text) - len(placeholder)))
            at += len(after)

        def moved(place: int) -> int:
            return place + next(shift for start, shift in reversed(shifts) if place >= start)

        generated = tuple((moved(begin), moved(end)) for begin, end in rendered.generated)
        return RenderedText(text, generated, tuple(pictures))

    def _place(self, image: Image) -> ImagePlace:
        places = self._places  # of this conversation, even if another one comes meanwhile in another thread
        if image not in places:
            places[image] = self._processor().place(image)
        return places[image]


def with_images(rendered: Rendered, encoded: Encoded, pictures: Sequence[Picture]) -> Rendered:
    """The rendered conversation with the places of its images, none of whose tokens trains."""
    if not pictures:
        return rendered
    weights = list(rendered.weights)
    found = []
    for picture in pictures:
        begin, end = picture.begin + picture.place.start, picture.begin + picture.place.stop
        inside = [i for i, (start, stop) in enumerate(encoded.offsets) if begin <= start and stop <= end]
        for i, (start, stop) in enumerate(encoded.offsets):
            if start < picture.end and picture.begin < stop:
                weights[i] = 0.0
        assert inside and all(b == a + 1 for a, b in pairwise(inside))  # special tokens, each on its own
        place = picture.place
        found.append(RenderedImage(inside[0], len(inside), place.image, place.width, place.height))
    return replace(rendered, weights=tuple(weights), images=tuple(found))


def segments(message: Message) -> list[tuple[int, int]]:
    """Ranges of a message's content between its images; one range of all of it without any. Empty ones are left out,
    but for the only one."""
    ends = [placed.at for placed in message.images]
    ranges = list(zip([0, *ends], [*ends, len(message.content)], strict=True))
    return [(start, stop) for start, stop in ranges if stop > start] if message.images else ranges
