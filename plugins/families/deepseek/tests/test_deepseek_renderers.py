# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""The renderers against the models' own templates, on golden and on generated conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from finetooth_deepseek import markup as m
from finetooth_deepseek.fenced import DeepSeekR1, DeepSeekV3, FencedOptions, build_r1, build_v3
from finetooth_deepseek.hybrid import DeepSeekV31, DeepSeekV31Options, build
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws, parametrize_with_checks
from finetooth_kit.templates import (
    NOON,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    official,
    shaped,
    spells_special,
)  # fmt: skip
from finetooth_rendering.turns import json_text
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

Tokenizers = Callable[..., FastTokenizer]
TEMPLATES = {"v3": "deepseek-v3", "r1": "deepseek-r1-distill-qwen", "v31": "deepseek-v3.1"}
SAID = conversations(tools=True, reasoning=True)
BESIDE = conversations(tools=True, reasoning=True, content_with_calls=False)
THINKING_PROMPT = f"{m.THINK}\n"
BUILDERS: dict[str, Any] = {
    "v3": (build_v3, FencedOptions),
    "r1": (build_r1, FencedOptions),
    "v31": (build, DeepSeekV31Options),
}


@parametrize_with_checks("finetooth_deepseek.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_answers_otherwise_is_told(
    tokenizers: Tokenizers, tmp_path: Path, kind: str, thinking: bool
) -> None:
    """V3, V3.1 and R1 have one config, so a recipe names the renderer, and may name the wrong one."""
    builder, options = BUILDERS[kind]
    for name, template in TEMPLATES.items():
        context = FakeContext(tmp_path, tokenizer=tokenizers(template))
        builder(options(thinking=thinking), context)
        alike = (name == "v31") == (kind == "v31")  # V3 and R1 differ in calls alone
        assert len(context.notes) == (not alike)
        assert all("data.renderer: jinja" in note for note in context.notes)


def thinks_apart(conversation: Conversation) -> bool:
    """No text spells a think block, which has tests of its own: hypothesis tries literals of the code, too."""
    return m.THINK not in repr(conversation.messages) and m.THOUGHT not in repr(conversation.messages)


def built(kind: str, tokenizer: Any, **options: Any) -> Any:
    """The renderer, made once: it looks all its tokens up in a whole vocabulary."""
    return made(kind, tokenizer, tuple(options.items()))


@cache
def made(kind: str, tokenizer: Any, given: tuple[tuple[str, Any], ...]) -> Any:
    options = dict(given)
    if kind == "v31":
        return DeepSeekV31(tokenizer, DeepSeekV31Options(**options))
    return {"v3": DeepSeekV3, "r1": DeepSeekR1}[kind](tokenizer, FencedOptions(**options))


def shape(kind: str, message: Message) -> dict[str, Any]:
    """A message as a template takes it: V3's has arguments of calls as text, R1's null for no content beside calls."""
    values = shaped(message)
    if kind == "v3" and message.tool_calls:
        values["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": text(call["function"]["arguments"])}}
            for call in message.tool_calls
        ]
    if kind == "r1" and message.tool_calls and not message.content:
        values["content"] = None
    return values


def text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json_text(arguments)


@cache
def compiled(source: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json_text
    return environment.from_string(source)


def by_template(kind: str, tokenizer: FastTokenizer, messages: Any, *, ask: bool = False, **given: Any) -> list[int]:
    if kind == "r1":  # transformers leaves out what is null, on which the template depends
        template = compiled(tokenizer.chat_template or "")
        chat = [shape(kind, message) for message in messages]
        said = template.render(messages=chat, add_generation_prompt=ask, bos_token=m.BEGIN, **given)
        return tokenizer.encode(said, special=True)
    found = tokenizer.wrapped.apply_chat_template(
        [shape(kind, message) for message in messages], tokenize=True, return_dict=False, add_generation_prompt=ask,
        strftime_now=NOON.strftime, **given,
    )  # fmt: skip
    return list(found)


def check_identity(kind: str, tokenizers: Tokenizers, conversation: Conversation, *, real: bool) -> None:
    tokenizer = tokenizers(TEMPLATES[kind], real=real)
    if spells_special(tokenizer, conversation):
        return
    plain, thinking = built(kind, tokenizer), built(kind, tokenizer, thinking=True)
    messages = conversation.messages
    assert list(plain.render(conversation).tokens) == by_template(kind, tokenizer, messages)
    for i in [i for i, message in enumerate(messages) if message.role == "assistant"]:
        if messages[i - 1].role == "user":  # behind a tool, the call before it has its reasoning
            given = {"thinking": True} if kind == "v31" else {"enable_thinking": True}
            asked = by_template(kind, tokenizer, messages[:i], ask=True, **given)
            assert list(thinking.prompt(messages[:i], conversation.tools)) == asked
        # without `thinking`, V3 and R1 leave the think block out that templates open or open and close
        asked = by_template(kind, tokenizer, messages[:i], ask=True)
        opens = kind != "v31" and messages[i - 1].role != "tool"
        closed = (THINKING_PROMPT + (m.THOUGHT if kind == "r1" else "")) if opens else ""
        left = tokenizer.encode(closed, special=True)
        assert list(plain.prompt(messages[:i])) + left == asked


@pytest.mark.parametrize("kind", TEMPLATES)
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_the_template(tokenizers: Tokenizers, kind: str, data: Any) -> None:
    check_identity(kind, tokenizers, data.draw(BESIDE if kind == "r1" else SAID), real=False)


@pytest.mark.parametrize("kind", TEMPLATES)
@settings(max_examples=draws(15), deadline=None)
@given(data=st.data())
def test_tokens_are_those_of_the_template_in_real_vocabularies(tokenizers: Tokenizers, kind: str, data: Any) -> None:
    check_identity(kind, tokenizers, data.draw(BESIDE if kind == "r1" else SAID), real=True)


EMPTY = f"{m.ASSISTANT}{m.END}"
"""What R1's template says after calls whose content is empty and not null: cases minja_tool_use and
tool_roundtrip_dict_args, deliberately different."""
TAKEN = ("v3", "tool_roundtrip_dict_args")
"""Its template breaks off at arguments that are an object, which are written as JSON here."""


@pytest.mark.parametrize("kind", TEMPLATES)
def test_renders_as_golden(shared: Path, kind: str) -> None:
    tokenizer = ByteTokenizer()
    seen = 0
    for line in (shared / "golden/chat_renderings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        if row["template"] != f"templates/{TEMPLATES[kind]}.jinja":
            continue
        messages = tuple(
            Message(
                x["role"], x["content"], reasoning=x.get("reasoning_content", ""), name=x.get("name", ""),
                tool_calls=tuple(x.get("tool_calls", ())), tool_call_id=x.get("tool_call_id", ""),
            )
            for x in row["messages"]
        )  # fmt: skip
        conversation, asks = Conversation(messages, tuple(row.get("tools") or ())), row["add_generation_prompt"]
        renderer = built(kind, tokenizer)
        tokens = renderer.prompt(messages, conversation.tools) if asks else renderer.render(conversation).tokens
        wanted = row.get("expected", "")
        if asks and kind != "v31":  # without `thinking`, the think block is left out that the prompt opens
            wanted = wanted.removesuffix(m.THOUGHT if kind == "r1" else "").removesuffix(THINKING_PROMPT)
        seen += 1
        if (kind, row["case"]) == TAKEN:
            assert "expected_error" in row and '{"city": "Oslo", "unit": "c"}' in tokenizer.decode(tokens)
            continue
        different = kind == "r1" and row["case"] in ("minja_tool_use", "tool_roundtrip_dict_args")
        assert (EMPTY in wanted) == different
        assert tokenizer.decode(tokens) == wanted.replace(EMPTY, ""), row["case"]
    assert seen == 11


def trained(kind: str, conversation: Conversation, *, thinking: bool, keep: bool, whole: bool) -> list[str]:
    """What must train, from the messages alone."""
    messages = conversation.messages
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    first_call, texts = True, []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        said = ""
        if thinking and (i > last or keep) and messages[i - 1].role == "user":
            thought = message.reasoning.strip()
            said = f"{message.reasoning}</think>" if kind == "v31" else f"{thought}\n</think>\n\n".lstrip("\n")
        lost = bool(message.tool_calls) and not first_call and not whole and kind != "v31"
        said = ("" if lost else said + message.content) + calls(kind, message, lost=lost)
        first_call = first_call and not message.tool_calls
        texts.append(said + "<｜end▁of▁sentence｜>")
    return texts


def calls(kind: str, message: Message, *, lost: bool) -> str:
    if not message.tool_calls:
        return ""
    functions = [call["function"] for call in message.tool_calls]
    if kind == "v31":
        one = [
            f"<｜tool▁call▁begin｜>{f['name']}<｜tool▁sep｜>{json_text(f['arguments'])}<｜tool▁call▁end｜>"
            for f in functions
        ]
        return "<｜tool▁calls▁begin｜>" + "".join(one) + "<｜tool▁calls▁end｜>"
    one = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{f['name']}\n```json\n{json_text(f['arguments'])}\n```<｜tool▁call▁end｜>"
        for f in functions
    ]
    return ("\n" if lost else "<｜tool▁calls▁begin｜>") + "\n".join(one) + "<｜tool▁calls▁end｜>"


@pytest.mark.parametrize("kind", TEMPLATES)
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data())
def test_answers_train(tokenizers: Tokenizers, kind: str, data: Any) -> None:
    """And read back, by the ways to write them that leave no opening out."""
    conversation = data.draw((BESIDE if kind == "r1" else SAID).filter(thinks_apart))
    thinking, keep, whole = (data.draw(st.booleans()) for _ in range(3))
    tokenizer = tokenizers(TEMPLATES[kind])
    options = {"thinking": thinking, "keep_reasoning": keep} | ({} if kind == "v31" else {"whole_calls": whole})
    renderer = built(kind, tokenizer, **options)
    whole = whole or kind == "v31"
    texts = trained(kind, conversation, thinking=thinking, keep=keep, whole=whole)
    assert_trains(renderer, tokenizer, conversation, texts)
    if whole:
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant" and not shares(kind, conversation, i):
                after_question = conversation.messages[i - 1].role == "user"
                assert_reads_back(
                    renderer, conversation, lambda said, kept=thinking and after_question: normal(kind, said, kept), i
                )


def shares(kind: str, conversation: Conversation, i: int) -> bool:
    """In Qwen's vocabulary the end of a tool's output is plain text, whose last token a line feed may join."""
    before, message = conversation.messages[i - 1 : i + 1]
    return kind == "r1" and before.role == "tool" and message.content.startswith("\n")


def normal(kind: str, message: Message, thinks: bool) -> Message:
    thought = message.reasoning if kind == "v31" else message.reasoning.strip()
    kept = [{"type": "function", "function": call["function"]} for call in message.tool_calls]
    return Message("assistant", message.content, reasoning=thought if thinks else "", tool_calls=tuple(kept))


@pytest.mark.parametrize("kind", TEMPLATES)
@settings(max_examples=draws(30), deadline=None)
@given(data=st.data())
def test_extension_holds(tokenizers: Tokenizers, kind: str, data: Any) -> None:
    conversation = data.draw((BESIDE if kind == "r1" else SAID).filter(thinks_apart))
    whole = {} if kind == "v31" else {"whole_calls": True}
    for options in ({}, {"thinking": True, "keep_reasoning": True}):
        renderer = built(kind, tokenizers(TEMPLATES[kind]), **options, **whole)
        assert renderer.extension and extends(renderer, conversation)
        prompts = [
            renderer.prompt(conversation.messages[:i])
            for i, message in enumerate(conversation.messages)
            if message.role == "assistant" and not shares(kind, conversation, i)
        ]
        for earlier, later in pairwise(prompts):
            assert later[: len(earlier)] == earlier


TWICE = (
    Message("user", "a"), Message("assistant", "", reasoning="b", tool_calls=(
        {"type": "function", "function": {"name": "f", "arguments": {}}},)), Message("tool", "c"),
    Message("assistant", "d"), Message("user", "e"), Message("assistant", "", tool_calls=(
        {"type": "function", "function": {"name": "f", "arguments": {}}},)), Message("tool", "g"),
    Message("assistant", "h"),
)  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_extension_does_not_hold(tokenizers: Tokenizers, kind: str) -> None:
    tokenizer = tokenizers(TEMPLATES[kind])
    thinking = built(kind, tokenizer, thinking=True)
    assert not thinking.extension and not extends(thinking, Conversation(TWICE))
    if kind != "v31":  # a later call does not follow what was asked
        renderer = built(kind, tokenizer)
        asked = renderer.prompt(TWICE[:5])
        assert not renderer.extension and renderer.prompt(TWICE[:7])[: len(asked)] != asked


@pytest.mark.parametrize("kind", TEMPLATES)
def test_what_is_left_out_is_counted(kind: str) -> None:
    renderer = built(kind, ByteTokenizer())
    told = {"type": "function", "function": {"name": "f"}}
    assert renderer.render(Conversation(TWICE, (told,))).remarks == ("reasoning left out", "tool schemas left out")
    if kind == "v3":
        beside = (*TWICE[:5], replace(TWICE[5], content="look"), *TWICE[6:])
        assert renderer.render(Conversation(beside)).remarks[-1] == "text of later calls left out"
    asked = Conversation((Message("user", "a"), Message("assistant", "b", reasoning="c")))
    assert built(kind, ByteTokenizer(), thinking=True).render(asked).remarks == ()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_arguments_may_be_text(tokenizers: Tokenizers, kind: str) -> None:
    """As some data have them; V3's template takes nothing else, the others write text as a JSON string."""
    called = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = (Message("user", "a"), Message("assistant", "", tool_calls=(called,)))
    tokenizer = tokenizers(TEMPLATES[kind])
    tokens = built(kind, tokenizer).render(Conversation(messages)).tokens
    assert list(tokens) == by_template(kind, tokenizer, messages)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_parts_and_flags(kind: str) -> None:
    """Ranges weigh what they say, also behind a `</think>` that cuts the content; a message may be switched off."""
    tokenizer = ByteTokenizer()
    content = "x</think>abcd"
    messages = (
        Message("user", "q", weights=(Weighted(0, 1, 0.5),)),
        Message("assistant", "no", train=False),
        Message("user", "r"),
        Message("assistant", content, reasoning="tu", weights=(Weighted(0, 10, 0.25), Weighted(11, 12, 0.0)),
                reasoning_weights=(Weighted(1, 2, 0.75),)),
    )  # fmt: skip
    rendered = built(kind, tokenizer, thinking=True).render(Conversation(messages))
    last = rendered.weights[rendered.spans[3][0] :]
    if kind == "v31":
        assert last == (0.0, 0.0, 1.0, 0.75, 1.0, 0.25, 1.0, 0.0, 1.0, 1.0)
    else:
        assert last == (0.0, 0.0, 0.0, 1.0, 0.75, 1.0, 1.0, 1.0, 1.0, 0.25, 1.0, 0.0, 1.0, 1.0)
    assert [weight for weight in rendered.weights[: rendered.spans[3][0]] if weight] == [0.5]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_text_that_spells_a_special_token_stays_text(tokenizers: Tokenizers, kind: str) -> None:
    renderer = built(kind, tokenizers(TEMPLATES[kind]))
    messages = (Message("user", f"{m.END}{m.BEGIN}"), Message("assistant", f"a{m.END}b"))
    assert renderer.render(Conversation(messages)).tokens.count(renderer.stop_ids[0]) == 1


BROKEN = {
    "v3": f"hm{m.CALLS}{m.CALL}function{m.SEPARATOR}f\n```json\n{{broken\n```{m.CALL_END}{m.CALLS_END}",
    "v31": f"hm{m.CALLS}{m.CALL}f{m.SEPARATOR}{{broken{m.CALL_END}{m.CALLS_END}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("arguments", ["{broken", "[1]"])
def test_broken_calls_stay_in_the_content(kind: str, arguments: str) -> None:
    tokenizer = ByteTokenizer()
    broken = BROKEN["v31" if kind == "v31" else "v3"].replace("{broken", arguments)
    parsed = built(kind, tokenizer).parse([*tokenizer.encode(broken, special=True)])
    assert (parsed.message, parsed.stop) == (Message("assistant", broken), "length")
    fixed = broken.replace(arguments, '{"a": 1}')
    parsed = built(kind, tokenizer).parse(tokenizer.encode(f"{fixed}{m.END}", special=True))
    assert parsed.message.content == "hm" and parsed.message.tool_calls[0]["function"]["arguments"] == {"a": 1}


def test_a_think_block_is_read_though_the_prompt_does_not_open_it() -> None:
    tokenizer = ByteTokenizer()
    said = built("r1", tokenizer).parse(tokenizer.encode("<think>\nhm\n</think>\n\nYes.", special=True))
    assert said.message == Message("assistant", "Yes.", reasoning="hm")


CALLED = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("kind", "messages", "problem"),
    [
        ("v3", (Message("user", "a"), Message("system", "b")), r"messages\[1\].*no system message after"),
        ("v31", (Message("user", "a"), Message("system", "b")), r"messages\[1\].*no system message after"),
        ("r1", (Message("system", "a"), Message("system", "b")), r"messages\[1\].*one system message"),
        (
            "r1",
            (Message("user", "a"), Message("assistant", "b", tool_calls=(CALLED,))),
            r"messages\[1\].*no text next to tool calls",
        ),
        ("v3", (Message("judge", "a"),), r"messages\[0\].*no role 'judge'"),
        ("v31", (Message("judge", "a"),), r"messages\[0\].*no role 'judge'"),
        ("v3", (Message("assistant", "", tool_calls=({"name": "f"},)),), r"messages\[0\].*a tool call is not"),
        ("v31", (Message("assistant", "", tool_calls=({},)),), r"messages\[0\].*a tool call is not"),
    ],
)
def test_what_it_cannot_say_is_an_error(kind: str, messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(kind, ByteTokenizer()).render(Conversation(messages))
    assert "\n" not in str(error.value)


def test_system_messages_are_joined(tokenizers: Tokenizers) -> None:
    messages = (Message("system", "a"), Message("system", "b"), Message("user", "c"), Message("assistant", "d"))
    for kind in ("v3", "v31"):
        tokenizer = tokenizers(TEMPLATES[kind])
        rendered = built(kind, tokenizer).render(Conversation(messages))
        assert list(rendered.tokens) == official(tokenizer, Conversation(messages))[0]
        assert len(rendered.spans) == 4


def test_a_tokenizer_without_markup_is_refused() -> None:
    class Foreign(ByteTokenizer):
        def token_id(self, token: str) -> int | None:
            return None if "User" in token else super().token_id(token)

    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <｜User｜>"):
        built("v3", Foreign())
