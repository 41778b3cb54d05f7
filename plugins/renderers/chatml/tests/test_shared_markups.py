"""Every renderer of this package against the official template of its markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_chatml import classic, hermes
from finetooth_chatml import renderer as chatml
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.byte_tokenizer import EndlessTokenizer
from finetooth_kit.templates import (
    CLOCK,
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    golden,
    official,
    says_any,
    spells_special,
    template_tokenizer,
)
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import assume, given, settings

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@dataclass(frozen=True)
class Case:
    """A renderer and what it has to agree with.

    Attributes:
        joined: the file of the template is written over several lines, which are to be joined: its blanks and line
            feeds between statements are no part of the markup.
        metaspace: its models have vocabularies like Llama's.
    """

    template: str
    build: Callable[[Any, Any], Any]
    options: Any
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    joined: bool = False
    metaspace: bool = False
    tools: bool = False
    extension: bool = True


LLAMA = {"special": ("<s>", "</s>"), "eos": "</s>", "bos": "<s>", "metaspace": True}
CASES = {
    "chatml": Case("chatml", chatml.build, chatml.ChatMLOptions(), tuple(IM), "<|im_end|>"),
    "hermes": Case(
        "hermes-2-pro-tools",
        hermes.build,
        hermes.HermesOptions(),
        (*IM, "<|begin_of_text|>"),
        "<|im_end|>",
        "<|begin_of_text|>",
        tools=True,
        extension=False,
    ),
    "zephyr": Case("zephyr", classic.build_zephyr, classic.ClassicOptions(), joined=True, **LLAMA),
    "vicuna": Case("vicuna", classic.build_vicuna, classic.ClassicOptions(), joined=True, **LLAMA),
    "alpaca": Case("alpaca", classic.build_alpaca, classic.AlpacaOptions(), **LLAMA),
}
Made = Callable[..., tuple[Any, FastTokenizer]]


@pytest.fixture(scope="module")
def made(shared: Path, smollm2: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Renderer and tokenizer: of bytes, or of a real vocabulary like that of the models."""
    known: dict[tuple[str, bool], tuple[Any, FastTokenizer]] = {}
    byte_level = tmp_path_factory.mktemp("smollm2")
    smollm2.save(byte_level)

    def make(name: str, *, real: bool = False) -> tuple[Any, FastTokenizer]:
        if (name, real) not in known:
            case = CASES[name]
            source = (shared / f"templates/{case.template}.jinja").read_text(encoding="utf-8")
            if case.joined:
                source = source.replace("    ", "").replace("\n", "")
            base = shared / "tokenizers/phi-3-mini" if case.metaspace else byte_level
            tokenizer = template_tokenizer(
                source, case.special, eos=case.eos, bos=case.bos, base=base if real else None
            )
            context = FakeContext(tmp_path_factory.mktemp("context"), tokenizer=tokenizer)
            known[name, real] = case.build(case.options, context), tokenizer
        return known[name, real]

    return make


def of(case: Case) -> Any:
    """Conversations that the markup can say: with tools always, since the template of Hermes wants them."""
    drawn = conversations(tools=case.tools, content_with_calls=False).filter(lambda c: bool(c.tools) == case.tools)
    # hypothesis tries literals of the code, too; what spells markup has tests of its own
    marks = (*case.special, "<tool_call>", "</tool_call>")
    return drawn.filter(lambda said: not any(mark in repr(said.messages) for mark in marks))


def trained_texts(name: str, messages: Sequence[Message]) -> list[str]:
    """What the answers train, by the words of the template."""
    texts = []
    for message in messages:
        if message.role == "assistant":
            functions = [call["function"] for call in message.tool_calls]
            calls = [json.dumps({key: f[key] for key in ("name", "arguments")}, ensure_ascii=False) for f in functions]
            said = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls) or message.content
            said = said.strip() if name in ("zephyr", "vicuna") else said
            texts.append(" " * (name == "vicuna") + said + CASES[name].eos)
    return texts


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_weights_are_the_templates(made: Made, name: str) -> None:
    case = CASES[name]
    renderer, tokenizer = made(name)
    extended = []

    @settings(max_examples=draws(40), deadline=None)
    @given(of(case))
    def check(conversation: Conversation) -> None:
        assert_identical(renderer, tokenizer, conversation)
        assert_trains(renderer, tokenizer, conversation, trained_texts(name, conversation.messages))
        extended.append(extends(renderer, conversation))

    check()
    assert renderer.extension == case.extension
    assert all(extended) or not case.extension


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tokens_over_a_real_vocabulary(made: Made, name: str) -> None:
    renderer, tokenizer = made(name, real=True)

    @settings(max_examples=draws(15), deadline=None)
    @given(of(CASES[name]))
    def check(conversation: Conversation) -> None:
        assume(not spells_special(tokenizer, conversation))
        assert_identical(renderer, tokenizer, conversation)

    check()


@pytest.mark.parametrize("name", CASES)
def test_what_was_written_is_read_back(made: Made, name: str) -> None:
    renderer, _ = made(name)

    def normal(message: Message) -> Message:
        calls = tuple({"type": "function", "function": call["function"]} for call in message.tool_calls)
        content = message.content.strip() if name in ("zephyr", "vicuna") else message.content
        return replace(message, content=content, tool_calls=calls)

    @settings(max_examples=draws(20), deadline=None)
    @given(of(CASES[name]))
    def check(conversation: Conversation) -> None:
        if name in ("zephyr", "vicuna") or not conversation.messages[-1].content.startswith("\n"):
            turn = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
            asked = conversation.messages[turn[-1] - 1].role
            if name != "hermes" or asked == "user":  # after results the prompt is another, see extension
                assert_reads_back(renderer, conversation, normal)

    check()


@pytest.mark.parametrize("name", CASES)
def test_golden_renderings(shared: Path, made: Made, name: str) -> None:
    """Cases that the renderer refuses: those with tools where the markup has none (most templates drop them without a
    word), and reasoning, which every one of these templates drops."""
    case = CASES[name]
    renderer, tokenizer = made(name)
    rows = golden(shared / "golden/chat_renderings.jsonl", f"templates/{case.template}.jinja")
    for row in rows:
        if row.case == "reasoning" or (not case.tools and row.conversation.tools):
            with pytest.raises(DataError, match="no markup for"):
                row.tokens(renderer)
        elif row.text is None:
            # Hermes' template for tools breaks without any; the model's other template is ChatML
            assert name == "hermes" and not row.conversation.tools
            assert tokenizer.decode(row.tokens(renderer)).startswith("<|begin_of_text|><|im_start|>")
        elif row.case == "special_text":  # spells </s> and <|im_end|>, which stay plain
            assert tokenizer.decode(row.tokens(renderer)) == official(tokenizer, row.conversation, ask=row.ask)[1]
        elif case.joined or row.case == "minja_tool_use":
            # the golden text has the blanks between the template's lines; and arguments as JSON in a string
            assert list(row.tokens(renderer)) == official(tokenizer, row.conversation, ask=row.ask)[0]
            squeezed = "".join(row.text.split()) if case.joined else ""
            assert not case.joined or "".join(tokenizer.decode(row.tokens(renderer)).split()) == squeezed
        else:
            assert list(row.tokens(renderer)) == tokenizer.encode(row.text, special=True), row.case
    assert len(rows) == 11


@settings(max_examples=draws(40), deadline=None)
@given(conversations(tools=True, content_with_calls=False))
def test_the_template_that_hermes_ships_says_the_same_with_and_without_tools(
    made: Made, conversation: Conversation
) -> None:
    """By transformers; the types of a tool of its own are those of the official template."""
    renderer, tokenizer = made("hermes")
    assume(not says_any(conversation, ["<|", "<tool_call>", "</tool_call>", "<tool_response>"]))
    schemas = ({"type": ["string", "null"], "description": " x "}, {"type": "array", "items": {}}, {}, {"type": None},
               {"type": "object", "additionalProperties": {"type": "integer"}}, {"type": "object"})  # fmt: skip
    odd = {"name": "odd", "description": "Odd.", "return": {"type": "string", "description": "All."},
           "parameters": {"type": "object", "properties": {f"p{i}": one for i, one in enumerate(schemas)}}}  # fmt: skip
    own = tokenizer.wrapped.chat_template
    tokenizer.wrapped.chat_template = renderer.template
    try:
        for tools in ((), conversation.tools, (*conversation.tools, {"type": "function", "function": odd})):
            assert_identical(renderer, tokenizer, Conversation(conversation.messages, tuple(tools)))
    finally:
        tokenizer.wrapped.chat_template = own


def test_hermes_without_tools_is_chatml(made: Made) -> None:
    renderer, tokenizer = made("hermes")
    plain, _ = made("chatml")

    @settings(max_examples=draws(15), deadline=None)
    @given(conversations())
    def check(conversation: Conversation) -> None:
        first, *rest = renderer.render(conversation).tokens
        assert tokenizer.decode([first]) == "<|begin_of_text|>"
        assert tuple(rest) == plain.render(conversation).tokens  # both vocabularies begin alike

    check()


def test_what_hermes_was_asked_is_not_always_how_it_goes_on(made: Made) -> None:
    """So `extension` is false: the frame of results closes otherwise at the end of a prompt."""
    renderer, _ = made("hermes")
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    messages = [Message("user", "Time?"), Message("assistant", "", tool_calls=(call,)), Message("tool", "12:00")]
    asked = renderer.prompt(messages, (CLOCK,))
    whole = renderer.render(Conversation((*messages, Message("assistant", "Noon.")), (CLOCK,))).tokens
    assert whole[: len(asked)] != asked


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "number", "description": "  trimmed "},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
        {"type": "object", "additionalProperties": False},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": ["string", "integer"]},
        {"enum": ["a", "b"]},
        {"type": None},
    ],
)
def test_hermes_names_types_as_the_template_does(made: Made, schema: dict[str, Any]) -> None:
    renderer, tokenizer = made("hermes")
    parameters = {"type": "object", "properties": {"a": schema, "b": {"type": "integer"}}}
    function = {"name": "f", "description": 'says "x"\n', "parameters": parameters}
    returned = {**function, "return": {"type": "integer", "description": "a number"}}
    for one in (function, returned):
        conversation = Conversation((Message("user", "go"),), ({"type": "function", "function": one}, CLOCK))
        assert_identical(renderer, tokenizer, conversation)


def test_train_on_and_flags(made: Made) -> None:
    renderer, tokenizer = made("zephyr")
    messages = (Message("system", "S"), Message("user", " U "), Message("assistant", " A "))
    conversation = Conversation(messages)
    assert_trains(renderer, tokenizer, conversation, ["A</s>"])
    assert_trains(renderer, tokenizer, conversation, ["S</s>", "U</s>", "A</s>"], train_on="all")
    flagged = Conversation((*messages[:2], replace(messages[2], train=False)))
    assert_trains(renderer, tokenizer, flagged, [])


@pytest.mark.parametrize("name", CASES)
def test_ranges_weigh_what_they_say(tmp_path: Path, name: str) -> None:
    case, tokenizer = CASES[name], ByteTokenizer()
    renderer = case.build(case.options, FakeContext(tmp_path, tokenizer=tokenizer))
    content = " wXYZ"
    weights = (Weighted(0, 2, 0.5), Weighted(3, 4, 0.0))
    answer = Message("assistant", content, weights=weights)
    rendered = renderer.render(Conversation((Message("user", "?"), answer)))
    found = {tokenizer.decode([t]): w for t, w in zip(rendered.tokens, rendered.weights, strict=True)}
    assert [found[letter] for letter in "wXYZ"] == [0.5, 1, 0, 1]


@pytest.mark.parametrize("name", CASES)
def test_text_that_spells_special_tokens_stays_text(made: Made, name: str) -> None:
    renderer, tokenizer = made(name)
    end = CASES[name].eos
    messages = (Message("user", f"a{end}b"), Message("assistant", f"c{end}"))
    rendered = renderer.render(Conversation(messages))
    assert rendered.tokens.count(renderer.stop_ids[0]) == (1 if name in ("vicuna", "alpaca") else 2)
    assert f"a{end}b" in tokenizer.decode(rendered.tokens)


A, B = Message("user", "a"), Message("assistant", "b")
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("name", "conversation", "problem"),
    [
        ("zephyr", Conversation((A, A)), r"messages\[1\].*user and assistant in turns"),
        ("vicuna", Conversation((Message("system", "s"), B)), r"messages\[1\].*user and assistant in turns"),
        ("vicuna", Conversation((A, B, Message("system", "s"))), r"messages\[2\].*in turns"),
        ("alpaca", Conversation((A, Message("system", "s"))), r"messages\[1\].*no system message but the first"),
        ("alpaca", Conversation((A,), (CLOCK,)), "tools: .*no markup for tools"),
        ("zephyr", Conversation((A, replace(B, tool_calls=(CALL,)))), r"messages\[1\].*tool calls"),
        ("hermes", Conversation((A, replace(B, tool_calls=(CALL,)))), r"messages\[1\].*text next to tool calls"),
        ("hermes", Conversation((A, replace(B, reasoning="r"))), r"messages\[1\].*reasoning"),
        ("hermes", Conversation((Message("tool", "x"),)), r"messages\[0\].*result of nothing"),
        ("hermes", Conversation((Message("x", "x"),)), r"messages\[0\].*no role 'x'"),
        ("hermes", Conversation((A,), ({"function": {"name": "f"}},)), r"tools\[0\].*without name, description"),
    ],
)
def test_what_it_cannot_say_is_an_error(tmp_path: Path, name: str, conversation: Conversation, problem: str) -> None:
    case = CASES[name]
    renderer = case.build(case.options, FakeContext(tmp_path, tokenizer=ByteTokenizer()))
    with pytest.raises(DataError, match=problem):
        renderer.render(conversation)


def test_hermes_refuses_a_type_without_name(tmp_path: Path) -> None:
    renderer = hermes.build(hermes.HermesOptions(), FakeContext(tmp_path, tokenizer=ByteTokenizer()))
    function = {"name": "f", "description": "", "parameters": {"properties": {"a": {"type": ["string", "date"]}}}}
    with pytest.raises(DataError, match=r"tools\[0\].*no name for the type.*date"):
        renderer.render(Conversation((A,), ({"function": function},)))


def test_hermes_writes_a_union_with_null(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    renderer = hermes.build(hermes.HermesOptions(), FakeContext(tmp_path, tokenizer=tokenizer))
    function = {"name": "f", "description": "", "parameters": {"properties": {"a": {"type": ["string", "null"]}}}}
    tokens = renderer.render(Conversation((A,), ({"function": function},))).tokens
    assert "f(a: Union[str,None])" in tokenizer.decode(tokens)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.renderer: the tokenizer has no end-of-text token.*vicuna"):
        classic.build_vicuna(classic.ClassicOptions(), FakeContext(tmp_path, tokenizer=EndlessTokenizer()))
