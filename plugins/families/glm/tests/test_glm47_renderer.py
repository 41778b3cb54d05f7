"""GLM-4.7's markup, by hand: that of GLM-4.5 and 4.6 without line feeds, and a think block that the prompt opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_glm.renderer import GLM47, GLM47Options, GLMOptions, build, build_4_7
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import assert_reads_back, conversations, extends
from hypothesis import given, settings

CALL: dict[str, Any] = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC", "days": 2}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}
ASK, RESULT = Message("user", "The time?"), Message("tool", "12:00")
CALLING = Message("assistant", "", "Look it up.", (CALL,))
SAY, AGAIN, SURE = Message("assistant", "Noon."), Message("user", "Sure?"), Message("assistant", "Quite.", "Hm.")
WRITTEN = (
    "<tool_call>clock<arg_key>zone</arg_key><arg_value>UTC</arg_value><arg_key>days</arg_key><arg_value>2</arg_value>"
    "</tool_call>"
)


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def built(tokenizer: ByteTokenizer, **options: Any) -> GLM47:
    return GLM47(tokenizer, GLM47Options(**options))


def text_of(tokenizer: ByteTokenizer, tokens: Any) -> str:
    return tokenizer.decode(list(tokens))


def trained(tokenizer: ByteTokenizer, renderer: GLM47, asked: Conversation, **arguments: Any) -> str:
    rendered = renderer.render(asked, **arguments)
    return tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


def test_what_is_written_and_what_trains(tokenizer: ByteTokenizer) -> None:
    asked = Conversation((Message("system", "Be brief."), ASK, CALLING, RESULT, RESULT, SAY))
    renderer = built(tokenizer, thinking=True)
    assert text_of(tokenizer, renderer.render(asked).tokens) == (
        "[gMASK]<sop><|system|>Be brief.<|user|>The time?<|assistant|><think>Look it up.</think>"
        f"{WRITTEN}<|observation|><tool_response>12:00</tool_response><tool_response>12:00</tool_response>"
        "<|assistant|></think>Noon.<|user|>"
    )
    # the prompt opens the block of the first answer; that the second has none is not its own to say
    assert trained(tokenizer, renderer, asked) == f"Look it up.</think>{WRITTEN}<|observation|>Noon.<|user|>"


def test_reasoning_of_earlier_questions_goes(tokenizer: ByteTokenizer) -> None:
    asked = Conversation((ASK, Message("assistant", "Noon.", "Look."), AGAIN, SURE))
    rendered = built(tokenizer, thinking=True).render(asked)
    text = (
        "[gMASK]<sop><|user|>The time?<|assistant|></think>Noon.<|user|>Sure?<|assistant|><think>Hm.</think>Quite."
        "<|user|>"
    )
    assert text_of(tokenizer, rendered.tokens) == text and rendered.remarks == ("reasoning left out",)
    kept = built(tokenizer, thinking=True, keep_reasoning=True)
    assert text_of(tokenizer, kept.render(asked).tokens) == text.replace("</think>N", "<think>Look.</think>N")
    assert kept.render(asked).remarks == () and extends(kept, asked)


@pytest.mark.parametrize("reasoning", [" ", "\n\n", " \n "])
def test_reasoning_of_blanks_closes_the_block_that_the_prompt_opens(tokenizer: ByteTokenizer, reasoning: str) -> None:
    """As in the model's own template, which leaves out no block of an answer that has reasoning, be it of blanks."""
    renderer, asked = built(tokenizer, thinking=True), Conversation((ASK, Message("assistant", "Noon.", reasoning)))
    text = "[gMASK]<sop><|user|>The time?<|assistant|><think></think>Noon.<|user|>"
    assert text_of(tokenizer, renderer.render(asked).tokens) == text
    assert trained(tokenizer, renderer, asked) == "</think>Noon.<|user|>"
    assert_reads_back(renderer, asked, lambda message: Message("assistant", "Noon."))


@pytest.mark.parametrize(("thinking", "opened"), [(True, "<think>"), (False, "</think>")])
def test_the_prompt(tokenizer: ByteTokenizer, thinking: bool, opened: str) -> None:
    prompt = built(tokenizer, thinking=thinking).prompt((ASK,))
    assert text_of(tokenizer, prompt) == f"[gMASK]<sop><|user|>The time?<|assistant|>{opened}"


def test_tools_are_told_as_the_models_know_them(tokenizer: ByteTokenizer) -> None:
    text = text_of(tokenizer, built(tokenizer).render(Conversation((ASK, SAY), (TOOL,))).tokens)
    assert text.startswith("[gMASK]<sop><|system|>\n# Tools\n\n") and "<tools>\n{" in text
    assert (
        "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
        "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call><|user|>The time?" in text
    )


def test_reasoning_while_thinking_is_off_is_refused(tokenizer: ByteTokenizer) -> None:
    with pytest.raises(DataError, match="no reasoning while thinking is off"):
        built(tokenizer, thinking=False).render(Conversation((AGAIN, SURE)))


def test_an_answer_is_read_back(tokenizer: ByteTokenizer) -> None:
    renderer = built(tokenizer, thinking=True)
    assert_reads_back(renderer, Conversation((ASK, CALLING)), lambda message: message)
    assert_reads_back(renderer, Conversation((AGAIN, SURE)), lambda message: message)
    silent = built(tokenizer, thinking=False)
    assert_reads_back(silent, Conversation((ASK, SAY)), lambda message: message)
    # what a model says that thought nothing, and one that never came to its end
    for said, reasoning, content in (("</think>Noon.", "", "Noon."), ("Well, let me", "Well, let me", "")):
        message = renderer.parse(tokenizer.encode(said, special=True)).message
        assert (message.reasoning, message.content) == (reasoning, content)


@settings(max_examples=draws(40), deadline=None)
@given(conversations(tools=True).filter(lambda drawn: "<" not in repr(drawn.messages)))
def test_without_thinking_the_next_prompt_begins_with_all_before(conversation: Conversation) -> None:
    renderer = built(ByteTokenizer(), thinking=False)
    assert renderer.extension and extends(renderer, conversation)


TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>FEED{% if m.role == 'assistant' %}THINK{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>PROMPT{% endif %}"
)


@pytest.mark.parametrize(
    ("feed", "think", "asks", "own"),
    [("\n", "<think></think>\n", "", build), ("", "</think>", "</think>", build_4_7)],
)
def test_a_model_with_the_other_markup_is_told(tmp_path: Path, feed: str, think: str, asks: str, own: Any) -> None:
    """A config says `glm4_moe` of both; the template does not."""
    template = TEMPLATE.replace("FEED", feed).replace("THINK", think).replace("PROMPT", asks)
    tokenizer = ByteTokenizer(chat_template=template)
    told = {}
    for builder, options in ((build, GLMOptions()), (build_4_7, GLM47Options())):
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        builder(options, context)
        told[builder] = [note for note in context.notes if "GLM-4.7 as glm4_7" in note]
    assert not told[own] and all(notes for builder, notes in told.items() if builder is not own)
