"""Whether a conversation only ever grows at its end under a template, tried with one conversation of each shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from finetooth_hooks import Conversation, Message
from finetooth_rendering.tool_calls import call_of
from finetooth_toolbox.messages.encoding import Encoder

from finetooth_jinja.shapes import Shaper
from finetooth_jinja.template import TemplateRefused

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}},
    },
}


def _calls(id_: str, thought: str = "") -> tuple[Message, Message]:
    """A call and its result."""
    call: dict[str, Any] = {**call_of("look_up", {"place": "Oslo"}), "id": id_}
    return Message("assistant", "", thought, (call,)), Message("tool", "rain", name="look_up", tool_call_id=id_)


SYSTEM, ASK, ASK_AGAIN = Message("system", "Be brief."), Message("user", "First?"), Message("user", "Second?")
YES, NO = Message("assistant", "Yes."), Message("assistant", "No.")
PLAIN = (ASK, YES, ASK_AGAIN, NO, ASK, YES)
THOUGHT = (ASK, Message("assistant", "Yes.", "Hm."), ASK_AGAIN, Message("assistant", "No.", "Well."))
ALOUD = (ASK, Message("assistant", "<think>\nHm.\n</think>\n\nYes."), ASK_AGAIN, NO)
BLANKS = (ASK, Message("assistant", " \nYes. \n"), ASK_AGAIN, NO)
TOOLS = (ASK, *_calls("aaaaaaaaa"), YES, ASK_AGAIN, *_calls("bbbbbbbbb"), NO)
THOUGHT_TOOLS = (ASK, *_calls("aaaaaaaaa", "Hm."), YES, ASK_AGAIN, *_calls("bbbbbbbbb", "Well."), NO)
GROWING: tuple[Conversation, ...] = (
    Conversation(PLAIN),
    Conversation((SYSTEM, *PLAIN)),
    Conversation(THOUGHT),
    Conversation(ALOUD),
    Conversation(BLANKS),
    Conversation(PLAIN, (TOOL,)),
    Conversation(TOOLS, (TOOL,)),
    Conversation((SYSTEM, *THOUGHT_TOOLS), (TOOL,)),
)
"""Conversations with several answers; the first has to render, the others count where they do."""


def extends(shaper: Shaper, encoder: Encoder, stop_ids: Sequence[int]) -> bool:
    """The prompt for each answer begins with the tokens of the conversation up to the end of the answer before it."""
    outcomes = [_extends(conversation, shaper, encoder, stop_ids) for conversation in GROWING]
    return outcomes[0] is True and False not in outcomes


def _extends(conversation: Conversation, shaper: Shaper, encoder: Encoder, stop_ids: Sequence[int]) -> bool | None:
    """None if the template refuses the conversation."""
    messages, tools = conversation.messages, conversation.tools
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    try:
        for earlier, later in pairwise(answers):
            answered = encoder.encode(shaper.render(messages[: earlier + 1], tools).text).ids
            prompted = encoder.encode(shaper.render(messages[:later], tools, prompt=True).text).ids
            first = encoder.encode(shaper.render(messages[:earlier], tools, prompt=True).text).ids
            end = next((i for i in range(len(first), len(answered)) if answered[i] in stop_ids), None)
            if end is None or answered[: len(first)] != first or prompted[: end + 1] != answered[: end + 1]:
                return False
    except TemplateRefused:
        return None
    return True
