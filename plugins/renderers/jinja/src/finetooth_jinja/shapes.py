"""Messages in the shape that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message
from finetooth_rendering.turns import json_text
from finetooth_toolbox.messages.chat_templates import shaped as shape_of

from finetooth_jinja.media import Media
from finetooth_jinja.template import ChatTemplate, RenderedText, TemplateRefused


def _parts(message: Message) -> list[dict[str, Any]]:
    """Content with images, sounds or videos: parts in order, the texts between them whole."""
    parts: list[dict[str, Any]] = []
    at = 0
    for placed in message.media:
        if placed.at > at:
            parts.append({"type": "text", "text": message.content[at : placed.at]})
        kind = placed.medium.kind
        # some templates tell a sound by the key that would hold it
        parts.append({"type": kind} if kind == "image" else {"type": kind, kind: ""})
        at = placed.at
    if at < len(message.content):
        parts.append({"type": "text", "text": message.content[at:]})
    return parts


def _shaped(message: Message, *, parts: bool) -> dict[str, Any]:
    """A message as templates know it, what it shows among its text.

    Args:
        parts: the template reads nothing but lists of parts.
    """
    shape = shape_of(message)
    return {**shape, "content": _parts(message) or [{"type": "text", "text": ""}]} if message.media or parts else shape


def _in_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the arguments of its calls as JSON text."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json_text(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


class Shaper:
    """Renders messages with one template. Templates of some models that see (Idefics 3, SmolVLM, LLaVA-NeXT) read
    contents as lists of parts alone, and would drop plain text without a word: they get parts.

    Args:
        media: puts their images, sounds and videos in.
    """

    def __init__(self, template: ChatTemplate, media: Media) -> None:
        self._template, self.media = template, media
        self._parts = not self._keeps(parts=False) and self._keeps(parts=True)

    def _keeps(self, *, parts: bool) -> bool:
        """The template writes the contents of a question and its answer."""
        chat = (Message("user", "First question?"), Message("assistant", "First answer."))
        try:
            text = self._template.render([_shaped(message, parts=parts) for message in chat]).text
        except TemplateRefused:
            return False
        return all(message.content in text for message in chat) and "'type'" not in text  # as Python writes a list

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> RenderedText:
        """Arguments of calls are objects, as most templates read them; one that reads them as JSON text is given that.

        Raises:
            TemplateRefused: the template cannot render them.
            DataError: an image, sound or video cannot be used.
        """
        shaped = [_shaped(message, parts=self._parts) for message in messages]
        try:
            rendered = self._template.render(shaped, tools, prompt=prompt)
        except TemplateRefused as refused:
            if not any("tool_calls" in message for message in shaped):
                raise
            try:
                rendered = self._template.render(list(map(_in_text, shaped)), tools, prompt=prompt)
            except TemplateRefused:
                raise refused from None
        return self.media.put(rendered, messages)
