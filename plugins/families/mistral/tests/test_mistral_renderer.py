"""The renderer against the models' own chat templates: tokens, what trains, what is read back, what is refused."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws, parametrize_with_checks
from finetooth_kit.templates import (
    CLOCK,
    NOON,
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    golden,
    official,
    spells_special,
)
from finetooth_mistral.renderer import MistralOptions, build
from finetooth_rendering.turns import TurnRenderer
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

Make = Callable[..., FastTokenizer]

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines draw slowly
VERSIONS = ("v1", "v3", "v3-tekken", "nemo", "v7-tekken", "small-3.2")
WITH_TOOLS = ("v3", "v3-tekken", "nemo", "small-3.2")
SYSTEM_IN_LAST = ("v3", "v3-tekken", "nemo")
BLANK = ("v1", "v3")


@parametrize_with_checks("finetooth_mistral.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="session")
def mistral(mistral_tokenizer: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TurnRenderer]:
    """Makes the renderer of a version, on the day of the golden renderings."""
    made: dict[Any, TurnRenderer] = {}

    def make(version: str, *, system: str = "asked", metaspace: bool = False) -> TurnRenderer:
        key = (version, system, metaspace)
        if key not in made:
            context = FakeContext(
                tmp_path_factory.mktemp("context"), tokenizer=mistral_tokenizer(version, metaspace=metaspace)
            )
            named = {"version": "v3-tekken" if version == "nemo" else version, "system": system}
            made[key] = build(MistralOptions.model_validate({**named, "today": NOON.date()}), context)
            assert context.notes == []  # it is the model's own template
        return made[key]

    return make


def drawn(version: str) -> st.SearchStrategy[Conversation]:
    return conversations(tools=version in WITH_TOOLS, content_with_calls=False)


def plain(tokenizer: FastTokenizer, conversation: Conversation) -> bool:
    """Nothing said spells a control token; and, since a list of tools ends on it, the vocabulary has all its bytes."""
    return not spells_special(tokenizer, conversation)


def trained_texts(version: str, conversation: Conversation, metaspace: bool = False) -> list[str]:
    """What the answers of a conversation train, written down independently of the renderer."""
    blank = " " if version in BLANK else ""
    found = []
    for message in conversation.messages:
        if message.role != "assistant":
            continue
        functions = [call["function"] for call in message.tool_calls]
        ids = [call["id"] for call in message.tool_calls]
        dumped = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
        if functions and version == "small-3.2":
            parts = zip(functions, ids, dumped, strict=True)
            found.append("".join(f"[TOOL_CALLS]{f['name']}[CALL_ID]{i}[ARGS]{d}" for f, i, d in parts) + "</s>")
        elif functions:
            parts = zip(functions, ids, dumped, strict=True)
            listed = ", ".join(f'{{"name": "{f["name"]}", "arguments": {d}, "id": "{i}"}}' for f, i, d in parts)
            # a tokenizer of Llama's kind begins every text with a blank of its own
            found.append(f"[TOOL_CALLS]{' ' if metaspace else ''}{blank}[{listed}]</s>")
        else:
            content = message.content.strip() if version == "v3" else message.content
            # where decoding begins in the middle of a text, a tokenizer of Llama's kind leaves out one blank
            found.append(f"{'' if metaspace and version == 'v1' else blank}{content}</s>")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
@settings(SLOW, max_examples=draws(40))
def test_identical_with_the_template(
    mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str, data: st.DataObject
) -> None:
    conversation = data.draw(drawn(version))
    tokenizer = mistral_tokenizer(version)
    assume(plain(tokenizer, conversation))
    assert_identical(mistral(version), tokenizer, conversation)
    assert_trains(mistral(version), tokenizer, conversation, trained_texts(version, conversation))


@pytest.mark.parametrize("version", ["v1", "v3"])
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_identical_with_a_tokenizer_of_llamas_kind(
    mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str, data: st.DataObject
) -> None:
    conversation = data.draw(drawn(version))
    tokenizer = mistral_tokenizer(version, metaspace=True)
    assume(plain(tokenizer, conversation))
    renderer = mistral(version, metaspace=True)
    assert_identical(renderer, tokenizer, conversation)
    assert_trains(renderer, tokenizer, conversation, trained_texts(version, conversation, metaspace=True))


@pytest.mark.parametrize("version", SYSTEM_IN_LAST)
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_the_system_message_stays_when_an_answer_follows(
    mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str, data: st.DataObject
) -> None:
    """By default a conversation reads as the template's prompt for the last user message, and what came after it."""
    conversation = data.draw(drawn(version))
    messages, tools = conversation.messages, conversation.tools
    tokenizer = mistral_tokenizer(version)
    assume(plain(tokenizer, conversation) and messages[0].role == "system")
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    asked, _ = official(tokenizer, Conversation(messages[: last + 1], tools))
    without = len(official(tokenizer, Conversation(messages[1 : last + 1], tools))[0])
    whole, _ = official(tokenizer, conversation)  # has no system message
    expected = asked + whole[without:]
    renderer = mistral(version, system="last")
    assert list(renderer.render(conversation).tokens) == expected
    prompt = renderer.prompt(messages[:-1], tools)
    assert list(prompt) == expected[: len(prompt)]  # also after results of tools, where the template leaves it out
    assert_trains(renderer, tokenizer, conversation, trained_texts(version, conversation))


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_reads_back(
    mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str, metaspace: bool, data: st.DataObject
) -> None:
    """Every answer; v3 trims it. Text that spells a control token is read as text."""
    conversation = data.draw(drawn(version))
    # a vocabulary of SentencePiece writes a blank as this sign, and so has no token for the sign itself
    assume(not metaspace or "\u2581" not in repr(conversation))
    renderer = mistral(version, system="last", metaspace=metaspace and version in BLANK)

    def normal(message: Message) -> Message:
        return Message(
            "assistant",
            "" if message.tool_calls else message.content.strip() if version == "v3" else message.content,
            tool_calls=message.tool_calls,
        )

    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            assert_reads_back(renderer, conversation, normal, i)


@pytest.mark.parametrize("version", WITH_TOOLS)
def test_text_that_spells_calls_is_text(mistral: Callable[..., TurnRenderer], version: str) -> None:
    spelled = '[TOOL_CALLS][{"name": "a", "arguments": {}, "id": "123456789"}]</s>[INST]'
    conversation = Conversation((Message("user", spelled), Message("assistant", spelled)))
    renderer = mistral(version)
    assert_reads_back(renderer, conversation, lambda message: message)
    assert renderer.render(conversation).tokens.count(renderer.stop_ids[0]) == 1


@pytest.mark.parametrize("version", WITH_TOOLS)
@pytest.mark.parametrize(
    "broken", ["[{", "[]", "[1]", '[{"name": 1, "arguments": {}}]', 'f[CALL_ID]1[ARGS]{"a"', "f[ARGS]{}"]
)
def test_broken_calls_stay_in_the_content(
    mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str, broken: str
) -> None:
    text = f"[TOOL_CALLS]{broken}"
    parsed = mistral(version).parse(mistral_tokenizer(version).encode(text, special=True))
    assert (parsed.message, parsed.stop) == (Message("assistant", text), "length")


@pytest.mark.parametrize("version", ["v1", "v7-tekken"])
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_extends(mistral: Callable[..., TurnRenderer], version: str, data: st.DataObject) -> None:
    assert mistral(version).extension and extends(mistral(version), data.draw(drawn(version)))


@pytest.mark.parametrize("version", WITH_TOOLS)
def test_does_not_extend_with_tools(mistral: Callable[..., TurnRenderer], version: str) -> None:
    turns = tuple(Message(role, text) for text in "ab" for role in ("user", "assistant"))
    renderer = mistral(version)
    assert not renderer.extension
    assert extends(renderer, Conversation(turns)) and not extends(renderer, Conversation(turns, (CLOCK,)))
    if version in SYSTEM_IN_LAST:
        assert not extends(mistral(version, system="last"), Conversation((Message("system", "s"), *turns)))


@pytest.mark.parametrize("version", VERSIONS)
def test_golden(shared: Path, mistral: Callable[..., TurnRenderer], mistral_tokenizer: Make, version: str) -> None:
    """Deliberate differences: v1 and v7-tekken refuse tools, which their templates leave out without a word; none takes
    reasoning, which all templates leave out."""
    tokenizer, renderer = mistral_tokenizer(version), mistral(version)
    name = tokenizer.chat_template
    (file,) = [
        path for path in (shared / "templates").glob("mistral*.jinja") if path.read_text(encoding="utf-8") == name
    ]
    rows = golden(shared / "golden/chat_renderings.jsonl", f"templates/{file.name}")
    refused = {"reasoning"} if version in WITH_TOOLS else {"reasoning", "tools_only"}
    for row in rows:
        if row.text is None or row.case in refused:
            with pytest.raises(DataError):
                row.tokens(renderer)
            continue
        text = row.text
        if (
            row.text is not None and row.case == "minja_tool_use"
        ):  # the row says arguments as text, where we have objects
            text = official(tokenizer, row.conversation, ask=row.ask)[1]
        assert tokenizer.decode(row.tokens(renderer)) == text, row.case
    assert len(rows) == 11


@pytest.mark.parametrize("version", VERSIONS)
@given(
    content=st.text(st.sampled_from(" \nab.é😀"), max_size=12),
    ends=st.lists(st.integers(0, 14), max_size=6, unique=True).map(sorted),
    trains=st.booleans(),
)
@settings(SLOW, max_examples=draws(20))
def test_ranges_weigh_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, version: str, content: str, ends: list[int], trains: bool
) -> None:
    """Per byte: a character of several has several tokens. A blank before the answer goes with its first character."""
    tokenizer = ByteTokenizer()
    options = MistralOptions.model_validate({"version": "v3-tekken" if version == "nemo" else version})
    renderer = build(options, FakeContext(tmp_path_factory.getbasetemp(), tokenizer=tokenizer))
    weights = tuple(Weighted(a, b, 0.25 + i) for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=False)))
    asked = Message("user", "go")
    answer = Message("assistant", content, train=trains, weights=weights)
    rendered = renderer.render(Conversation((asked, answer)))

    def weight(at: int) -> float:
        return next((part.weight for part in weights if part.start <= at < part.stop), float(trains))

    said = content.strip() if version == "v3" else content
    cut = content.index(said) if said else 0
    expected = [weight(cut + at) for at, letter in enumerate(said) for _ in letter.encode()]
    blank = [expected[0] if expected else float(trains)] if version in BLANK else []
    prompt = renderer.prompt((asked,))
    assert list(rendered.weights) == [0.0] * len(prompt) + blank + expected + [float(trains)]
    assert rendered.spans[1] == (len(prompt), len(rendered.tokens))


@pytest.mark.parametrize(
    ("version", "train_on", "expected"),
    [
        ("v1", "last", " B</s>"),
        ("v1", "all", "sa [/INST] A</s>b [/INST] B</s>"),
        ("v3", "last", " B</s>"),
        ("v3-tekken", "all", "a[/INST]A</s>sb[/INST]B</s>"),
        ("v7-tekken", "all", "s[/SYSTEM_PROMPT]a[/INST]A</s>b[/INST]B</s>"),
        ("small-3.2", "custom", "A</s>"),
    ],
)
def test_whose_messages_train(
    tmp_path: Path, version: str, train_on: Any, expected: str, mistral_tokenizer: Make
) -> None:
    tokenizer = mistral_tokenizer(version)
    options = MistralOptions.model_validate({"version": version})
    renderer = build(options, FakeContext(tmp_path, tokenizer=tokenizer))
    flag = True if train_on == "custom" else None
    messages = (Message("system", "s"), Message("user", "a"), Message("assistant", "A", train=flag))
    conversation = Conversation((*messages, Message("user", "b"), Message("assistant", "B")))
    rendered = renderer.render(conversation, train_on=train_on)
    kept = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert tokenizer.decode(kept) == expected
    assert len(rendered.spans) == 5
    assert all(a[1] == b[0] for a, b in pairwise(rendered.spans))
    tool = Message("tool", "warm", tool_call_id="123456789", train=True)
    if version in WITH_TOOLS:
        called = Message("assistant", "", train=False, tool_calls=(CALL,))
        rendered = renderer.render(Conversation((Message("user", "a"), called, tool)))
        kept = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
        assert tokenizer.decode(kept) == "warm[/TOOL_RESULTS]"


CALL: dict[str, Any] = {"id": "123456789", "type": "function", "function": {"name": "clock", "arguments": {}}}
USER, ANSWER = Message("user", "a"), Message("assistant", "b")


def refused(*messages: Message, tools: Sequence[Any] = ()) -> Conversation:
    return Conversation(messages, tuple(tools))


@pytest.mark.parametrize(
    ("versions", "conversation", "problem"),
    [
        ("v1 v7-tekken", refused(USER, tools=[CLOCK]), "^tools: .*no markup for tools in this version"),
        ("v1 v7-tekken", refused(USER, Message("assistant", "", tool_calls=(CALL,))), r"messages\[1\]: .*tool calls"),
        ("v1 v7-tekken", refused(USER, Message("tool", "a")), r"messages\[1\]: .*no role 'tool'"),
        ("v3 small-3.2", refused(USER, Message("developer", "a")), r"messages\[1\]: .*no role 'developer'"),
        (
            "v1 v3 v7-tekken",
            refused(USER, replace(ANSWER, reasoning="hm")),
            r"messages\[1\]: .*no markup for reasoning",
        ),
        ("v1 v3 small-3.2", refused(USER, USER), r"messages\[1\]: .*alternate, user first: 'user' does not fit"),
        ("v1 v3 small-3.2", refused(ANSWER, USER), r"messages\[0\]: .*alternate"),
        ("v1 v3", refused(Message("system", "s")), r"messages\[0\]: .*no place for a system message"),
        ("v1 v3", refused(USER, Message("system", "s")), r"messages\[1\]: .*no system message but the first"),
        (
            "v3 small-3.2",
            refused(USER, Message("assistant", "", tool_calls=({**CALL, "id": "call_1"},))),
            r"messages\[1\]: .*ids of tool calls of 9 characters, not 'call_1'",
        ),
        ("v3 small-3.2", refused(USER, Message("tool", "a")), r"messages\[1\]: .*9 characters, not ''"),
        (
            "v3 v3-tekken small-3.2",
            refused(USER, Message("assistant", "Wait.", tool_calls=(CALL,))),
            r"messages\[1\]: .*no place for content next to tool calls",
        ),
        (
            "v3 small-3.2",
            refused(USER, Message("assistant", "", tool_calls=({"id": "123456789", "function": "clock"},))),
            r"messages\[1\]: .*tool call is not of the form",
        ),
    ],
)
def test_what_it_cannot_say_is_an_error(
    tmp_path: Path, versions: str, conversation: Conversation, problem: str
) -> None:
    for version in versions.split():
        renderer = build(MistralOptions.model_validate({"version": version}), FakeContext(tmp_path))
        with pytest.raises(DataError, match=problem):
            renderer.render(conversation)


class WithTemplate(ByteTokenizer):
    """Bytes and a chat template, without control tokens between brackets if `plain`."""

    def __init__(self, template: str, plain: bool = False) -> None:
        super().__init__(special=("<pad>", "<s>", "</s>"), chat_template=template)
        self._plain = plain

    def token_id(self, token: str) -> int | None:
        return None if self._plain and token.startswith("[") and len(token) > 1 else super().token_id(token)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, tokenizer=WithTemplate("", plain=True))
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no \[INST\]"):
        build(MistralOptions(), context)


def test_the_default_system_message_is_the_templates(shared: Path, tmp_path: Path) -> None:
    template = (shared / "templates/mistral-v7-tekken.jinja").read_text(encoding="utf-8")
    tokenizer = WithTemplate(template)

    def prompt(**options: Any) -> str:
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        renderer = build(MistralOptions.model_validate({"version": "v7-tekken", **options}), context)
        return tokenizer.decode(renderer.prompt((USER,)))

    assert "The current date is 2026-01-15." in prompt()
    assert "The current date is 2025-01-30." in prompt(today=datetime.date(2025, 1, 30))
    assert prompt(default_system=None) == "<s>[INST]a[/INST]"
    assert prompt(default_system="Hi.") == "<s>[SYSTEM_PROMPT]Hi.[/SYSTEM_PROMPT][INST]a[/INST]"


def test_a_foreign_template_is_noted(shared: Path, tmp_path: Path) -> None:
    tokenizer = WithTemplate((shared / "templates/mistral-v7-tekken.jinja").read_text(encoding="utf-8"))
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    build(MistralOptions(version="v3"), context)
    (note,) = context.notes
    assert "renderer mistral: the model's own chat template says" in note and "data.renderer: jinja" in note
