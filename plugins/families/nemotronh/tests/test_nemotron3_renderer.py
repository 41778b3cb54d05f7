"""`nemotron3` against the official templates of Nemotron 3, and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    json_values,
    says_any,
    spells_special,
    template_tokenizer,
)
from finetooth_nemotronh.renderer import Nemotron3, Nemotron3Options, build
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
END = "<|im_end|>"
THINKS_ON = {"thinking": True, "keep_reasoning": True}
KEPT = {"truncate_history_thinking": False}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "nano": ("nemotron_3_nano", {"thinking": True}, {}),
    "nano-off": ("nemotron_3_nano", {}, {"enable_thinking": False}),
    "nano-kept": ("nemotron_3_nano", THINKS_ON, KEPT),
    "super": ("nemotron_3_super", {"thinking": True}, {}),
    "super-kept": ("nemotron_3_super", THINKS_ON, KEPT),
    "ultra": ("nemotron_3_ultra", {"thinking": True}, {}),
    "ultra-kept": ("nemotron_3_ultra", THINKS_ON, KEPT),
    "lightning": ("nemotron_3_5_lightning", {"thinking": True}, {}),
}
"""A template, options of the renderer, and variables of the template that mean the same."""
SPACED = ("nano", "super")
Made = Callable[[str], tuple[Nemotron3, FastTokenizer, dict[str, Any]]]


MARKS = (*SPECIAL, *PLAIN, "<function", "</function", "<parameter", "</parameter")


VALUES = json_values()
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", ["string", "null"]]),
        "description": st.sampled_from(["", " of a place\n", "é & <b>"]),
        "enum": st.sampled_from([["a", "é"], []]),
        "default": VALUES,
        "items": st.just({"type": "string"}),
    },
)
TOOLS: Any = st.fixed_dictionaries(
    {"name": st.sampled_from(["clock", "get_weather"])},
    optional={
        "description": st.sampled_from(["", " The time.\n"]),
        "strict": st.booleans(),
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "type": st.just("object"),
                "properties": st.dictionaries(st.sampled_from(["zone", "été"]), FIELDS, max_size=2),
                "required": st.sampled_from([[], ["zone"]]),
                "additionalProperties": st.booleans() | st.just({"type": "string"}),
                "$defs": st.just({"a": {"enum": ["é"]}}),
            },
        ),
    },
)  # fmt: skip


def said(name: str) -> Any:
    """Conversations that the renderer can say, with arguments and tools of all kinds, and a later system message."""

    plain = conversations(tools=True, reasoning=True, any_values=True).filter(lambda one: not says_any(one, MARKS))

    @st.composite
    def drawn(draw: Any) -> Conversation:
        conversation = draw(plain)
        messages = []
        for i, message in enumerate(conversation.messages):
            if i and message.role == "user" and draw(st.integers(0, 5)) == 5:
                messages.append(Message("system", " Be brief.\n"))
            reasoning = "" if name.endswith("off") else message.reasoning
            messages.append(replace(message, reasoning=reasoning))
        tools = [{"type": "function", "function": own} for own in draw(st.lists(TOOLS, max_size=2))]
        return Conversation(tuple(messages), conversation.tools and (*conversation.tools, *tools))

    return drawn()


@pytest.fixture(scope="module")
def made(trl_template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    @cache
    def make(name: str) -> tuple[Nemotron3, FastTokenizer, dict[str, Any]]:
        template, options, variables = CASES[name]
        tokenizer = template_tokenizer(trl_template(template), SPECIAL, plain=PLAIN, eos=END)
        context = FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer)
        renderer = build(Nemotron3Options(**options), context)
        assert not context.notes
        return renderer, tokenizer, variables

    return make


def calls_text(message: Message) -> str:
    text = ""
    for call in message.tool_calls:
        text += f"\n<tool_call>\n<function={call['function']['name']}>\n"
        for key, value in call["function"]["arguments"].items():
            given = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            text += f"<parameter={key}>\n{given}\n</parameter>\n"
        text += "</function>\n</tool_call>"
    return text + "\n" * bool(text)


def trained_texts(name: str, conversation: Conversation) -> list[str]:
    """What must train, from the messages alone: nothing of an empty think block."""
    messages, texts = conversation.messages, []
    asked = max(i for i, message in enumerate(messages) if message.role == "user")
    spaced, keeps = name.startswith(SPACED), name.endswith("kept")
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        content, kept, calls = message.content.rstrip(), keeps or i > asked, bool(message.tool_calls)
        if message.reasoning and kept:
            content = message.reasoning + (f"\n</think>\n{content}" if spaced else f"</think>{content}").rstrip(
                "\n" * (not content)
            )
        elif calls and not kept:
            content = content.lstrip() if spaced else message.content
        elif message.reasoning and spaced and content:
            content = f"\n{content}"
        texts.append(content + calls_text(message) + END)
    return texts


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_weights_are_the_templates(made: Made, name: str) -> None:
    renderer, tokenizer, variables = made(name)
    extended = []

    @settings(max_examples=draws(40), deadline=None)
    @given(said(name))
    def check(conversation: Conversation) -> None:
        assert_identical(renderer, tokenizer, conversation, **variables)
        assert_trains(renderer, tokenizer, conversation, trained_texts(name, conversation))
        if renderer.extension:
            extended.append(extends(renderer, conversation))

    check()
    assert renderer.extension == name.endswith("kept") and all(extended)


@pytest.mark.parametrize("name", ["nano", "ultra-kept"])
def test_tokens_over_a_real_vocabulary(trl_template: Callable[[str], str], byte_level: Path, name: str) -> None:
    template, options, variables = CASES[name]
    tokenizer = template_tokenizer(trl_template(template), SPECIAL, plain=PLAIN, eos=END, base=byte_level)
    renderer = Nemotron3(tokenizer, version="ultra" if "ultra" in name else "nano", **options)

    @settings(max_examples=draws(15), deadline=None)
    @given(said(name))
    def check(conversation: Conversation) -> None:
        assume(not spells_special(tokenizer, conversation))
        assert_identical(renderer, tokenizer, conversation, **variables)

    check()


@pytest.mark.parametrize("name", ["nano", "nano-kept", "ultra", "ultra-kept"])
def test_a_think_block_in_the_content_is_reasoning(made: Made, name: str) -> None:
    renderer, tokenizer, variables = made(name)

    @settings(max_examples=draws(30), deadline=None)
    @given(said(name), st.sampled_from(["<think>", "<think>\n", " <think>\n\n "]))
    def check(conversation: Conversation, opening: str) -> None:
        messages = tuple(
            replace(m, content=f"{opening}{m.reasoning}\n</think>\n\n{m.content}", reasoning="") if m.reasoning else m
            for m in conversation.messages
        )
        inline = replace(conversation, messages=messages)
        assert_identical(renderer, tokenizer, inline, **variables)
        assert renderer.render(inline).remarks == renderer.render(conversation).remarks

    check()


def test_an_empty_system_message_stands_where_there_is_none(made: Made) -> None:
    renderer, tokenizer, _ = made("nano")
    text = tokenizer.decode(renderer.prompt((Message("user", "The time?"),)))
    assert (
        text
        == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nThe time?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


# --- without the official templates --------------------------------------------------------------------------------

CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "arguments": {"zone": "UTC", "sure": True, "days": [1, 2]}},
}
WRITTEN = (
    "<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n</parameter>\n"
    "<parameter=sure>\nTrue\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
)
ASK, RESULT, SAY = Message("user", "The time?"), Message("tool", "12:00"), Message("assistant", "Noon.")
LOOK = Message("assistant", "Well.", "Look it up.", (CALL,))


def built(**options: Any) -> Nemotron3:
    return Nemotron3(ByteTokenizer(), **{"thinking": True, **options})


def text_of(renderer: Nemotron3, tokens: Any) -> str:
    return renderer.tokenizer.decode(list(tokens))


def kept_text(renderer: Nemotron3, conversation: Conversation) -> str:
    rendered = renderer.render(conversation)
    return text_of(renderer, [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


@pytest.mark.parametrize(("version", "ends"), [("nano", "\n</think>\n"), ("ultra", "</think>")])
def test_what_is_written_and_what_trains(version: str, ends: str) -> None:
    asked = Conversation((Message("system", "Be brief."), ASK, LOOK, RESULT, RESULT, SAY))
    renderer = built(version=version)
    assert text_of(renderer, renderer.render(asked).tokens) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThe time?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nLook it up.{ends}Well.\n{WRITTEN}<|im_end|>\n<|im_start|>user\n"
        "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n12:00\n</tool_response>\n<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>Noon.<|im_end|>\n"
    )
    # the prompt opens the block of the first answer; that the second has none is not its own to say
    assert kept_text(renderer, asked) == f"Look it up.{ends}Well.\n{WRITTEN}{END}Noon.{END}"


def test_earlier_reasoning_goes_and_is_counted() -> None:
    asked = Conversation((ASK, LOOK, RESULT, SAY, Message("user", "Sure?"), Message("assistant", "Yes.", "Hm.")))
    rendered = built().render(asked)
    text = text_of(built(), rendered.tokens)
    assert f"assistant\n<think></think>Well.\n{WRITTEN}<|im_end|>" in text and "<think>\nHm.\n</think>\nYes." in text
    assert rendered.remarks == ("reasoning left out",)
    kept = built(keep_reasoning=True)
    assert "<think>\nLook it up.\n</think>" in text_of(kept, kept.render(asked).tokens)
    assert kept.render(asked).remarks == () and kept.extension and extends(kept, asked)


def test_a_tool_is_told_tag_by_tag() -> None:
    zone = {"type": "string", "description": " Of the place. ", "enum": ["UTC"], "default": None}
    parameters = {"type": "object", "properties": {"zone": zone}, "required": ["zone"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": parameters}}
    renderer = built()
    text = text_of(renderer, renderer.prompt((Message("system", "Be brief."), ASK), (tool,)))
    assert text.startswith(
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
        "<function>\n<name>clock</name>\n<description>The time.</description>\n<parameters>\n<parameter>\n"
        "<name>zone</name>\n<type>string</type>\n<description>Of the place.</description>\n"
        '<enum>["UTC"]</enum>\n<default>None</default>\n</parameter>\n'
        '<additionalProperties>False</additionalProperties>\n<required>["zone"]</required>\n</parameters>\n'
        "</function>\n</tools>\n\nIf you choose to call a function ONLY reply"
    )


@pytest.mark.parametrize("options", [{}, {"version": "ultra"}, {"keep_reasoning": True}, {"thinking": False}])
def test_an_answer_is_read_back(options: dict[str, Any]) -> None:
    for answer in (LOOK, replace(LOOK, content=""), Message("assistant", "Noon.", "Hm.")):
        answer = answer if options.get("thinking", True) else replace(answer, reasoning="")
        assert_reads_back(built(**options), Conversation((ASK, answer)), lambda message: message)


def test_what_models_say_is_read() -> None:
    renderer = built()
    for text, reasoning, content in (("</think>\nNoon.", "", "Noon."), ("Well, let me", "Well, let me", "")):
        message = renderer.parse(renderer.tokenizer.encode(text, special=True)).message
        assert (message.reasoning, message.content) == (reasoning, content)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("assistant", "lost<think>a</think>b"), "one think block"),
        (Message("assistant", "<think>a</think>b<think>c</think>d"), "one think block"),
        (Message("assistant", "<think>never closed"), "one think block"),
        (Message("assistant", "<think>a</think>b", "c"), "one think block"),
        (Message("developer", "a"), "no role 'developer'"),
        (
            Message("assistant", "", "", ({"function": {"name": "f", "arguments": {"a": "\n</parameter>\n"}}},)),
            "spells its markup",
        ),
    ],
)
def test_what_it_cannot_say_is_an_error(message: Message, problem: str) -> None:
    with pytest.raises(DataError, match=rf"messages\[1\].*{problem}"):
        built().render(Conversation((ASK, message)))


def test_reasoning_while_thinking_is_off_is_refused() -> None:
    for answer in (Message("assistant", "Noon.", "Hm."), Message("assistant", "<think>\nHm.\n</think>\nNoon.")):
        with pytest.raises(DataError, match="no reasoning while thinking is off"):
            built(thinking=False).render(Conversation((ASK, answer)))
        earlier = Conversation((ASK, answer, Message("user", "Sure?"), SAY))
        assert built(thinking=False).render(earlier).remarks == ("reasoning left out",)


def test_ranges_weigh_what_they_say() -> None:
    renderer = built()
    own = Message(
        "assistant", "abc ", "xyz", (), weights=(Weighted(0, 1, 0.5),), reasoning_weights=(Weighted(1, 2, 0),)
    )
    inline = "<think>\nxyz\n</think>\nabc"
    ranges = (
        Weighted(inline.index("y"), inline.index("y") + 1, 0),
        Weighted(inline.index("a"), inline.index("a") + 1, 0.5),
    )
    for answer in (own, Message("assistant", inline, weights=ranges)):
        rendered = renderer.render(Conversation((Message("user", "?"), answer)))
        letters = [renderer.tokenizer.decode([token]) for token in rendered.tokens]
        found = {
            letter: w for letter, w in zip(letters[-28:], rendered.weights[-28:], strict=True) if letter in "abcxyz"
        }
        assert found == {"a": 0.5, "b": 1, "c": 1, "x": 1, "y": 0, "z": 1}


def test_a_model_with_another_template_is_told(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer(chat_template="{{ messages[0].content }}"))
    build(Nemotron3Options(), context)
    assert "data.renderer: jinja follows the model's own" in context.notes[0]
