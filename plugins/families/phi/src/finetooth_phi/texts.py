"""What both renderers can say: text, by three roles."""

from __future__ import annotations

from finetooth_hooks import Conversation
from finetooth_hooks.turns import TurnRenderer

ROLES = ("system", "user", "assistant")


def check_texts(renderer: TurnRenderer, conversation: Conversation, *, reasoning: bool = False) -> None:
    """
    Args:
        reasoning: the renderer has markup for reasoning.

    Raises:
        DataError: tools, tool calls, reasoning without markup, or another role.
    """
    if conversation.tools:
        raise renderer.refuse("no markup for tools", "tools")
    for i, message in enumerate(conversation.messages):
        where = f"messages[{i}]"
        if message.role not in ROLES:
            raise renderer.refuse(f"no role {message.role!r}", where)
        if message.tool_calls:
            raise renderer.refuse("no markup for tool calls", where)
        if message.reasoning and not reasoning:
            raise renderer.refuse("no markup for reasoning", where)
