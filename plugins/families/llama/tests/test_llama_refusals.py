"""What the markups of the family have no place for is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.templates import CLOCK
from finetooth_llama import llama2, renderer, smollm3

BUILDS: dict[str, tuple[Any, Any]] = {
    "llama-3": (renderer.build, renderer.Llama3Options()),
    "llama-3.1": (renderer.build, renderer.Llama3Options(dated=True)),
    "llama-2": (llama2.build, llama2.Llama2Options()),
    "smollm3": (smollm3.build, smollm3.SmolLM3Options()),
    "smollm3-off": (smollm3.build, smollm3.SmolLM3Options(thinking=False)),
}
A, B = Message("user", "a"), Message("assistant", "b")
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "conversation", "problem"),
    [
        ("llama-3", Conversation((A, Message("tool", "x"))), r"messages\[1\].*no role 'tool'"),
        ("llama-3", Conversation((A,), (CLOCK,)), "tools: .*no markup for tools .*dated: true"),
        ("llama-3.1", Conversation((A, replace(B, tool_calls=(CALL,)))), r"messages\[1\].*text next to a tool call"),
        (
            "llama-3.1",
            Conversation((A, replace(B, content="", tool_calls=(CALL, CALL)))),
            r"one call in a message, .* 2",
        ),
        (
            "llama-3.1",
            Conversation((A, replace(B, content="", tool_calls=({},)))),
            r"messages\[1\]: a tool call is not",
        ),
        ("llama-3.1", Conversation((B, A), (CLOCK,)), "tools: .*first message of the user"),
        ("llama-3.1", Conversation((Message("system", "s"),), (CLOCK,)), "tools: .*first message of the user"),
        ("llama-2", Conversation((A, A)), r"messages\[1\].*user and assistant in turns"),
        ("llama-2", Conversation((B,)), r"messages\[0\].*'assistant' where 'user' stands"),
        ("llama-2", Conversation((Message("system", "s"),)), "messages: .*system message only in the first"),
        ("llama-2", Conversation((A, B), (CLOCK,)), "tools: .*no markup for tools"),
        ("llama-2", Conversation((A, replace(B, reasoning="r"))), r"messages\[1\].*reasoning"),
        ("llama-2", Conversation((A, replace(B, tool_calls=(CALL,)))), r"messages\[1\].*tool calls"),
        ("smollm3", Conversation((A, Message("system", "s"))), r"messages\[1\].*no system message but the first"),
        ("smollm3", Conversation((Message("x", "s"),)), r"messages\[0\].*no role 'x'"),
        ("smollm3", Conversation((replace(A, reasoning="r"),)), r"messages\[0\].*role 'user'"),
        ("smollm3-off", Conversation((A, replace(B, reasoning="r"))), r"messages\[1\].*mode is /no_think"),
        ("smollm3", Conversation((A,), (CLOCK,)), "tools: .*no markup for tools"),
        ("smollm3", Conversation((A, replace(B, tool_calls=(CALL,)))), r"messages\[1\].*tool calls"),
    ],
)
def test_what_it_cannot_say_is_an_error(tmp_path: Path, name: str, conversation: Conversation, problem: str) -> None:
    build, options = BUILDS[name]
    made = build(options, FakeContext(tmp_path, tokenizer=ByteTokenizer()))
    with pytest.raises(DataError, match=problem):
        made.render(conversation)
