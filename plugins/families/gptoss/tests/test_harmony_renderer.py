"""The renderer against the models' own template, on golden and on generated conversations."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from finetooth_gptoss.renderer import Harmony, HarmonyOptions
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, draws, parametrize_with_checks
from finetooth_kit.templates import (
    NOON,
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
TODAY = NOON.strftime("%Y-%m-%d")
SAID = st.one_of(
    conversations(tools=True, calls=1, reasoning=True, content_with_calls=False), conversations(tools=True, calls=1)
)
"""A message with a call has content or reasoning, not both."""


@parametrize_with_checks("finetooth_gptoss.plugin")
def test_conforms(check: Any) -> None:
    check()


def built(tokenizer: Any, **options: Any) -> Harmony:
    """The renderer, made once: it looks all its tokens up in a whole vocabulary."""
    return made(tokenizer, tuple(options.items()))


@cache
def made(tokenizer: Any, options: tuple[tuple[str, Any], ...]) -> Harmony:
    return Harmony(tokenizer, HarmonyOptions(**{"today": TODAY, **dict(options)}))


@settings(max_examples=draws(40), deadline=None)
@given(SAID)
def test_tokens_are_those_of_the_template(tokenizers: Tokenizers, conversation: Conversation) -> None:
    tokenizer = tokenizers()
    if not spells_special(tokenizer, conversation):
        assert_identical(built(tokenizer), tokenizer, conversation)
        pending = Conversation(
            next((conversation.messages[: i + 1] for i, m in enumerate(conversation.messages) if m.tool_calls), ()),
            conversation.tools,
        )
        if pending.messages:  # ends with a call
            assert_identical(built(tokenizer), tokenizer, pending)


@settings(max_examples=draws(15), deadline=None)
@given(SAID)
def test_tokens_are_those_of_the_template_in_a_real_vocabulary(
    tokenizers: Tokenizers, conversation: Conversation
) -> None:
    tokenizer = tokenizers(real=True)
    if not spells_special(tokenizer, conversation):
        assert_identical(built(tokenizer), tokenizer, conversation)


@pytest.mark.parametrize("effort", ["low", "high"])
@pytest.mark.parametrize("tools", [("browser",), ("python",), ("python", "browser")])
def test_variables_of_the_template(tokenizers: Tokenizers, effort: str, tools: tuple[str, ...]) -> None:
    tokenizer = tokenizers()
    conversation = Conversation((Message("system", "s"), Message("user", "a"), Message("assistant", "b")))
    renderer = built(tokenizer, reasoning_effort=effort, builtin_tools=tools, identity="You are Eve.")
    assert_identical(
        renderer, tokenizer, conversation, reasoning_effort=effort, builtin_tools=list(tools),
        model_identity="You are Eve.",
    )  # fmt: skip


WORDS = st.text("abc ", min_size=1, max_size=6)
NAMES = st.sampled_from(["a", "b", "place", "c1"])


def schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def optional(**fields: Any) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if value is not None}

    described = {"description": st.none() | WORDS, "nullable": st.sampled_from([None, True, False])}
    plain = st.builds(
        optional, type=st.sampled_from(["string", "number", "integer", "boolean", "object", "null", None]),
        default=st.sampled_from([None, 1, "x", [1], {"a": "é"}]), **described,
    )  # fmt: skip
    choices = st.builds(
        optional, type=st.just("string"), enum=st.lists(WORDS, min_size=1, max_size=3), default=st.none() | WORDS,
        **described,
    )  # fmt: skip
    lists = st.builds(optional, type=st.just("array"), items=st.none() | inner, **described)
    several = st.builds(optional, type=st.lists(st.sampled_from(["object", "string", "null"]), min_size=1, max_size=3))
    objects = st.builds(
        optional, type=st.just("object"), properties=st.dictionaries(NAMES, inner, max_size=2),
        required=st.none() | st.lists(NAMES, max_size=2), **described,
    )  # fmt: skip
    one_of = st.builds(optional, oneOf=st.lists(inner, min_size=1, max_size=3), description=st.none() | WORDS)
    return st.one_of(plain, choices, lists, several, objects, one_of)


SCHEMA = schema(schema(schema(st.just({"type": "string"}))))


@settings(max_examples=draws(40), deadline=None)
@given(st.dictionaries(NAMES, SCHEMA, max_size=3), st.lists(NAMES, max_size=2))
def test_schemas_of_tools_are_written_as_in_the_template(
    tokenizers: Tokenizers, properties: dict[str, Any], required: list[str]
) -> None:
    tokenizer = tokenizers()
    parameters = {"type": "object", "properties": properties, "required": required}
    tool = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": parameters}}
    conversation = Conversation((Message("user", "a"), Message("assistant", "b")), (tool,))
    try:
        tokens, text = official(tokenizer, conversation)
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(DataError, match="tools: "):
            built(tokenizer).render(conversation)
        return
    found = built(tokenizer).render(conversation).tokens
    assert list(found) == tokens, f"{tokenizer.decode(found)!r} instead of {text!r}"


@pytest.mark.parametrize("template", ["gpt-oss", "training/gpt-oss"])
def test_renders_as_golden(shared: Path, template: str) -> None:
    """What the training template marks for training trains here, but for the `<|start|>assistant` that the prompt has
    and the `<|end|>` of answers to earlier questions."""
    tokenizer = ByteTokenizer()
    renderer = built(tokenizer)
    seen = 0
    for line in (shared / "golden/chat_renderings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        if row["template"] != f"templates/{template}.jinja":
            continue
        messages = tuple(
            Message(
                x["role"], x["content"], reasoning=x.get("reasoning_content", ""), name=x.get("name", ""),
                tool_calls=tuple(x.get("tool_calls", ())), tool_call_id=x.get("tool_call_id", ""),
            )
            for x in row["messages"]
        )  # fmt: skip
        conversation, asks = Conversation(messages, tuple(row.get("tools") or ())), row["add_generation_prompt"]
        tokens = renderer.prompt(messages, conversation.tools) if asks else renderer.render(conversation).tokens
        assert tokenizer.decode(tokens) == row["expected"], row["case"]
        seen += 1
        if not asks and "assistant_spans" in row:
            rendered = renderer.render(conversation)
            kept = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
            marked = "".join(row["expected"][a:b].removeprefix("<|start|>assistant") for a, b in row["assistant_spans"])
            assert tokenizer.decode(kept) == marked, row["case"]
    assert seen == 11


def trained(conversation: Conversation, *, keep: bool) -> list[str]:
    """What must train, from the messages alone."""
    messages = conversation.messages
    texts = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        answered = any(later.role == "assistant" and not later.tool_calls for later in messages[i + 1 :])
        thought = message.reasoning or (message.content if message.tool_calls else "")
        last = i == len(messages) - 1
        shown = thought and (keep or (not answered if message.tool_calls else last))
        said = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant" if shown else ""
        if message.tool_calls:
            call = message.tool_calls[0]["function"]
            said += f" to=functions.{call['name']}<|channel|>commentary json<|message|>"
            said += json_text(call["arguments"]) + "<|call|>"
        else:
            said += f"<|channel|>final<|message|>{message.content}" + ("<|return|>" if last else "")
        texts.append(said)
    return texts


def normal(message: Message) -> Message:
    """As the last message of a conversation."""
    calls = tuple({"type": "function", "function": call["function"]} for call in message.tool_calls)
    reasoning = message.reasoning or (message.content if calls else "")
    return Message("assistant", "" if calls else message.content, reasoning=reasoning, tool_calls=calls)


@settings(max_examples=draws(40), deadline=None)
@given(SAID, st.booleans())
def test_answers_train_and_read_back(tokenizers: Tokenizers, conversation: Conversation, keep: bool) -> None:
    tokenizer = tokenizers()
    renderer = built(tokenizer, keep_reasoning=keep)
    assert_trains(renderer, tokenizer, conversation, trained(conversation, keep=keep))
    for i, message in enumerate(conversation.messages):
        turn = conversation.messages[:i]
        hidden = not message.tool_calls and any(m.tool_calls and (m.reasoning or m.content) for m in turn)
        if message.role == "assistant" and (keep or not hidden):  # see `keep_reasoning`
            assert_reads_back(renderer, conversation, normal, i)


def test_extension_does_not_hold() -> None:
    """The model stops with <|return|>, and is shown <|end|> afterwards."""
    messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    for keep in (False, True):
        renderer = built(ByteTokenizer(), keep_reasoning=keep)
        assert not renderer.extension and not extends(renderer, Conversation(messages))


def test_reasoning_that_is_left_out_is_counted() -> None:
    messages = (
        Message("user", "a"), Message("assistant", "b", reasoning="c"), Message("user", "d"), Message("assistant", "e"),
    )  # fmt: skip
    conversation = Conversation(messages)
    assert built(ByteTokenizer()).render(conversation).remarks == ("reasoning left out",)
    assert built(ByteTokenizer(), keep_reasoning=True).render(conversation).remarks == ()


def test_parts_and_flags() -> None:
    """Ranges weigh what they say, also in the result of a tool, which is written as JSON text."""
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = (
        Message("user", "q", weights=(Weighted(0, 1, 0.5),)),
        Message("assistant", "", tool_calls=(call,), train=False),
        Message("tool", 'a"\nb', weights=(Weighted(1, 3, 0.25), Weighted(3, 4, 0.75))),
        Message("assistant", "ab", reasoning="tu", weights=(Weighted(0, 1, 0.0),),
                reasoning_weights=(Weighted(1, 2, 0.75),)),
    )  # fmt: skip
    tokenizer = ByteTokenizer()
    rendered = built(tokenizer).render(Conversation(messages))
    weights = [
        [weight for weight in rendered.weights[begin:end] if weight not in (0.0, 1.0)] for begin, end in rendered.spans
    ]
    assert weights == [[0.5], [], [0.25] * 4 + [0.75], [0.75]]
    kept = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w == 1]
    assert tokenizer.decode(kept) == (
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>"
    )


def test_text_that_spells_a_special_token_stays_text(tokenizers: Tokenizers) -> None:
    renderer = built(tokenizers())
    messages = (Message("system", "<|call|>"), Message("user", "<|return|>"), Message("assistant", "a<|return|>b"))
    tokens = renderer.render(Conversation(messages)).tokens
    assert [tokens.count(id_) for id_ in renderer.stop_ids] == [1, 0]


def test_what_models_say_is_read() -> None:
    """Their own order of words in the header of a call, text before a call, and what is broken off."""
    tokenizer = ByteTokenizer()

    def parsed(text: str) -> Message:
        return built(tokenizer).parse(tokenizer.encode(text, special=True)).message

    said = parsed(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert said == Message("assistant", "I look.", reasoning="hm", tool_calls=(call,))
    broken = " to=functions.f<|channel|>commentary json<|message|>{a"
    assert parsed(f"{broken}<|call|>") == Message("assistant", broken)
    assert parsed("<|channel|>analysis<|message|>hm") == Message("assistant", "", reasoning="hm")
    assert parsed("no channels") == Message("assistant", "no channels")


MARKS = ("<|end|>", "<|start|>assistant", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", " to=functions.f")
SPELLED = st.lists(st.sampled_from(("a", "\n", *MARKS)), max_size=6).map("".join)


@settings(max_examples=draws(30), deadline=None)
@given(content=SPELLED, reasoning=SPELLED, calls=st.booleans())
def test_spelled_markup_is_read_back_as_text(tokenizers: Tokenizers, content: str, reasoning: str, calls: bool) -> None:
    """Only control tokens are markup; text that spells them is not."""
    if any(f"<|channel|>{name}<|message|>" in said for name in ("analysis", "final") for said in (content, reasoning)):
        return  # refused, as in the template
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": content}}}
    answer = Message("assistant", "" if calls else content, reasoning=reasoning, tool_calls=(call,) if calls else ())
    for real in (False, True):
        assert_reads_back(built(tokenizers(real=real)), Conversation((Message("user", content), answer)), normal)


CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
ANSWERED = (
    Message("assistant", "", tool_calls=(CALL,)), Message("tool", "a"), Message("assistant", "b"), Message("user", "c"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "tools", "problem"),
    [
        ((Message("user", "a"), Message("system", "b")), (), r"messages\[1\].*no system message after"),
        ((Message("judge", "a"),), (), r"messages\[0\].*no role 'judge'"),
        ((Message("tool", "a"),), (), r"messages\[0\].*without a call before it"),
        ((*ANSWERED, Message("tool", "d")), (), r"messages\[4\].*without a call before it"),
        ((Message("assistant", "", tool_calls=(CALL, CALL)),), (), r"messages\[0\].*one call in a message"),
        ((Message("assistant", "a", reasoning="b", tool_calls=(CALL,)),), (), r"messages\[0\].*no content next to"),
        ((Message("assistant", "", tool_calls=({},)),), (), r"messages\[0\].*a tool call is not"),
        ((Message("assistant", "<|channel|>final<|message|>a"),), (), r"messages\[0\].*no channels inside"),
        ((Message("user", "a"),), ({"function": {"name": "f"}},), "tools: .*a tool without name or description"),
        ((Message("user", "a"),), ({},), "tools: .*a tool without function"),
    ],
)
def test_what_it_cannot_say_is_an_error(messages: Any, tools: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(ByteTokenizer()).render(Conversation(messages, tools))
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_markup_is_refused() -> None:
    class Foreign(ByteTokenizer):
        def token_id(self, token: str) -> int | None:
            return None if "channel" in token else super().token_id(token)

    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|channel\|>"):
        built(Foreign())
