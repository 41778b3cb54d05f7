"""Messages in the shape that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks import Message

from finetooth_jinja.template import ChatTemplate, RenderedText


def shaped(message: Message) -> dict[str, Any]:
    """A message as templates know it; what it does not have is left out, since templates test for presence."""
    shape: dict[str, Any] = {"role": message.role, "content": message.content}
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


class Shaper:
    """Renders messages with one template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, prompt: bool = False
    ) -> RenderedText:
        """
        Raises:
            TemplateRefused: the template cannot render them.
        """
        return self._template.render([shaped(message) for message in messages], tools, prompt=prompt)
