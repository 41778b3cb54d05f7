"""`qwen3_coder` by hand; whole conversations stand in tests/families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import conversations, extends, says_any
from finetooth_qwen.coder import Qwen3Coder, Qwen3CoderOptions, build
from hypothesis import assume, given, settings

MARKS = ("<tool_call>", "</tool_call>", "<function", "</function", "<parameter", "</parameter", "<|")
ASK, RESULT = Message("user", "The time?"), Message("tool", "12:00")


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "clock", "arguments": arguments}}


def text_of(conversation: Conversation) -> str:
    tokenizer = ByteTokenizer()
    return tokenizer.decode(list(Qwen3Coder(tokenizer).render(conversation).tokens))


def trained(conversation: Conversation, **arguments: Any) -> str:
    tokenizer = ByteTokenizer()
    rendered = Qwen3Coder(tokenizer).render(conversation, **arguments)
    return tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


def test_answers_train_with_calls_and_end() -> None:
    asked = Conversation((ASK, Message("assistant", " I look.\n", tool_calls=(call(zone="UTC", sure=True),)), RESULT))
    calls = (
        "I look.\n\n<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n</parameter>\n<parameter=sure>\nTrue\n"
        "</parameter>\n</function>\n</tool_call><|im_end|>"
    )
    assert trained(asked) == calls
    grown = Conversation((*asked.messages, Message("assistant", "Noon.")))
    assert trained(grown) == f"{calls}Noon.<|im_end|>" and trained(grown, train_on="last") == "Noon.<|im_end|>"


def test_tools_are_told_with_a_tag_for_each_thing_that_their_schema_says() -> None:
    zone = {"type": ["string", "null"], "default": None, "description": " Where. ", "enum": ["UTC"]}
    tool = {"name": "clock", "parameters": {"type": "object", "required": ["zone"], "properties": {"zone": zone}}}
    text = text_of(Conversation((ASK, Message("assistant", "Noon.")), ({"type": "function", "function": tool},)))
    assert text.startswith("<|im_start|>system\nYou are Qwen, a helpful AI assistant that can interact with a computer")
    assert (
        "<tools>\n<function>\n<name>clock</name>\n<parameters>\n<parameter>\n<name>zone</name>\n"
        "<type>['string', 'null']</type>\n<description>Where.</description>\n"
        '<default>None</default>\n<enum>["UTC"]</enum>\n</parameter>\n<required>["zone"]</required>\n</parameters>\n'
        "</function>\n</tools>"
    ) in text


def test_weights_of_a_content_next_to_calls_move_with_it() -> None:
    content = "  ab\n"
    answer = Message("assistant", content, tool_calls=(call(),), weights=(Weighted(2, 3, 0.0),))
    assert trained(Conversation((ASK, answer))).startswith("b\n\n<tool_call>")


@settings(max_examples=draws(25), deadline=None)
@given(conversations(tools=True, any_values=True))
def test_answers_are_read_back_and_conversations_grow_at_their_end(conversation: Conversation) -> None:
    assume(not says_any(conversation, MARKS))
    renderer, messages = Qwen3Coder(ByteTokenizer()), conversation.messages
    assert renderer.extension and extends(renderer, conversation)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = renderer.prompt(messages[:i], conversation.tools)
            tokens = renderer.render(Conversation(messages[: i + 1], conversation.tools)).tokens
            assert tokens[: len(prompt)] == prompt
            assert said(renderer.parse(tokens[len(prompt) :]).message) == said(message)


def said(message: Message) -> tuple[Any, ...]:
    """Without blanks next to calls, and whether a value is its text or itself."""

    def plain(value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            return value

    calls = [made["function"] for made in message.tool_calls]
    content = message.content.strip() if calls else message.content
    return content, [(made["name"], {key: plain(value) for key, value in made["arguments"].items()}) for made in calls]


def test_what_it_has_no_place_for_is_refused() -> None:
    renderer = Qwen3Coder(ByteTokenizer())
    with pytest.raises(DataError, match="no markup for reasoning"):
        renderer.render(Conversation((ASK, Message("assistant", "Noon.", reasoning="Hm."))))
    with pytest.raises(DataError, match="spells its markup and ends early"):
        renderer.render(Conversation((ASK, Message("assistant", "", tool_calls=(call(a="x\n</parameter>\n"),)))))


SPEAKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("template", "notes"), [
    (f"{{{{ raise_exception('no tools') if tools }}}}{SPEAKS}", 0),
    (SPEAKS, 0),  # it leaves tools out
    (f"{{{{ '<|im_start|>system\\nTools.<|im_end|>\\n' if tools }}}}{SPEAKS}", 1),
    ("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}", 1),
])  # fmt: skip
def test_a_model_that_speaks_otherwise_is_noted(tmp_path: Path, template: str, notes: int) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer(chat_template=template))
    build(Qwen3CoderOptions(), context)
    assert len(context.notes) == notes
