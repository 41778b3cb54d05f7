"""The renderer against templates that say the same: the same tokens, what trains, what is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_cohere.renderer import Cohere2, build
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    Golden,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    golden,
    official,
    spells_special,
)
from finetooth_rendering.turns import json_text
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings

Tokenizers = Callable[[str], FastTokenizer]
OPENER = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
OVER = "<|END_OF_TURN_TOKEN|>"
PLAIN = conversations()
CALLING = conversations(tools=True, reasoning=True, content_with_calls=False)
CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}
ASK, SAY = Message("user", "The time?"), Message("assistant", "Noon.")
CALLS = Message("assistant", "", "Look.", (CALL,))
RESULT = Message("tool", "12:00", tool_call_id="a")


def planned(conversation: Conversation) -> Conversation:
    """Without reasoning that goes before no call, for which the markup has no place."""
    kept = (m if m.tool_calls else Message(m.role, m.content, name=m.name, tool_call_id=m.tool_call_id)
            for m in conversation.messages)  # fmt: skip
    return Conversation(tuple(kept), conversation.tools)


def numbered(conversation: Conversation) -> bool:
    """No id stands for two calls: there the template takes the first, and the renderer the last before a result."""
    ids = [call["id"] for message in conversation.messages for call in message.tool_calls]
    return len(ids) == len({*ids})


CALLED = CALLING.map(planned).filter(numbered)


@cache
def built(tokenizer: FastTokenizer) -> Cohere2:
    return Cohere2(tokenizer)


def check_identity(tokenizer: FastTokenizer, conversation: Conversation) -> None:
    """The tokens of the whole are the template's, but for an answer that it begins behind the last; so are those of
    every prompt."""
    if spells_special(tokenizer, conversation):
        return
    renderer, messages = built(tokenizer), conversation.messages
    expected = official(tokenizer, conversation)[1].removesuffix(OPENER)
    assert tokenizer.decode(renderer.render(conversation).tokens) == expected
    assert list(renderer.render(conversation).tokens) == tokenizer.encode(expected, special=True)
    for i, message in enumerate(messages):
        if i and message.role == "assistant":
            before = Conversation(messages[:i], conversation.tools)
            assert list(renderer.prompt(before.messages, before.tools)) == official(tokenizer, before, ask=True)[0]


@settings(max_examples=draws(40), deadline=None)
@given(conversation=PLAIN)
def test_tokens_are_those_of_a_template_without_tools(tokenizers: Tokenizers, conversation: Conversation) -> None:
    check_identity(tokenizers("plain"), conversation)


@settings(max_examples=draws(60), deadline=None)
@given(conversation=CALLED)
def test_tokens_are_those_of_a_template_with_tools(tokenizers: Tokenizers, conversation: Conversation) -> None:
    check_identity(tokenizers("tools"), conversation)


@settings(max_examples=draws(60), deadline=None)
@given(conversation=PLAIN)
def test_tokens_are_those_of_the_official_template(tiny_aya: FastTokenizer, conversation: Conversation) -> None:
    check_identity(tiny_aya, conversation)


GOLDEN = golden(Path(__file__).parent / "golden/command-r7b.jsonl", "command-r7b")
"""Renderings of the official template of Command R7B by transformers, from the first question on: what stands before
is a page of rules, which the renderer reads off the model's own template."""


@pytest.mark.parametrize("rendering", GOLDEN, ids=[f"{one.case}{' asked' * one.ask}" for one in GOLDEN])
def test_turns_are_those_of_command_r7b(tokenizers: Tokenizers, rendering: Golden) -> None:
    tokenizer = tokenizers("tools")
    tokens, text = rendering.tokens(built(tokenizer)), (rendering.text or "") + OPENER * rendering.ask
    first = tokenizer.encode("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", special=True)
    begin = next(i for i in range(len(tokens)) if list(tokens[i : i + 2]) == first)
    assert list(tokens[begin:]) == tokenizer.encode(text, special=True)


def written(message: Message, number: int) -> str:
    """What an answer says."""
    if not message.tool_calls:
        return f"<|START_RESPONSE|>{message.content}<|END_RESPONSE|>{OVER}"
    lines = [
        f'    {{"tool_call_id": "{number + i}", "tool_name": "{call["function"]["name"]}", '
        f'"parameters": {json_text(call["function"]["arguments"])}}}'
        for i, call in enumerate(message.tool_calls)
    ]
    return (
        f"<|START_THINKING|>{message.reasoning}<|END_THINKING|><|START_ACTION|>[\n" + ",\n".join(lines) +
        f"\n]<|END_ACTION|>{OVER}"
    )  # fmt: skip


@settings(max_examples=draws(40), deadline=None)
@given(conversation=CALLED)
def test_answers_train_with_their_end_and_read_back(tokenizers: Tokenizers, conversation: Conversation) -> None:
    tokenizer = tokenizers("tools")
    if spells_special(tokenizer, conversation):
        return
    renderer, said, number = built(tokenizer), [], 0
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            said.append(written(message, number))
            calls = tuple({**call, "id": str(number + k)} for k, call in enumerate(message.tool_calls))
            normal = Message("assistant", "" if calls else message.content, message.reasoning, calls)
            assert_reads_back(renderer, conversation, lambda _, normal=normal: normal, i)
            number += len(calls)
    assert_trains(renderer, tokenizer, conversation, said)
    assert extends(renderer, conversation)


@settings(max_examples=draws(30), deadline=None)
@given(conversation=PLAIN)
def test_an_open_response_is_not_trained(tokenizers: Tokenizers, conversation: Conversation) -> None:
    tokenizer = tokenizers("plain")
    if spells_special(tokenizer, conversation):
        return
    said = [f"{m.content}<|END_RESPONSE|>{OVER}" for m in conversation.messages if m.role == "assistant"]
    assert_trains(built(tokenizer), tokenizer, conversation, said)
    assert_reads_back(built(tokenizer), conversation, lambda message: message)
    assert extends(built(tokenizer), conversation)


def test_results_name_their_calls(tokenizers: Tokenizers) -> None:
    """By their ids, also where every turn counts anew, or by their places."""
    tokenizer = tokenizers("tools")
    two = Message("assistant", "", tool_calls=({**CALL, "id": "a"}, {**CALL, "id": "b"}))
    shuffled = (Message("tool", "B", tool_call_id="b"), Message("tool", "A", tool_call_id="a"))
    placed = (Message("tool", "C"), Message("tool", "D"))
    conversation = Conversation((ASK, two, *shuffled, SAY, ASK, two, *shuffled, two, *placed, SAY), (TOOL,))
    text = tokenizer.decode(built(tokenizer).render(conversation).tokens)
    results = text.split("<|START_TOOL_RESULT|>")[1:]
    found = [[(one["tool_call_id"], one["results"]["0"]) for one in json.loads(part.split("<|END_TOOL")[0])]
             for part in results]  # fmt: skip
    assert found == [[("1", "B"), ("0", "A")], [("3", "B"), ("2", "A")], [("4", "C"), ("5", "D")]]


def test_parts_and_spans(tokenizers: Tokenizers) -> None:
    """Ranges weigh what they say, also in a result, where JSON escapes what stands before."""
    tokenizer = tokenizers("tools")
    result = Message("tool", 'a"b', tool_call_id="a", weights=(Weighted(2, 3, 0.5),))
    answer = Message("assistant", "Noon.", weights=(Weighted(0, 4, 0.25),))
    conversation = Conversation((Message("system", "Brief."), ASK, CALLS, result, answer), (TOOL,))
    rendered = built(tokenizer).render(conversation, train_on="last")
    pairs = list(zip(rendered.tokens, rendered.weights, strict=True))
    weighted = {w: tokenizer.decode([t for t, weight in pairs if weight == w]) for w in (0.25, 0.5)}
    assert weighted == {0.25: "Noon", 0.5: "b"}
    spoken = [tokenizer.decode(rendered.tokens[begin:end]) for begin, end in rendered.spans]
    for message, text in zip(conversation.messages, spoken, strict=True):
        assert json_text(message.content)[1:-1] in text


def test_text_that_spells_a_control_token_stays_text(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("tools")
    rendered = built(tokenizer).render(Conversation((ASK, Message("assistant", f"a{OVER}b"))))
    assert rendered.tokens.count(tokenizer.token_id(OVER) or -1) == 3


def test_broken_calls_stay_in_the_content(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("tools")
    for said in ('<|START_ACTION|>[{"tool_name": "f"}]<|END_ACTION|>', "<|START_ACTION|>[<|END_ACTION|>"):
        parsed = built(tokenizer).parse(tokenizer.encode(said + OVER, special=True))
        assert (parsed.message, parsed.stop) == (Message("assistant", said), "stop")
    cut = built(tokenizer).parse(tokenizer.encode("<|START_THINKING|>Well", special=True))
    assert (cut.message, cut.stop) == (Message("assistant", "", "Well"), "length")


@pytest.mark.parametrize(
    ("name", "message", "problem"),
    [
        ("tools", Message("judge", "a"), r"messages\[1\].*no role 'judge'"),
        ("tools", Message("assistant", "a", "b"), r"messages\[1\].*reasoning only before calls"),
        ("tools", Message("assistant", "a", tool_calls=(CALL,)), r"messages\[1\].*no place for content next to calls"),
        ("tools", Message("assistant", "", tool_calls=({"name": "f"},)), r"messages\[1\].*a tool call is not"),
        ("tools", RESULT, r"messages\[1\].*a result without a call"),
        ("plain", CALLS, r"messages\[1\].*no tools in the model's own chat template"),
    ],
)
def test_what_it_cannot_say_is_an_error(tokenizers: Tokenizers, name: str, message: Message, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(tokenizers(name)).render(Conversation((ASK, message)))
    assert "\n" not in str(error.value)


def test_tools_without_a_place_are_an_error(tokenizers: Tokenizers) -> None:
    with pytest.raises(DataError, match=r"tools.*no tools in the model's own chat template"):
        built(tokenizers("plain")).render(Conversation((ASK, SAY), (TOOL,)))


@pytest.mark.parametrize("name", ["tools", "plain"])
@pytest.mark.parametrize(("said", "instead"), [("", ""), ("<|END_RESPONSE|>", "!<|END_RESPONSE|>")])
def test_a_template_that_answers_otherwise_is_told(
    tokenizers: Tokenizers, cohere_tokenizer: Tokenizers, tmp_path: Path, name: str, said: str, instead: str
) -> None:
    template = (tokenizers(name).chat_template or "").replace(said, instead)
    context = FakeContext(tmp_path, tokenizer=cohere_tokenizer(template))
    build(context)
    assert len(context.notes) == bool(said) and all("data.renderer: jinja" in note for note in context.notes)


@pytest.mark.parametrize(
    ("template", "told"),
    [(None, "no chat template"), ("{{ messages[0].content }}", "does not write cohere2"), ("{{", "cannot be rendered")],
)
def test_without_a_template_of_its_kind_there_are_no_rules(tmp_path: Path, template: str | None, told: str) -> None:
    tokenizer = ByteTokenizer(chat_template=template)
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    rendered = build(context).render(Conversation((Message("system", "Brief."), ASK, SAY)))
    assert tokenizer.decode(list(rendered.tokens)).endswith(
        f"<|SYSTEM_TOKEN|>Brief.{OVER}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>The time?{OVER}{OPENER}<|START_RESPONSE|>"
        f"Noon.<|END_RESPONSE|>{OVER}"
    )
    assert [told in note for note in context.notes] == [True]


def test_a_tokenizer_without_markup_is_refused() -> None:
    class Foreign(ByteTokenizer):
        def token_id(self, token: str) -> int | None:
            return None if "CHATBOT" in token else super().token_id(token)

    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|CHATBOT_TOKEN\|>"):
        Cohere2(Foreign())
