"""Messages in the shape that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message
from finetooth_toolbox.rendering.chat_templates import shaped

from finetooth_jinja.pictures import Pictures
from finetooth_jinja.template import ChatTemplate, RenderedText


def _parts(message: Message) -> list[dict[str, Any]]:
    """Content with images: parts in order, the texts between them whole."""
    parts: list[dict[str, Any]] = []
    at = 0
    for placed in message.images:
        if placed.at > at:
            parts.append({"type": "text", "text": message.content[at : placed.at]})
        parts.append({"type": "image"})
        at = placed.at
    if at < len(message.content):
        parts.append({"type": "text", "text": message.content[at:]})
    return parts


def _shaped(message: Message) -> dict[str, Any]:
    """A message as templates know it, its images among its text."""
    return {**shaped(message), "content": _parts(message)} if message.images else shaped(message)


class Shaper:
    """Renders messages with one template.

    Args:
        pictures: puts their images in.
    """

    def __init__(self, template: ChatTemplate, pictures: Pictures) -> None:
        self._template, self.pictures = template, pictures

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> RenderedText:
        """
        Raises:
            TemplateRefused: the template cannot render them.
            DataError: an image cannot be used.
        """
        rendered = self._template.render([_shaped(message) for message in messages], tools, prompt=prompt)
        return self.pictures.put(rendered, messages)
