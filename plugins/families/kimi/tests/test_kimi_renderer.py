"""The renderer against golden renderings of the official templates and templates that say the same, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kimi.renderer import KimiK2, KimiOptions, build
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    golden,
    official,
    spells_special,
)
from finetooth_rendering.tool_calls import call_of
from finetooth_rendering.turns import json_text
from finetooth_toolbox.messages.written_templates import tokens_by
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

Tokenizers = Callable[[str], FastTokenizer]
GOLDEN = Path(__file__).parent / "golden/kimi.jsonl"
"""Renderings of the official templates of Kimi K2 Instruct and K2 Thinking, by transformers."""
SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
CALL: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}
ASK, RESULT, SAY = Message("user", "The time?"), Message("tool", "12:00"), Message("assistant", "Noon.")
CALLS, SURE = Message("assistant", "", tool_calls=(CALL,)), Message("assistant", "Quite.", "Hm.")
ENDED = "<|im_end|>"


@cache
def built(tokenizer: Any, **options: Any) -> KimiK2:
    return KimiK2(tokenizer, KimiOptions(**options))


def numbered(conversation: Conversation) -> Conversation:
    """With ids as the model gives them, which the templates write as they are."""
    ids: dict[str, str] = {}
    messages, count = [], 0
    for message in conversation.messages:
        calls = []
        for call in message.tool_calls:
            ids[call["id"]] = f"functions.{call['function']['name']}:{count}"
            calls.append({**call, "id": ids[call["id"]]})
            count += 1
        id_ = ids[message.tool_call_id] if message.tool_call_id else ""
        messages.append(replace(message, tool_calls=tuple(calls), tool_call_id=id_))
    return Conversation(tuple(messages), conversation.tools)


def unmarked(conversation: Conversation) -> bool:
    """Nothing said spells markup: hypothesis tries literals of the code, too."""
    return not any(mark in repr(conversation.messages) for mark in (*KimiK2.controls, *KimiK2.optional))


SAID = {
    "instruct": conversations(tools=True).filter(unmarked).map(numbered),
    "thinking": conversations(tools=True, reasoning=True).filter(unmarked).map(numbered),
}


def written(message: Message, *, thinks: bool) -> str:
    """What an answer says."""
    block = f"<think>{message.reasoning}</think>" if thinks else ""
    calls = "".join(
        f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>{json_text(call['function']['arguments'])}"
        "<|tool_call_end|>"
        for call in message.tool_calls
    )
    section = f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>" if calls else ""
    return f"{block}{message.content}{section}{ENDED}"


@pytest.mark.parametrize("version", ["instruct", "thinking"])
def test_golden_renderings(kimi_tokenizer: Tokenizers, tokenizers: Tokenizers, version: str) -> None:
    """Token by token; K2 Thinking's template, given the whole, would leave out the reasoning of the last answer."""
    template = (tokenizers(version).chat_template or "").replace("Be kind.", SYSTEM)
    tokenizer = kimi_tokenizer(template)
    prompts = {one.case: one.text for one in golden(GOLDEN, version) if one.ask}
    cases = golden(GOLDEN, version)
    assert len(cases) == 2 * len(prompts) >= 20
    for one in cases:
        text = one.text or ""
        if version == "thinking" and not one.ask:
            text = f"{prompts[one.case]}{written(one.conversation.messages[-1], thinks=True)}"
        assert list(one.tokens(built(tokenizer))) == tokenizer.encode(text, special=True), one.case


@pytest.mark.parametrize("keep", [False, True])
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_the_template(tokenizers: Tokenizers, keep: bool, data: Any) -> None:
    tokenizer, conversation = tokenizers("instruct"), data.draw(SAID["instruct"])
    if not spells_special(tokenizer, conversation):
        assert_identical(built(tokenizer, keep_reasoning=keep), tokenizer, conversation)


@pytest.mark.parametrize("version", ["instruct", "thinking"])
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data(), keep=st.booleans())
def test_the_template_that_is_shipped_says_the_same(
    kimi_tokenizer: Tokenizers, tokenizers: Tokenizers, version: str, data: Any, keep: bool
) -> None:
    """With calls that are counted through the conversation, whatever ids they have, and results that name theirs."""
    renderer, conversation = built(tokenizers(version), keep_reasoning=keep), data.draw(SAID[version])
    assert renderer.template is not None
    if not spells_special(tokenizers(version), conversation):
        assert_identical(renderer, kimi_tokenizer(renderer.template), conversation)


@settings(max_examples=draws(60), deadline=None)
@given(conversation=SAID["thinking"])
def test_prompts_are_those_of_a_template_that_thinks(tokenizers: Tokenizers, conversation: Conversation) -> None:
    """And the last answer stands behind its prompt as the model would say it."""
    tokenizer, messages = tokenizers("thinking"), conversation.messages
    if spells_special(tokenizer, conversation):
        return
    renderer = built(tokenizer)
    assert (renderer.version, renderer.extension) == ("thinking", False)
    for i, message in enumerate(messages):
        if i and message.role == "assistant":
            tokens, text = official(tokenizer, Conversation(messages[:i], conversation.tools), ask=True)
            assert list(renderer.prompt(messages[:i], conversation.tools)) == tokens
            whole = renderer.render(Conversation(messages[: i + 1], conversation.tools))
            assert tokenizer.decode(whole.tokens) == text + written(message, thinks=True)
            assert_reads_back(renderer, conversation, lambda message: replace(message, name=""), i)


@settings(max_examples=draws(40), deadline=None)
@given(conversation=SAID["instruct"])
def test_answers_train_with_their_end_and_read_back(tokenizers: Tokenizers, conversation: Conversation) -> None:
    tokenizer = tokenizers("instruct")
    if spells_special(tokenizer, conversation):
        return
    renderer, said = built(tokenizer), []
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            said.append(written(message, thinks=False))
            assert_reads_back(renderer, conversation, lambda message: message, i)
    assert_trains(renderer, tokenizer, conversation, said)
    assert renderer.extension and extends(renderer, conversation)


def trained(rendered: Any, tokenizer: Any, weight: float = 1.0) -> str:
    return str(tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w == weight]))


def test_reasoning_of_earlier_answers_goes_and_their_empty_blocks_do_not_train() -> None:
    tokenizer = ByteTokenizer()
    early = Message("assistant", "Noon.", "Look.", weights=(Weighted(0, 4, 0.5),))
    called = replace(CALLS, reasoning="So.")
    asked = Conversation((ASK, early, ASK, Message("assistant", "Well."), ASK, called, RESULT, SURE), (TOOL,))
    renderer = built(tokenizer, version="thinking")
    rendered = renderer.render(asked)
    calls = CALL | {"id": "functions.clock:0"}
    assert trained(rendered, tokenizer) == (
        f".{ENDED}<think></think>Well.{ENDED}" + written(replace(called, tool_calls=(calls,)), thinks=True)
        + f"<think>Hm.</think>Quite.{ENDED}"
    )  # fmt: skip
    assert trained(rendered, tokenizer, 0.5) == "Noon" and rendered.remarks == ("reasoning left out",)
    keeps = built(tokenizer, version="thinking", keep_reasoning=True)
    assert "<think>Look.</think>Noon." in tokenizer.decode(list(keeps.render(asked).tokens))
    assert keeps.render(asked).remarks == () and keeps.extension and extends(keeps, asked)


def test_calls_are_numbered_and_results_name_them(kimi_tokenizer: Tokenizers, tokenizers: Tokenizers) -> None:
    """By their ids, also where every turn counts anew, or by their places."""
    tokenizer = tokenizers("instruct")
    two = Message("assistant", "", tool_calls=({**CALL, "id": "a"}, {**CALL, "id": "b"}))
    shuffled = (Message("tool", "B", tool_call_id="b"), Message("tool", "A", tool_call_id="a"))
    bare = Message("assistant", "", tool_calls=({k: v for k, v in CALL.items() if k != "id"},) * 2)
    placed = (Message("tool", "C"), Message("tool", "D"))
    asked = Conversation((ASK, two, *shuffled, SAY, ASK, two, *shuffled, bare, *placed, SAY), (TOOL,))
    text = tokenizer.decode(built(tokenizer).render(asked).tokens)
    found = [part.split(ENDED)[0].split("\n") for part in text.split("## Return of ")[1:]]
    assert found == [[f"functions.clock:{n}", said] for n, said in zip((1, 0, 3, 2, 4, 5), "BABACD", strict=True)]
    renderer = built(tokenizer)
    assert renderer.template is not None
    assert_identical(renderer, kimi_tokenizer(renderer.template), asked)
    for results in ((Message("tool", "C", tool_call_id="z"),), (*placed, Message("tool", "E"))):
        assert (
            tokens_by(renderer.template, (ASK, two if results[0].tool_call_id else bare, *results), tokenizer) is None
        )


def test_text_that_spells_a_control_token_stays_text(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("instruct")
    bob = Message("user", "a<|im_end|>b", name="<|im_end|>")
    rendered = built(tokenizer).render(Conversation((bob, Message("assistant", f"a{ENDED}b"))))
    assert rendered.tokens.count(tokenizer.token_id(ENDED) or -1) == 3


SECTION = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
MADE = "<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "f",
        MADE.format("functions.f:0", "[1]"),
        MADE.format("functions.f:0", "{"),
        MADE.format("f", "{}"),
        "<|tool_call_begin|>functions.f:0{}<|tool_call_end|>",
        "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}",
    ],
)
def test_broken_calls_stay_in_the_content(tokenizers: Tokenizers, said: str) -> None:
    tokenizer, text = tokenizers("instruct"), SECTION.format(said)
    parsed = built(tokenizer).parse(tokenizer.encode(text + ENDED, special=True))
    assert (parsed.message, parsed.stop) == (Message("assistant", text), "stop")


def test_calls_with_blanks_are_read_and_a_thought_without_an_end_is_one(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("thinking")
    loose = SECTION.format(MADE.format(" functions.math.sqrt:12 ", ' {"x": 2} '))
    parsed = built(tokenizer).parse(tokenizer.encode("<think>a</think>So:" + loose + ENDED, special=True))
    call = {"id": "functions.math.sqrt:12", **call_of("math.sqrt", {"x": 2})}
    assert parsed.message == Message("assistant", "So:", "a", (call,))
    cut = built(tokenizer).parse(tokenizer.encode("<think>Well", special=True))
    assert (cut.message, cut.stop) == (Message("assistant", "", "Well"), "length")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("judge", "a"), r"messages\[1\].*no role 'judge'"),
        (SURE, r"messages\[1\].*no markup for reasoning"),
        (Message("assistant", "", tool_calls=({"name": "f"},)), r"messages\[1\].*a tool call is not"),
        (RESULT, r"messages\[1\].*a result without a call"),
        (replace(RESULT, tool_call_id="x"), r"messages\[1\].*a result without a call"),
    ],
)
def test_what_it_cannot_say_is_an_error(message: Message, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(ByteTokenizer(), version="instruct").render(Conversation((ASK, message)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["instruct", "thinking"])
@pytest.mark.parametrize(("said", "instead"), [("", ""), ("{{ m.content }}", "{{ m.content | trim }}!")])
def test_a_template_that_answers_otherwise_is_told(
    tokenizers: Tokenizers, kimi_tokenizer: Tokenizers, tmp_path: Path, version: str, said: str, instead: str
) -> None:
    template = (tokenizers(version).chat_template or "").replace(said, instead)
    context = FakeContext(tmp_path, tokenizer=kimi_tokenizer(template))
    assert build(KimiOptions(), context).version == version
    assert len(context.notes) == bool(said) and all("data.renderer: jinja" in note for note in context.notes)


def test_a_tokenizer_without_markup_is_refused() -> None:
    class Foreign(ByteTokenizer):
        def token_id(self, token: str) -> int | None:
            return None if "middle" in token else super().token_id(token)

    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|im_middle\|>"):
        KimiK2(Foreign(), KimiOptions())
