"""`qwen3_5` against the official templates of Qwen3.5, 3.6 and 3.8, and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    CLOCK,
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    says_any,
    spells_special,
    template_tokenizer,
)
from finetooth_qwen.qwen3_5 import Qwen35, Qwen35Options, build
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
END = "<|im_end|>"
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "3.5": ("qwen3_5_think", {}, {}),
    "3.5-off": ("qwen3_5_think", {"thinking": False}, {"enable_thinking": False}),
    "3.5-small": ("qwen3_5_nothink", {}, {}),  # does not think by default
    "3.5-small-on": ("qwen3_5_nothink", {"thinking": True}, {"enable_thinking": True}),
    "3.6": ("qwen3_6", {}, {}),
    "3.6-kept": ("qwen3_6", {"keep_reasoning": True}, {"preserve_thinking": True}),
    "3.6-kept-off": (
        "qwen3_6", {"keep_reasoning": True, "thinking": False}, {"preserve_thinking": True, "enable_thinking": False},
    ),
    "3.8-kept": ("qwen3_8", {}, {}),
    "3.8-kept-low": ("qwen3_8", {"effort": "low"}, {"reasoning_effort": "low"}),
    "3.8": ("qwen3_8", {"effort": "medium", "keep_reasoning": False},
            {"reasoning_effort": "medium", "preserve_thinking": False}),
    "3.8-kept-off": ("qwen3_8", {"thinking": False}, {"enable_thinking": False}),
}  # fmt: skip
"""A template, options of the renderer, and variables of the template that mean the same."""
SILENT = ("3.5-off", "3.5-small", "3.6-kept-off", "3.8-kept-off")
Made = Callable[[str], tuple[Qwen35, FastTokenizer, dict[str, Any]]]


MARKS = (*SPECIAL, *PLAIN, "<function", "</function", "<parameter", "</parameter")


def silent(conversation: Conversation) -> Conversation:
    """Without reasoning."""
    return replace(conversation, messages=tuple(replace(m, reasoning="") for m in conversation.messages))


def said(name: str) -> Any:
    """Conversations that the renderer can say, with arguments of all kinds."""

    drawn = conversations(tools=True, reasoning=True, any_values=True).filter(lambda one: not says_any(one, MARKS))
    return drawn.map(silent) if name in SILENT else drawn


@pytest.fixture(scope="module")
def made(trl_template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    @cache
    def make(name: str) -> tuple[Qwen35, FastTokenizer, dict[str, Any]]:
        template, options, variables = CASES[name]
        tokenizer = template_tokenizer(trl_template(template), SPECIAL, plain=PLAIN, eos=END)
        context = FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer)
        renderer = build(Qwen35Options(**options), context)
        assert not context.notes
        return renderer, tokenizer, variables

    return make


def calls_text(message: Message, name: str) -> str:
    texts = []
    for call in message.tool_calls:
        text = f"<tool_call>\n<function={call['function']['name']}>\n"
        for key, value in call["function"]["arguments"].items():
            as_json = not isinstance(value, str) if name.startswith(("3.6", "3.8")) else isinstance(value, list | dict)
            text += f"<parameter={key}>\n{json.dumps(value, ensure_ascii=False) if as_json else value}\n</parameter>\n"
        texts.append(text + "</function>\n</tool_call>")
    return "\n".join(texts)


def trained_texts(name: str, conversation: Conversation) -> list[str]:
    """What must train, from the messages alone."""
    messages, texts = conversation.messages, []
    asked = max(i for i, message in enumerate(messages) if message.role == "user")
    for i, message in enumerate(messages):
        if message.role == "assistant":
            content = message.content.strip()
            block = name not in SILENT and (i > asked or "kept" in name)
            said = f"{message.reasoning.strip()}\n</think>\n\n" * block + content
            feed = "\n\n" if content and message.tool_calls else ""
            texts.append(said + feed + calls_text(message, name) + END)
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
        extended.append(extends(renderer, conversation))

    check()
    assert renderer.extension == all(extended) == ("kept" in name)


@pytest.mark.parametrize("name", ["3.5", "3.6-kept"])
def test_tokens_over_a_real_vocabulary(trl_template: Callable[[str], str], byte_level: Path, name: str) -> None:
    template, options, variables = CASES[name]
    tokenizer = template_tokenizer(trl_template(template), SPECIAL, plain=PLAIN, eos=END, base=byte_level)
    renderer = Qwen35(tokenizer, version="3.6" if "3.6" in name else "3.5", **options)

    @settings(max_examples=draws(15), deadline=None)
    @given(said(name))
    def check(conversation: Conversation) -> None:
        assume(not spells_special(tokenizer, conversation))
        assert_identical(renderer, tokenizer, conversation, **variables)

    check()


@pytest.mark.parametrize("name", ["3.5", "3.6-kept"])
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
        if not any(m.content[:1].isspace() for m in conversation.messages):
            assert renderer.render(inline) == renderer.render(conversation)

    check()


def test_the_result_that_a_user_gives_is_no_question(made: Made) -> None:
    renderer, tokenizer, _ = made("3.5")
    for result in (" <tool_response>\n12:00\n</tool_response>\n", "<tool_response> no"):
        asked = (Message("user", "Time?"), Message("assistant", "", reasoning="hm"), Message("user", result))
        conversation = Conversation((*asked, Message("assistant", "Noon.")))
        assert_identical(renderer, tokenizer, conversation)
        assert ("hm" in tokenizer.decode(renderer.render(conversation).tokens)) == result.endswith("\n")


# --- without the official templates --------------------------------------------------------------------------------

CALL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "arguments": {"zone": "UTC", "sure": True, "days": [1, 2]}},
}
ASK, RESULT, SAY = Message("user", " The time?\n"), Message("tool", "12:00 "), Message("assistant", "Noon.")
LOOK = Message("assistant", "Well.", "Look it up.", (CALL,))


def built(**options: Any) -> Qwen35:
    return Qwen35(ByteTokenizer(), **options)


def text_of(renderer: Qwen35, tokens: Any) -> str:
    return renderer.tokenizer.decode(list(tokens))


def kept_text(renderer: Qwen35, conversation: Conversation) -> str:
    rendered = renderer.render(conversation)
    return text_of(renderer, [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


def written(sure: str) -> str:
    return (
        "<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n</parameter>\n"
        f"<parameter=sure>\n{sure}\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize(("version", "sure"), [("3.5", "True"), ("3.6", "true")])
def test_what_is_written_and_what_trains(version: str, sure: str) -> None:
    asked = Conversation((Message("system", "Be brief. "), ASK, LOOK, RESULT, RESULT, SAY))
    renderer, call = built(version=version), written(sure)
    assert text_of(renderer, renderer.render(asked).tokens) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nThe time?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nLook it up.\n</think>\n\nWell.\n\n{call}<|im_end|>\n<|im_start|>user\n"
        "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n12:00\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nNoon.<|im_end|>\n"
    )
    trained = kept_text(renderer, asked)
    assert trained == f"Look it up.\n</think>\n\nWell.\n\n{call}{END}\n</think>\n\nNoon.{END}"


def test_earlier_reasoning_goes_and_is_counted() -> None:
    asked = Conversation((ASK, LOOK, RESULT, SAY, Message("user", "Sure?"), Message("assistant", "Yes.", "Hm.")))
    rendered = built().render(asked)
    text = text_of(built(), rendered.tokens)
    assert f"assistant\nWell.\n\n{written('True')}<|im_end|>" in text and "assistant\nNoon.<|im_end|>" in text
    assert rendered.remarks == ("reasoning left out",)
    kept = built(keep_reasoning=True)
    assert "<think>\nLook it up.\n</think>" in text_of(kept, kept.render(asked).tokens)
    assert kept.render(asked).remarks == () and kept.extension and extends(kept, asked)


def test_tools_stand_before_the_system_message() -> None:
    renderer = built()
    text = text_of(renderer, renderer.prompt((Message("system", "Be brief."), ASK), (CLOCK,)))
    tool = json.dumps(CLOCK)
    head = "<|im_start|>system\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n"
    assert text.startswith(f"{head}{tool}\n</tools>\n\nIf you choose to call a function ONLY reply")
    assert "</IMPORTANT>\n\nBe brief.<|im_end|>\n" in text and text.endswith("<|im_start|>assistant\n<think>\n")
    assert text_of(renderer, built(thinking=False).prompt((ASK,))).endswith("assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("options", [{}, {"version": "3.6"}, {"keep_reasoning": True}, {"thinking": False}])
def test_an_answer_is_read_back(options: dict[str, Any]) -> None:
    answers = [LOOK, replace(LOOK, content=""), Message("assistant", "Noon.", "Hm.")]
    for answer in answers:
        answer = answer if options.get("thinking", True) else replace(answer, reasoning="")
        assert_reads_back(built(**options), Conversation((ASK, answer)), lambda message: message)


def test_what_models_say_is_read() -> None:
    renderer = built()
    for said, reasoning, content in (("\n</think>\n\nNoon.", "", "Noon."), ("Well, let me", "Well, let me", "")):
        message = renderer.parse(renderer.tokenizer.encode(said, special=True)).message
        assert (message.reasoning, message.content) == (reasoning, content)
    broken = "Hm.\n</think>\n\n<tool_call>\n<function=clock>\n<parameter=zone>\nUTC\n</function>\n</tool_call>"
    message = renderer.parse(renderer.tokenizer.encode(broken, special=True)).message
    assert message.tool_calls == () and message.content.startswith("<tool_call>")


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((ASK, Message("system", "Be brief.")), r"messages\[1\].*a system message only at the beginning"),
        ((ASK, Message("assistant", "lost<think>a</think>b")), r"messages\[1\].*one think block"),
        ((ASK, Message("developer", "a")), "no role 'developer'"),
        (
            (ASK, Message("assistant", "", "", ({"function": {"name": "f", "arguments": {"a": "\n</parameter>\n"}}},))),
            r"messages\[1\].*spells its markup",
        ),
        ((ASK, Message("assistant", "", "", ({"function": {"name": "f>", "arguments": {}}},))), "spells its markup"),
    ],
)
def test_what_it_cannot_say_is_an_error(messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        built().render(Conversation(messages))


def test_reasoning_while_thinking_is_off_is_refused() -> None:
    with pytest.raises(DataError, match="no reasoning while thinking is off"):
        built(thinking=False).render(Conversation((ASK, Message("assistant", "Noon.", "Hm."))))
    earlier = Conversation((ASK, Message("assistant", "Noon.", "Hm."), Message("user", "Sure?"), SAY))
    assert built(thinking=False).render(earlier).remarks == ("reasoning left out",)
    assert kept_text(built(thinking=False), earlier) == f"Noon.{END}Noon.{END}"


def test_ranges_weigh_what_they_say() -> None:
    renderer = built()
    answer = Message(
        "assistant", " abc", "\nxyz", (), weights=(Weighted(0, 2, 0.5),), reasoning_weights=(Weighted(2, 3, 0),)
    )
    rendered = renderer.render(Conversation((Message("user", "?"), answer)))
    found = dict(zip(map(renderer.tokenizer.decode, ([t] for t in rendered.tokens)), rendered.weights, strict=True))
    assert {letter: found[letter] for letter in "abcxyz"} == {"a": 0.5, "b": 1, "c": 1, "x": 1, "y": 0, "z": 1}


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>"
    "\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}PROMPT{% endif %}"
)
"""The shape of Qwen3.5's markup."""


@pytest.mark.parametrize(("prompt", "closed"), [("<think>\n", False), ("<think>\n\n</think>\n\n", True)])
def test_a_model_thinks_as_its_own_template_does(tmp_path: Path, prompt: str, closed: bool) -> None:
    asks = f"<|im_start|>assistant\n{{% if enable_thinking %}}<think>\n{{% else %}}{prompt}{{% endif %}}"
    tokenizer = ByteTokenizer(chat_template=TURNS.replace("PROMPT", asks))
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    for options, thinks in ((Qwen35Options(), not closed), (Qwen35Options(thinking=True), True)):
        asked = tokenizer.decode(list(build(options, context).prompt((ASK,))))
        assert asked.endswith("<think>\n" if thinks else "</think>\n\n")
    assert not context.notes
    other = ByteTokenizer(chat_template=TURNS.replace("<think>", "<thought>"))
    build(Qwen35Options(), context := FakeContext(tmp_path, tokenizer=other))
    assert "data.renderer: jinja follows the model's own" in context.notes[0]


def test_only_a_model_that_knows_it_is_told_how_much_to_think(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer())
    for options in ({"version": "3.6", "effort": "low"}, {"version": "3.8", "thinking": False, "effort": "low"}):
        with pytest.raises(RecipeError, match=r"data\.renderer\.effort: only Qwen3\.8.*\(remove it, or set version"):
            build(Qwen35Options.model_validate(options), context)
