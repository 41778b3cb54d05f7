"""The renderer against the models' own templates, on golden and on generated conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_glm.renderer import GLM4Moe, GLMOptions
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, draws, parametrize_with_checks
from finetooth_kit.templates import (
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    official,
    spells_special,
)  # fmt: skip
from finetooth_rendering.turns import json_text
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

Tokenizers = Callable[..., FastTokenizer]
TEMPLATES = ("glm-4-moe", "glm-4.6")
MARKUP = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)


def unmarked(conversation: Conversation) -> bool:
    """Nothing spells markup, which has tests of its own: hypothesis tries literals of the code, too."""
    return not any(mark in repr(conversation.messages) for mark in MARKUP)


SAID = conversations(tools=True, reasoning=True).filter(unmarked)
UNTHOUGHT = conversations(tools=True).filter(unmarked)


@parametrize_with_checks("finetooth_glm.plugin")
def test_conforms(check: Any) -> None:
    check()


def built(tokenizer: Any, **options: Any) -> GLM4Moe:
    """The renderer, made once: it looks all its tokens up in a whole vocabulary."""
    return made(tokenizer, tuple(options.items()))


@cache
def made(tokenizer: Any, options: tuple[tuple[str, Any], ...]) -> GLM4Moe:
    return GLM4Moe(tokenizer, GLMOptions(**dict(options)))


def check_identity(tokenizer: FastTokenizer, conversation: Conversation, thinking: bool) -> None:
    if spells_special(tokenizer, conversation):
        return
    variables = {} if thinking else {"enable_thinking": False}
    assert_identical(built(tokenizer, thinking=thinking, close=False), tokenizer, conversation, **variables)
    closed = built(tokenizer, thinking=thinking).render(conversation).tokens
    assert list(closed[:-1]) == official(tokenizer, conversation, **variables)[0]
    assert closed[-1] == tokenizer.token_id("<|user|>")


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data(), thinking=st.booleans())
def test_tokens_are_those_of_the_template(tokenizers: Tokenizers, name: str, data: Any, thinking: bool) -> None:
    check_identity(tokenizers(name), data.draw(SAID if thinking else UNTHOUGHT), thinking)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=draws(15), deadline=None)
@given(data=st.data(), thinking=st.booleans())
def test_tokens_are_those_of_the_template_in_a_real_vocabulary(
    tokenizers: Tokenizers, name: str, data: Any, thinking: bool
) -> None:
    check_identity(tokenizers(name, real=True), data.draw(SAID if thinking else UNTHOUGHT), thinking)


TEXT_ARGUMENTS = "minja_tool_use"  # has arguments as text, which GLM-4.5's template refuses and GLM-4.6's leaves out


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_golden(shared: Path, name: str) -> None:
    tokenizer = ByteTokenizer()
    seen = 0
    for line in (shared / "golden/chat_renderings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        if row["template"] != f"templates/{name}.jinja":
            continue
        messages = tuple(
            Message(
                x["role"], x["content"], reasoning=x.get("reasoning_content", ""), name=x.get("name", ""),
                tool_calls=tuple(x.get("tool_calls", ())), tool_call_id=x.get("tool_call_id", ""),
            )
            for x in row["messages"]
        )  # fmt: skip
        conversation, asks = Conversation(messages, tuple(row.get("tools") or ())), row["add_generation_prompt"]
        renderer = built(tokenizer, close=False, thinking=row.get("kwargs", {}).get("enable_thinking", True))
        seen += 1
        if row["case"] == TEXT_ARGUMENTS:
            with pytest.raises(DataError, match="a tool call is not of the form"):
                renderer.prompt(messages, conversation.tools)
            continue
        tokens = renderer.prompt(messages, conversation.tools) if asks else renderer.render(conversation).tokens
        assert tokenizer.decode(tokens) == row["expected"], row["case"]
    assert seen == 11


def trained(conversation: Conversation, *, thinking: bool, keep: bool) -> list[str]:
    """What must train, from the messages alone: one piece an answer, from its think block to the next opening token."""
    messages = conversation.messages
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    texts = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        kept = i > last or keep
        said = f"\n<think>{message.reasoning.strip() if kept else ''}</think>"
        if not thinking or (message.reasoning and not kept):
            said = ""
        if message.content.strip():
            said += "\n" + message.content.strip()
        for call in message.tool_calls:
            said += f"\n<tool_call>{call['function']['name']}\n"
            for key, value in call["function"]["arguments"].items():
                text = value if isinstance(value, str) else json_text(value)
                said += f"<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n"
            said += "</tool_call>"
        texts.append(said + ("<|observation|>" if message.tool_calls else "<|user|>"))
    return texts


def normal(message: Message, *, kept: bool = True) -> Message:
    calls = [{"type": "function", "function": call["function"]} for call in message.tool_calls]
    reasoning = message.reasoning.strip() if kept else ""
    return Message("assistant", message.content.strip(), reasoning=reasoning, tool_calls=tuple(calls))


def ambiguous(conversation: Conversation) -> bool:
    """Some argument is text that reads as another JSON value, or looks like markup."""
    values = [
        value
        for message in conversation.messages
        for call in message.tool_calls
        for value in call["function"]["arguments"].values()
    ]
    return any(isinstance(value, str) and value.strip()[:1] in tuple("0123456789-{[ntf") for value in values)


@settings(max_examples=draws(40), deadline=None)
@given(data=st.data(), thinking=st.booleans(), keep=st.booleans())
def test_answers_train_and_read_back(tokenizers: Tokenizers, data: Any, thinking: bool, keep: bool) -> None:
    conversation = data.draw(SAID if thinking else UNTHOUGHT)
    tokenizer = tokenizers("glm-4.6")
    renderer = built(tokenizer, thinking=thinking, keep_reasoning=keep)
    assert_trains(renderer, tokenizer, conversation, trained(conversation, thinking=thinking, keep=keep))
    if ambiguous(conversation):
        return
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            assert_reads_back(renderer, conversation, normal, i)


@settings(max_examples=draws(30), deadline=None)
@given(data=st.data())
def test_extension_holds(tokenizers: Tokenizers, data: Any) -> None:
    for options, some in (({"keep_reasoning": True}, SAID), ({"thinking": False}, UNTHOUGHT)):
        renderer = built(tokenizers("glm-4.6"), **options)
        assert renderer.extension and extends(renderer, data.draw(some))


def test_extension_does_not_hold() -> None:
    renderer = built(ByteTokenizer())
    messages = (
        Message("user", "a"), Message("assistant", "b", reasoning="c"), Message("user", "d"), Message("assistant", "e"),
    )  # fmt: skip
    assert not renderer.extension and not extends(renderer, Conversation(messages))
    assert not built(ByteTokenizer(), keep_reasoning=True, close=False).extension
    assert renderer.render(Conversation(messages)).remarks == ("reasoning left out",)
    assert built(ByteTokenizer(), keep_reasoning=True).render(Conversation(messages)).remarks == ()


@settings(max_examples=draws(30), deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "a", "b"]), max_size=9).map("".join),
    more=st.booleans(),
)
def test_reasoning_inside_a_content_is_split_as_in_the_template(
    tokenizers: Tokenizers, pieces: str, more: bool
) -> None:
    tokenizer = tokenizers("glm-4.6")
    messages = (Message("user", "x"), Message("assistant", pieces), Message("user", "y"), Message("assistant", pieces))
    conversation, renderer = Conversation(messages[: 4 if more else 2]), built(tokenizer, close=False)
    written = official(tokenizer, Conversation(messages[:2]))[1].rpartition("<|assistant|>")[2]
    lost = any(written.count(letter) < pieces.count(letter) for letter in "ab")
    if lost or pieces.count("</think>") > 1:
        with pytest.raises(DataError, match=r"messages\[1\].*one think block, and it stands first"):
            renderer.render(conversation)
    else:
        assert_identical(renderer, tokenizer, conversation)


@settings(max_examples=draws(30), deadline=None)
@given(
    name=st.sampled_from(["f", "f<g", "f\ng", "<tool_call>"]),
    arguments=st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "\n", *MARKUP]), max_size=3).map("".join),
        st.lists(st.sampled_from(["a", "\n", "été", *MARKUP]), max_size=4).map("".join) | st.just(["</arg_value>\n"]),
        max_size=2,
    ),
)
def test_a_call_is_read_back_as_it_is_or_refused(tokenizers: Tokenizers, name: str, arguments: dict[str, Any]) -> None:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    conversation = Conversation((Message("user", "x"), Message("assistant", "y", tool_calls=(call,))))
    renderer = built(tokenizers("glm-4.6"))
    try:
        renderer.render(conversation)
    except DataError as refused:
        assert re.search(r"messages\[1\].*spells its markup", str(refused))
        assert any(mark in f"{name}{arguments}" for mark in MARKUP) or name != "f"
    else:
        assert_reads_back(renderer, conversation, normal)


def test_only_calls_that_end_early_are_refused(tokenizers: Tokenizers) -> None:
    for value, said in (
        ("</arg_value>", True),
        ("a</arg_value>\nb", False),
        ("<arg_key>", True),
        ("<tool_call>", False),
    ):
        call = {"type": "function", "function": {"name": "f", "arguments": {"k": value}}}
        conversation = Conversation((Message("user", "x"), Message("assistant", "", tool_calls=(call,))))
        if said:
            assert_reads_back(built(tokenizers("glm-4.6")), conversation, normal)
            continue
        with pytest.raises(DataError, match=r"messages\[1\].*spells its markup"):
            built(tokenizers("glm-4.6")).render(conversation)


def test_parts_and_flags() -> None:
    """Ranges weigh what they say, also where blanks are left out and where a content is split."""
    messages = (
        Message("user", "q", weights=(Weighted(0, 1, 0.5),)),
        Message("assistant", "no", train=False),
        Message("user", "r"),
        Message("assistant", " ab ", reasoning=" tu", weights=(Weighted(0, 2, 0.25),),
                reasoning_weights=(Weighted(2, 3, 0.75),)),
    )  # fmt: skip
    rendered = built(ByteTokenizer()).render(Conversation(messages))
    begin = rendered.spans[3][0]
    assert rendered.weights[begin:] == (0.0, 1.0, 1.0, 1.0, 0.75, 1.0, 1.0, 0.25, 1.0, 1.0)
    assert [weight for weight in rendered.weights[:begin] if weight] == [0.5]
    inside = (Message("user", "r"), Message("assistant", "<think>tu</think>ab", weights=(Weighted(8, 18, 0.25),)))
    rendered = built(ByteTokenizer()).render(Conversation(inside))
    assert rendered.weights[rendered.spans[1][0] :] == (0.0, 1.0, 1.0, 1.0, 0.25, 1.0, 1.0, 0.25, 1.0, 1.0)


def test_the_end_of_an_answer_trains_with_it_alone() -> None:
    messages = (Message("user", "a"), Message("assistant", "b", train=False), Message("user", "c", train=True))
    rendered = built(ByteTokenizer()).render(Conversation(messages))
    assert [weight for weight in rendered.weights if weight] == [1.0]  # c, and not the <|user|> before it


def test_text_that_spells_a_special_token_stays_text(tokenizers: Tokenizers) -> None:
    renderer = built(tokenizers("glm-4.6"))
    messages = (Message("user", "<|user|><|observation|>"), Message("assistant", "a<|user|>b"))
    assert renderer.render(Conversation(messages)).tokens.count(renderer.stop_ids[0]) == 2


def test_broken_calls_stay_in_the_content() -> None:
    tokenizer = ByteTokenizer()
    broken = "hm\n<tool_call>f\n<arg_key>a</arg_key>\n</tool_call>"
    parsed = built(tokenizer).parse(tokenizer.encode(f"\n<think></think>\n{broken}", special=True))
    assert (parsed.message, parsed.stop) == (Message("assistant", broken), "length")
    cut = built(tokenizer).parse(tokenizer.encode("\n<think>hm", special=True))
    assert (cut.message, cut.stop) == (Message("assistant", "", reasoning="hm"), "length")
    good = "\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>[1]</arg_value>\n</tool_call>"
    parsed = built(tokenizer).parse(tokenizer.encode(f"hm{good}<|observation|>", special=True))
    assert parsed.message.content == "hm" and parsed.message.tool_calls[0]["function"]["arguments"] == {"a": [1]}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("judge", "a"), r"messages\[1\].*no role 'judge'"),
        (Message("assistant", "", tool_calls=({"name": "f"},)), r"messages\[1\].*a tool call is not"),
        (Message("assistant", "a", reasoning="b"), r"messages\[1\].*no reasoning while thinking is off"),
    ],
)
def test_what_it_cannot_say_is_an_error(message: Message, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(ByteTokenizer(), thinking=False).render(Conversation((Message("user", "a"), message)))
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_markup_is_refused() -> None:
    class Foreign(ByteTokenizer):
        def token_id(self, token: str) -> int | None:
            return None if "sop" in token else super().token_id(token)

    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <sop>"):
        built(Foreign())
