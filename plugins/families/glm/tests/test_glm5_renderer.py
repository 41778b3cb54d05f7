"""`glm5` by hand; whole conversations stand in tests/families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_glm.glm5 import GLM5, GLM5Options, build
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import assert_reads_back, conversations, extends, says_any
from hypothesis import assume, given, settings

MARKS = ("think>", "<tool", "</tool", "<arg_", "</arg_", "<|")
ASK, SAY = Message("user", "The time?"), Message("assistant", "Noon.", " Hm.\n")
AGAIN, SURE = Message("user", "Sure?"), Message("assistant", "Quite.")
TEMPLATE = (
    "[gMASK]<sop>{% if enable_thinking is not defined or enable_thinking %}<|system|>Reasoning Effort: "
    "{{ 'High' if reasoning_effort == 'high' else 'Max' }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|><think>{{ '</think>' if enable_thinking is defined and not enable_thinking }}{% endif %}"
)


def built(template: str | None = None, **options: Any) -> GLM5:
    return GLM5(ByteTokenizer(chat_template=template), GLM5Options(**options))


def trained(renderer: GLM5, *messages: Message) -> str:
    rendered = renderer.render(Conversation(messages))
    return renderer.tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


def prompt(renderer: GLM5, *messages: Message) -> str:
    return renderer.tokenizer.decode(renderer.prompt(messages))


def test_what_trains() -> None:
    """The prompt opens the block, so the model writes what follows; a block whose reasoning is gone is not its own."""
    assert trained(built(), ASK, SAY) == " Hm.\n</think>Noon.<|user|>"
    assert trained(built(), ASK, SAY, AGAIN, SURE) == "Noon.<|user|></think>Quite.<|user|>"
    assert (
        trained(built(keep_reasoning=True), ASK, SAY, AGAIN, SURE)
        == " Hm.\n</think>Noon.<|user|></think>Quite.<|user|>"
    )
    assert trained(built(thinking=False), AGAIN, SURE) == "Quite.<|user|>"
    inline = Message("assistant", "<think> Hm.\n</think>Noon.")
    assert trained(built(), ASK, inline) == trained(built(), ASK, SAY)


@pytest.mark.parametrize(("options", "template", "said"), [
    ({}, None, "<|system|>Reasoning Effort: Max"),
    ({}, TEMPLATE, "<|system|>Reasoning Effort: Max"),
    ({}, TEMPLATE.replace("<|system|>Reasoning Effort: ", ""), ""),
    ({"effort": "high"}, TEMPLATE, "<|system|>Reasoning Effort: High"),
    ({"effort": "none"}, TEMPLATE, ""),
    ({"thinking": False}, TEMPLATE, ""),
])  # fmt: skip
def test_how_much_the_model_is_told_to_think(options: dict[str, Any], template: str | None, said: str) -> None:
    asks = "<think></think>" if options.get("thinking") is False else "<think>"
    assert prompt(built(template, **options), ASK) == f"[gMASK]<sop>{said}<|user|>The time?<|assistant|>{asks}"


@pytest.mark.parametrize(("options", "notes"), [
    ({}, 0), ({"effort": "high"}, 0), ({"thinking": False}, 0), ({"effort": "low"}, 1), ({"effort": "none"}, 1),
])  # fmt: skip
def test_a_template_that_says_something_else_is_noted(tmp_path: Path, options: dict[str, Any], notes: int) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer(chat_template=TEMPLATE))
    build(GLM5Options(**options), context)
    assert len(context.notes) == notes and all("glm5" in note for note in context.notes)


def test_a_tool_is_told_without_its_frame_and_what_is_not_for_the_model() -> None:
    tool = {"type": "function", "function": {"name": "clock", "strict": True, "parameters": {}}}
    renderer = built()
    text = renderer.tokenizer.decode(renderer.render(Conversation((ASK, SURE), (tool,))).tokens)
    assert '<tools>\n{"name": "clock", "parameters": {}}\n</tools>' in text


def test_reasoning_while_thinking_is_off_is_refused() -> None:
    with pytest.raises(DataError, match="no reasoning while thinking is off"):
        built(thinking=False).render(Conversation((ASK, SAY)))


@settings(max_examples=draws(25), deadline=None)
@given(conversations(reasoning=True))
def test_answers_are_read_back(conversation: Conversation) -> None:
    assume(not says_any(conversation, MARKS))
    kept = built(keep_reasoning=True)
    assert kept.extension and extends(kept, conversation) and not built().extension
    assert_reads_back(built(), conversation, lambda message: replace(message, content=message.content.strip()))
