"""`minimax_m2` by hand; whole conversations stand in tests/families."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_chatml.minimax import MiniMaxM2, MiniMaxOptions
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit.templates import template_tokenizer

TAGS = ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"]
TOKENIZER = template_tokenizer("", ["]~!b[", "]~b]", "[e~["], eos="[e~[", plain=TAGS)
ASKED = Message("user", "The time?")


def text(*messages: Message, **options: Any) -> str:
    rendered = MiniMaxM2(TOKENIZER, MiniMaxOptions(**options)).render(Conversation(messages))
    return TOKENIZER.decode(rendered.tokens).partition("[e~[\n]~b]user\nThe time?[e~[\n")[2]


def called(**arguments: Any) -> Message:
    call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    return Message("assistant", "", tool_calls=(call,))


def test_a_think_block_in_the_content_is_reasoning() -> None:
    inline = Message("assistant", "<think>\nHm.\n</think>\n\nNoon.\n")
    assert text(ASKED, inline) == "]~b]ai\n<think>\nHm.\n</think>\n\nNoon.[e~[\n"


def test_reasoning_before_the_last_question_goes_unless_it_is_kept() -> None:
    talk = (
        ASKED,
        Message("assistant", "Noon.", reasoning="Hm."),
        Message("user", "Sure?"),
        Message("assistant", "So."),
    )
    behind = "Noon.[e~[\n]~b]user\nSure?[e~[\n]~b]ai\nSo.[e~[\n"
    assert text(*talk) == f"]~b]ai\n{behind}"
    assert text(*talk, keep_reasoning=True) == f"]~b]ai\n<think>\nHm.\n</think>\n\n{behind}"
    renderer = MiniMaxM2(TOKENIZER, MiniMaxOptions())
    assert renderer.render(Conversation(talk)).remarks == ("reasoning left out",)
    assert not renderer.render(Conversation(talk[2:])).remarks


def test_a_completion_is_read_back() -> None:
    """A block that was not closed is reasoning; what only looks like a call is text."""
    read = MiniMaxM2(TOKENIZER, MiniMaxOptions()).read
    assert (read("Hm").reasoning, read("Hm").content) == ("Hm", "")
    block = '<minimax:tool_call>\n<invoke name="clock">\n<parameter name="n">2</parameter>\n</invoke>\n{}'
    message = read("Hm.\n</think>\n\nI look.\n" + block.format("</minimax:tool_call>"))
    assert (message.reasoning, message.content) == ("Hm.", "I look.")
    assert [call["function"] for call in message.tool_calls] == [{"name": "clock", "arguments": {"n": 2}}]
    cut = read("</think>\n\n" + block.format(""))
    assert cut.content == block.format("") and not cut.tool_calls


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((ASKED, Message("tool", "12:00")), "a result of no call"),
        ((ASKED, called(), Message("assistant", "Hm."), Message("tool", "12:00")), "a result of no call"),
        ((ASKED, Message("system", "Be brief.")), "a system message only at the beginning"),
        ((ASKED, Message("assistant", "a<think>b</think>c")), "it stands first"),
        ((ASKED, Message("assistant", "<think>b</think>c</think>")), "or a second"),
        ((ASKED, called(zone="</parameter>\nRome")), "ends early"),
        ((ASKED, called(zone="<minimax:tool_call>")), "ends early"),
        ((ASKED, called(**{'a"b': 1})), "ends early"),
    ],
)
def test_what_would_be_lost_or_read_otherwise_is_refused(messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        text(*messages)
