"""`gemma4` against the official template, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_gemma.gemma4 import Gemma4, Gemma4Options, build
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    CLOCK,
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    official,
    says_any,
    spells_special,
    template_tokenizer,
)
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings

SPECIAL = (
    "<bos>", "<eos>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip
Made = Callable[..., tuple[Gemma4, FastTokenizer]]
EARLIER = ("gemma4", "gemma4_v3", "gemma4_v4")
"""The template between the release and July 2026, by TRL's names; that of the release has no results of tools."""
SAID = conversations(tools=True, reasoning=True, any_values=True, content_with_calls=False).filter(
    lambda one: not says_any(one, SPECIAL)
)


@pytest.fixture(scope="module")
def made(trl_template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    @cache
    def make(thinking: bool, template: str = "gemma4_v5") -> tuple[Gemma4, FastTokenizer]:
        tokenizer = template_tokenizer(trl_template(template), SPECIAL, eos="<eos>", bos="<bos>")
        context = FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer)
        renderer = build(Gemma4Options(thinking=thinking), context)
        assert not context.notes  # it is the model's own template
        return renderer, tokenizer

    return make


def value_text(value: Any, null: str = "null") -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: null}[value]
    if isinstance(value, list):
        return f"[{','.join(value_text(inner, null) for inner in value)}]"
    return f"{{{arguments_text(value, null)}}}" if isinstance(value, dict) else str(value)


def arguments_text(values: dict[str, Any], null: str) -> str:
    return ",".join(f"{key}:{value_text(values[key], null)}" for key in sorted(values))


def trained_texts(conversation: Conversation, opens: bool, null: str) -> list[str]:
    """What must train, from the messages alone.

    Args:
        opens: the prompt behind a result opens the channel of thoughts.
    """
    messages, texts = conversation.messages, []
    asked = max(i for i, message in enumerate(messages) if message.role == "user")
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        text = ""
        if message.reasoning and i > asked:
            opened = opens and messages[i - 1].role == "tool"
            text = "<|channel>thought\n" * (not opened) + message.reasoning + "\n<channel|>"
        for call in message.tool_calls:
            function = call["function"]
            text += f"<|tool_call>call:{function['name']}{{{arguments_text(function['arguments'], null)}}}<tool_call|>"
        texts.append(text + ("<|tool_response>" if message.tool_calls else message.content.strip() + "<turn|>"))
    return texts


def called(conversation: Conversation) -> Conversation:
    """Without the reasoning of answers that call nothing."""
    messages = (m if m.tool_calls else replace(m, reasoning="") for m in conversation.messages)
    return replace(conversation, messages=tuple(messages))


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("template", ["gemma4_v5", *EARLIER])
def test_tokens_and_weights_are_the_templates(made: Made, template: str, thinking: bool) -> None:
    renderer, tokenizer = made(thinking, template)
    earlier = template in EARLIER

    @settings(max_examples=draws(40), deadline=None)
    @given(SAID)
    def check(drawn: Conversation) -> None:
        conversation = called(drawn) if earlier else drawn
        if spells_special(tokenizer, conversation):
            return
        assert_identical(renderer, tokenizer, conversation, enable_thinking=thinking)
        texts = trained_texts(conversation, thinking and not earlier, "None" if earlier else "null")
        assert_trains(renderer, tokenizer, conversation, texts)

    check()


@pytest.mark.parametrize("template", ["gemma4_v5", "gemma4"])
def test_answers_are_read_back(made: Made, template: str) -> None:
    renderer, _ = made(False, template)

    def normal(message: Message) -> Message:
        calls = tuple({"type": "function", "function": call["function"]} for call in message.tool_calls)
        return replace(message, content=message.content.strip(), tool_calls=calls)

    @settings(max_examples=draws(40), deadline=None)
    @given(SAID)
    def check(drawn: Conversation) -> None:
        conversation = called(drawn) if template in EARLIER else drawn
        asked = max(i for i, message in enumerate(conversation.messages) if message.role == "user")
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant" and i > asked:
                assert_reads_back(renderer, conversation, normal, i)

    check()


NESTED = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a trip",
        "parameters": {
            "type": "object",
            "properties": {
                "When": {"type": "string", "enum": ["now", "later"], "description": "Time", "nullable": True},
                "stops": {
                    "type": "array",
                    "description": "Places",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "days": {"type": "number"}},
                        "required": ["name"],
                    },
                },
                "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
                "who": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
                "free": {"type": "object", "additionalProperties": {"type": "string"}},
                "any": {"description": "Anything"},
            },
            "required": ["When", "stops"],
        },
        "response": {"type": "object", "description": "The ticket"},
    },
}


@pytest.mark.parametrize("tool", [NESTED, CLOCK, {"type": "function", "function": {"name": "bare"}}], ids=str)
def test_tools_are_declared_as_by_the_template(made: Made, tool: dict[str, Any]) -> None:
    renderer, tokenizer = made(False)
    if "description" not in tool["function"]:
        tool = {**tool, "function": {**tool["function"], "description": ""}}
    assert_identical(renderer, tokenizer, Conversation((Message("user", "Go"), Message("assistant", "Yes")), (tool,)))


@pytest.mark.parametrize("template", ["gemma4_v5", "gemma4"])
def test_a_call_at_the_end_and_results_before_a_question(made: Made, template: str) -> None:
    renderer, tokenizer = made(False, template)
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {}}}
    called = (Message("user", "Time?"), Message("assistant", "", tool_calls=(call,)))
    answered = (*called, Message("tool", "12:00", name="clock", tool_call_id="1"))
    for messages in (called, answered, (*answered, Message("user", "And?"), Message("assistant", "Noon."))):
        conversation = Conversation(messages, (CLOCK,))
        assert list(renderer.render(conversation).tokens) == official(tokenizer, conversation)[0]
    assert tokenizer.decode(renderer.prompt(answered, (CLOCK,))[-1:]) == "<tool_response|>"


def test_reasoning_of_earlier_turns_is_counted() -> None:
    renderer = Gemma4(ByteTokenizer(special=SPECIAL))
    earlier = Gemma4(ByteTokenizer(special=SPECIAL), version="earlier")
    turns = (Message("user", "a"), Message("assistant", "b", reasoning="c"))
    assert renderer.render(Conversation(turns)).remarks == ()
    with pytest.raises(DataError, match=r"reasoning only before calls.*\(remove it, or set version: 2026-07"):
        earlier.render(Conversation(turns))
    more = (*turns, Message("user", "d"), Message("assistant", "e"))
    assert renderer.render(Conversation(more)).remarks == ("reasoning left out",)


EMPTY = "<|channel>thought\n<channel|>"
HISTORY = (Message("user", "Hello?"), Message("assistant", "Yes."), Message("user", "Sure?"))
SURE = Message("assistant", "Quite.")


@pytest.mark.parametrize(
    ("empty", "early", "late", "asked"),
    [("none", "", "", ""), ("prompt", "", "", EMPTY), ("asked", "", EMPTY, EMPTY), ("all", EMPTY, EMPTY, EMPTY)],
)
def test_an_empty_channel_opens_answers_of_large_models(empty: Any, early: str, late: str, asked: str) -> None:
    tokenizer = ByteTokenizer(special=SPECIAL)
    renderer = Gemma4(tokenizer, empty_thought=empty)
    prompt = renderer.prompt(HISTORY)
    first = f"<bos><|turn>user\nHello?<turn|>\n<|turn>model\n{early}Yes.<turn|>\n"
    before = f"{first}<|turn>user\nSure?<turn|>\n<|turn>model\n"
    assert tokenizer.decode(prompt) == before + asked
    conversation = Conversation((*HISTORY, SURE))
    assert tokenizer.decode(renderer.render(conversation).tokens) == f"{before}{late}Quite.<turn|>\n"
    assert_trains(renderer, tokenizer, conversation, ["Yes.<turn|>", "Quite.<turn|>"])  # type: ignore[arg-type]
    if late == asked:
        assert_reads_back(renderer, conversation, lambda message: message)
    silent = Gemma4(tokenizer, thinking=True, empty_thought=empty)
    assert EMPTY not in tokenizer.decode(silent.prompt(HISTORY))


def test_an_answer_behind_an_empty_channel_has_no_reasoning_but_after_a_result() -> None:
    renderer = Gemma4(ByteTokenizer(special=SPECIAL), empty_thought="asked")
    with pytest.raises(DataError, match=r"no reasoning while thinking is off \(remove it, or set thinking: true\)"):
        renderer.render(Conversation((HISTORY[0], replace(SURE, reasoning="Hm."))))
    call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {}}}
    called = (HISTORY[0], Message("assistant", "", tool_calls=(call,)), Message("tool", "12:00", tool_call_id="1"))
    text = renderer.tokenizer.decode(renderer.render(Conversation((*called, replace(SURE, reasoning="Hm.")))).tokens)
    assert text == (
        f"<bos><|turn>user\nHello?<turn|>\n<|turn>model\n{EMPTY}<|tool_call>call:clock{{}}<tool_call|><|tool_response>"
        'response:clock{value:<|"|>12:00<|"|>}<tool_response|><|channel>thought\nHm.\n<channel|>Quite.<turn|>\n'
    )


SAYS = """{{ bos_token }}{% for m in messages %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}
HISTORY{% if m.reasoning_content %}{{ '<|channel>thought\n' + m.reasoning_content + '\n<channel|>' }}{% endif %}
{{- m.content }}<turn|>
{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\n' }}PROMPT{% endif %}"""
"""Turns as Gemma 4's template writes them."""


@pytest.mark.parametrize(
    ("history", "prompt", "empty"), [("", "", "none"), ("", EMPTY, "asked"), (EMPTY, EMPTY, "all"), (EMPTY, "", "")]
)
def test_the_models_own_template_says_where_it_stands(tmp_path: Path, history: str, prompt: str, empty: str) -> None:
    opens = f"{{% if m.role == 'assistant' and not m.reasoning_content %}}{{{{ {history!r} }}}}{{% endif %}}"
    template = SAYS.replace("HISTORY", opens).replace("PROMPT", f"{{{{ {prompt!r} }}}}")
    tokenizer = template_tokenizer(template, SPECIAL, eos="<eos>", bos="<bos>")
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    told = tokenizer.decode(build(Gemma4Options(), context).render(Conversation((*HISTORY, SURE))).tokens)
    assert told.count(EMPTY) == {"none": 0, "asked": 1, "all": 2, "": 0}[empty]
    assert len(context.notes) == (not empty)  # it writes one where nothing asks for it: another template


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ((Message("user", "a"), Message("tool", "b")), "no result without a call"),
        ((Message("user", "a"), Message("assistant", "b"), Message("assistant", "c")), "two answers"),
        ((Message("user", "a", reasoning="c"), Message("assistant", "b")), "no place for reasoning of the role"),
    ],
)
def test_what_it_cannot_say_is_refused(messages: tuple[Message, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Gemma4(ByteTokenizer(special=SPECIAL)).render(Conversation(messages))
