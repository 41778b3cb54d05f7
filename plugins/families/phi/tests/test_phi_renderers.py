"""The renderers against the models' own chat templates: tokens, what trains, what is read back, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws, parametrize_with_checks
from finetooth_kit.templates import (
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    golden,
    spells_special,
)
from finetooth_phi import phi3, phi4
from finetooth_rendering.turns import TurnRenderer
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

Make = Callable[..., FastTokenizer]
MakeRenderer = Callable[..., TurnRenderer]

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines draw slowly
TEMPLATES = ("phi-3", "phi-3.5", "phi-4-reasoning")
OLD = ("phi-3", "phi-3.5")


@parametrize_with_checks("finetooth_phi.plugin")
def test_conforms(check: Any) -> None:
    check()


@pytest.fixture(scope="session")
def phi(phi_tokenizer: Make, tmp_path_factory: pytest.TempPathFactory) -> MakeRenderer:
    """Makes the renderer of a template over one of the tokenizers."""
    made: dict[tuple[str, str], TurnRenderer] = {}

    def make(template: str, base: str = "") -> TurnRenderer:
        if (template, base) not in made:
            context = FakeContext(tmp_path_factory.mktemp("context"), tokenizer=phi_tokenizer(template, base))
            made[template, base] = (
                phi4.build(phi4.Phi4Options(), context)
                if template == "phi-4-reasoning"
                else phi3.build(phi3.Phi3Options(empty_system=template == "phi-3"), context)
            )
            assert context.notes == []  # it is the model's own template
        return made[template, base]

    return make


def as_text(message: Message) -> Message:
    """A message whose reasoning stands in its content, as Phi-4's template wants it."""
    content = f"<think>{message.reasoning}</think>{message.content}" if message.reasoning else message.content
    return replace(message, content=content, reasoning="")


def assert_like_the_template(
    renderer: TurnRenderer, tokenizer: FastTokenizer, conversation: Conversation, begins: Callable[[str], str] = str
) -> None:
    """
    Args:
        begins: what a content becomes by the tokenizer.
    """
    texts = tuple(as_text(message) for message in conversation.messages)
    assert_identical(renderer, tokenizer, Conversation(texts))
    assert renderer.render(conversation).tokens == renderer.render(Conversation(texts)).tokens
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            before = conversation.messages[:i]
            assert renderer.prompt(before) == renderer.prompt(texts[:i])
    end = "<|im_end|>" if renderer.name == "phi4" else "<|end|>"
    answers = [begins(message.content) + end for message in texts if message.role == "assistant"]
    assert_trains(renderer, tokenizer, conversation, answers)


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
@settings(SLOW, max_examples=draws(40))
def test_identical_with_the_template(
    phi: MakeRenderer, phi_tokenizer: Make, template: str, data: st.DataObject
) -> None:
    conversation = data.draw(conversations(reasoning=template == "phi-4-reasoning"))
    assume(not spells_special(phi_tokenizer(template), conversation))
    assert_like_the_template(phi(template), phi_tokenizer(template), conversation)


@pytest.mark.parametrize("template", OLD)
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_identical_with_phi3s_own_tokenizer(
    phi: MakeRenderer, phi_tokenizer: Make, template: str, data: st.DataObject
) -> None:
    """Its control tokens swallow the blanks after them, so a content loses those it begins with."""
    conversation = data.draw(conversations())
    tokenizer = phi_tokenizer(template, "phi-3-mini")
    assume(not spells_special(tokenizer, conversation))

    def begins(content: str) -> str:
        whole = tokenizer.encode(f"<|user|>\n{content}", special=True)
        return tokenizer.decode(whole[1:])

    assert_like_the_template(phi(template, "phi-3-mini"), tokenizer, conversation, begins)


@given(conversations(reasoning=True))
@settings(SLOW, max_examples=draws(20))
def test_identical_with_a_tokenizer_of_phi4s_kind(
    phi: MakeRenderer, phi_tokenizer: Make, conversation: Conversation
) -> None:
    tokenizer = phi_tokenizer("phi-4-reasoning", "phi-2")
    assume(not spells_special(tokenizer, conversation))
    assert_like_the_template(phi("phi-4-reasoning", "phi-2"), tokenizer, conversation)


@pytest.mark.parametrize("template", TEMPLATES)
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_reads_back_and_extends(phi: MakeRenderer, template: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(reasoning=template == "phi-4-reasoning"))
    renderer = phi(template)
    for i, message in enumerate(conversation.messages):
        shares = template in OLD and message.content.startswith("\n")  # one token with the header's line feed
        if message.role == "assistant" and not shares:
            assert_reads_back(renderer, conversation, lambda message: message, i)
    assert renderer.extension and extends(renderer, conversation)


@pytest.mark.parametrize("template", OLD)
@given(data=st.data())
@settings(SLOW, max_examples=draws(20))
def test_reads_back_with_phi3s_own_tokenizer(phi: MakeRenderer, template: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations())
    renderer = phi(template, "phi-3-mini")
    trimmed = {"\x1c", "\x1d", "\x1e", "\x1f"}  # blanks to Python, not to the tokenizer
    assume(not any(set(message.content) & trimmed for message in conversation.messages))
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            assert_reads_back(
                renderer, conversation, lambda message: replace(message, content=message.content.lstrip()), i
            )
    assert extends(renderer, conversation)


@pytest.mark.parametrize("template", TEMPLATES)
def test_golden(shared: Path, phi: MakeRenderer, phi_tokenizer: Make, template: str) -> None:
    """Deliberate differences: tools, calls and their results are refused, where the templates leave them out without a
    word; so is Phi-3's reasoning. Phi-4's stands before the answer."""
    rows = golden(shared / "golden/chat_renderings.jsonl", f"templates/{template}.jinja")
    renderer, tokenizer = phi(template), phi_tokenizer(template)
    tools = {"minja_tool_use", "tools_only", "tool_roundtrip_dict_args"}
    for row in rows:
        if row.case in tools or (row.case == "reasoning" and template in OLD):
            with pytest.raises(DataError, match=r"renderer phi\d has no"):
                row.tokens(renderer)
            continue
        text = row.text
        assert text is not None
        if row.case == "reasoning":
            text = text.replace("<|im_sep|>4<", "<|im_sep|><think>two and two</think>4<")
        assert tokenizer.decode(row.tokens(renderer)) == text, row.case
    assert len(rows) == 11


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_that_spells_markup_stays_text(phi: MakeRenderer, template: str) -> None:
    renderer = phi(template)
    spelled = "".join(renderer.controls)
    conversation = Conversation((Message("user", spelled), Message("assistant", spelled)))
    plain = Conversation((Message("user", "x"), Message("assistant", "x")))
    counts = [
        [renderer.render(said).tokens.count(stop) for stop in renderer.stop_ids] for said in (conversation, plain)
    ]
    assert counts[0] == counts[1]
    assert_reads_back(renderer, conversation, lambda message: message)


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    reasoning=st.text(st.sampled_from(" a.é"), max_size=4),
    content=st.text(st.sampled_from(" \nab.é😀"), max_size=12),
    ends=st.lists(st.integers(0, 14), max_size=6, unique=True).map(sorted),
    trains=st.booleans(),
)
@settings(SLOW, max_examples=draws(20))
def test_ranges_weigh_what_they_say(
    tmp_path_factory: pytest.TempPathFactory,
    template: str,
    reasoning: str,
    content: str,
    ends: list[int],
    trains: bool,
) -> None:
    """Per byte: a character of several has several tokens."""
    context = FakeContext(tmp_path_factory.getbasetemp(), tokenizer=ByteTokenizer())
    old = template in OLD
    reasoning = "" if old else reasoning
    renderer = phi3.build(phi3.Phi3Options(), context) if old else phi4.build(phi4.Phi4Options(), context)
    weights = tuple(Weighted(a, b, 0.25 + i) for i, (a, b) in enumerate(zip(ends[::2], ends[1::2], strict=False)))
    of_reasoning = tuple(replace(part, weight=part.weight + 7) for part in weights)
    asked = Message("user", "go")
    answer = Message("assistant", content, reasoning, train=trains, weights=weights, reasoning_weights=of_reasoning)
    rendered = renderer.render(Conversation((asked, answer)))

    def of(text: str, parts: tuple[Weighted, ...]) -> list[float]:
        found = []
        for at, letter in enumerate(text):
            own = next((part.weight for part in parts if part.start <= at < part.stop), float(trains))
            found += [own] * len(letter.encode())
        return found

    marks = [float(trains)] if reasoning else []
    expected = [*marks, *of(reasoning, of_reasoning), *marks, *of(content, weights), float(trains)]
    prompt = renderer.prompt((asked,))
    after = [0.0, 0.0] if old else []  # a line feed and the token that closes the conversation
    assert list(rendered.weights) == [0.0] * len(prompt) + expected + after


@pytest.mark.parametrize(
    ("template", "train_on", "expected"),
    [
        ("phi-3", "last", "B<|end|>"),
        ("phi-3", "all", "s<|end|>a<|end|>A<|end|>b<|end|>B<|end|>"),
        ("phi-4-reasoning", "last", "<think>r</think>B<|im_end|>"),
        ("phi-4-reasoning", "all", "s<|im_end|>a<|im_end|>A<|im_end|>b<|im_end|><think>r</think>B<|im_end|>"),
        ("phi-4-reasoning", "custom", "A<|im_end|>"),
    ],
)
def test_whose_messages_train(
    phi: MakeRenderer, phi_tokenizer: Make, template: str, train_on: Any, expected: str
) -> None:
    flag = True if train_on == "custom" else None
    said = (Message("system", "s"), Message("user", "a"), Message("assistant", "A", train=flag), Message("user", "b"))
    last = Message("assistant", "B", reasoning="" if template in OLD else "r")
    rendered = phi(template).render(Conversation((*said, last)), train_on=train_on)
    kept = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert phi_tokenizer(template).decode(kept) == expected
    assert len(rendered.spans) == 5 and rendered.spans[-1][1] == len(rendered.tokens)


@pytest.mark.parametrize(
    ("conversation", "problem"),
    [
        (Conversation((Message("user", "a"),), ({},)), "^tools: .*no markup for tools"),
        (Conversation((Message("user", "a"), Message("tool", "b"))), r"messages\[1\]: .*no role 'tool'"),
        (Conversation((Message("assistant", "", tool_calls=({},)),)), r"messages\[0\]: .*no markup for tool calls"),
        (Conversation((Message("user", "a", reasoning="b"),)), r"messages\[0\]: .*reasoning"),
    ],
)
@pytest.mark.parametrize("template", ["phi-3", "phi-4-reasoning"])
def test_what_it_cannot_say_is_an_error(
    phi: MakeRenderer, template: str, conversation: Conversation, problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        phi(template).render(conversation)


def test_phi4_has_one_system_message(phi: MakeRenderer) -> None:
    with pytest.raises(DataError, match=r"messages\[1\]: .*no system message but the first"):
        phi("phi-4-reasoning").render(Conversation((Message("user", "a"), Message("system", "b"))))


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>a", "a", ""),
        ("\n<think>a</think>b", "a", "b"),
        ("a<think>b</think>", "", "a<think>b</think>"),
        ("</think>a", "", "</think>a"),
    ],
)
def test_thoughts_are_read(phi: MakeRenderer, phi_tokenizer: Make, text: str, reasoning: str, content: str) -> None:
    """One that was not closed is reasoning to its end; only what an answer begins with is a thought."""
    tokens = phi_tokenizer("phi-4-reasoning").encode(text, special=True)
    parsed = phi("phi-4-reasoning").parse(tokens)
    assert (parsed.message, parsed.stop) == (Message("assistant", content, reasoning=reasoning), "length")


class Bytes(ByteTokenizer):
    """Bytes and a chat template; no control token whose name has `lacks` in it."""

    def __init__(self, template: str = "", lacks: str = "-") -> None:
        super().__init__(chat_template=template)
        self._lacks = lacks

    def token_id(self, token: str) -> int | None:
        return None if self._lacks in token else super().token_id(token)


def test_a_tokenizer_without_markup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|user\|>"):
        phi3.build(phi3.Phi3Options(), FakeContext(tmp_path, tokenizer=Bytes(lacks="user")))
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no <\|im_sep\|>"):
        phi4.build(phi4.Phi4Options(), FakeContext(tmp_path, tokenizer=Bytes(lacks="sep")))


def test_the_default_system_message_is_the_templates(shared: Path, tmp_path: Path) -> None:
    tokenizer = Bytes((shared / "templates/phi-4-reasoning.jinja").read_text(encoding="utf-8"))

    def prompt(default: str | None) -> str:
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        renderer = phi4.build(phi4.Phi4Options(default_system=default), context)
        return tokenizer.decode(renderer.prompt((Message("user", "a"),)))

    assert "<think> {Thought section} </think>" in prompt("auto")
    assert prompt(None) == "<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|>"
    assert prompt("Hi.") == f"<|im_start|>system<|im_sep|>Hi.<|im_end|>{prompt(None)}"


def test_a_foreign_template_is_noted(shared: Path, tmp_path: Path) -> None:
    context = FakeContext(tmp_path, tokenizer=Bytes((shared / "templates/llama-3.jinja").read_text(encoding="utf-8")))
    phi3.build(phi3.Phi3Options(), context)
    phi4.build(phi4.Phi4Options(), context)
    assert [note.split(":")[0] for note in context.notes] == ["renderer phi3", "renderer phi4"]
