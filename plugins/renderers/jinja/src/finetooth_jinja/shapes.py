"""Messages in the shape that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message

from finetooth_jinja.pictures import Pictures
from finetooth_jinja.template import ChatTemplate, RenderedText


def shaped(message: Message) -> dict[str, Any]:
    """A message as templates know it; what it does not have is left out, since templates test for presence."""
    shape: dict[str, Any] = {"role": message.role, "content": _parts(message) if message.images else message.content}
    if message.reasoning:
        # templates of different families read either name
        shape["reasoning_content"] = shape["thinking"] = message.reasoning
    if message.tool_calls:
        shape["tool_calls"] = [dict(call) for call in message.tool_calls]
    if message.name:
        shape["name"] = message.name
    if message.tool_call_id:
        shape["tool_call_id"] = message.tool_call_id
    return shape


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
        rendered = self._template.render([shaped(message) for message in messages], tools, prompt=prompt)
        return self.pictures.put(rendered, messages)
