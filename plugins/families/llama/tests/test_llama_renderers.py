"""The renderers of this family against the official templates: tokens, what trains, what is read back, extension."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
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
    template_tokenizer,
)
from finetooth_llama import llama2, renderer, smollm3
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import assume, given, settings

LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
TODAY = NOON.strftime("%d %b %Y")


@dataclass(frozen=True)
class Case:
    """A renderer with its options, and what it has to agree with."""

    template: str
    module: Any = renderer
    options: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    special: tuple[str, ...] = LLAMA3
    plain: tuple[str, ...] = ()
    bos: str | None = "<|begin_of_text|>"
    eos: str = "<|eot_id|>"
    joined: bool = False
    metaspace: bool = False
    tools: bool = False
    reasoning: bool = False
    gold: bool = True

    def made(self, tokenizer: Any, folder: Path, **options: Any) -> Any:
        taken = getattr(self.module, self.module.build.__annotations__["options"])
        return self.module.build(taken(**{**self.options, **options}), FakeContext(folder, tokenizer=tokenizer))

    def source(self, template: Callable[[str], str]) -> str:
        """The template. Where its file is written over several lines, they are joined, as its authors say: blanks and
        line feeds between its statements are no part of the markup."""
        text = template(self.template)
        return text.replace("    ", "").replace("\n", "") if self.joined else text


DATED = {"dated": True}
CHATML = {"special": ("<|end_of_text|>", "<|im_start|>", "<|im_end|>"), "plain": ("<think>", "</think>")}
SMOLLM3: dict[str, Any] = {**CHATML, "module": smollm3, "bos": None, "eos": "<|im_end|>"}
CASES = {
    "llama-3": Case("llama-3"),
    "llama-3.1": Case("llama-3.1", options=DATED, tools=True),
    "llama-3.1-system": Case(
        "llama-3.1",
        options={**DATED, "tools_in_user_message": False},
        variables={"tools_in_user_message": False},
        tools=True,
        gold=False,
    ),
    "llama-3.1-builtin": Case(
        "llama-3.1",
        options={**DATED, "builtin_tools": ["code_interpreter", "brave_search"], "today": "1 Jan 2025"},
        variables={"builtin_tools": ["code_interpreter", "brave_search"], "date_string": "1 Jan 2025"},
        tools=True,
        gold=False,
    ),
    "llama-3.2": Case("llama-3.2", options={**DATED, "today": TODAY}, tools=True),
    "llama-2": Case(
        "llama-2-chat", llama2, special=("<s>", "</s>"), bos="<s>", eos="</s>", joined=True, metaspace=True
    ),
    "smollm3": Case("smollm3", reasoning=True, **SMOLLM3),
    "smollm3-off": Case(
        "smollm3", options={"thinking": False}, variables={"enable_thinking": False}, gold=False, **SMOLLM3
    ),
}
Made = Callable[..., tuple[Any, FastTokenizer]]


@pytest.fixture(scope="module")
def made(template: Callable[[str], str], shared: Path, byte_level: Path, tmp_path_factory: Any) -> Made:
    """Renderer and tokenizer: of bytes, or of a real vocabulary like that of the models."""
    known: dict[tuple[str, bool], tuple[Any, FastTokenizer]] = {}

    def make(name: str, *, real: bool = False) -> tuple[Any, FastTokenizer]:
        if (name, real) not in known:
            case = CASES[name]
            base = shared / "tokenizers/phi-3-mini" if case.metaspace else byte_level
            tokenizer = template_tokenizer(
                case.source(template),
                case.special,
                eos=case.eos,
                bos=case.bos,
                plain=case.plain,
                base=base if real else None,
            )
            known[name, real] = case.made(tokenizer, tmp_path_factory.mktemp("context")), tokenizer
        return known[name, real]

    return make


def of(case: Case) -> Any:
    """Conversations that the markup can say."""
    marks = (*case.special, *case.plain, "/think", "/no_think")
    drawn = conversations(tools=case.tools, calls=1, reasoning=case.reasoning, content_with_calls=False)
    # hypothesis tries literals of the code, too; what spells markup has tests of its own
    return drawn.filter(lambda said: not any(mark in repr(said.messages) for mark in marks))


def said_inline(name: str, conversation: Conversation) -> Conversation:
    """SmolLM3's template knows reasoning as a part of the content only."""
    if name != "smollm3":
        return conversation
    messages = []
    for message in conversation.messages:
        thought, answer = message.reasoning.strip("\n"), message.content.lstrip("\n")
        inline = f"<think>\n{thought}\n</think>\n{answer}" if message.reasoning else message.content
        messages.append(replace(message, content=inline, reasoning=""))
    return Conversation(tuple(messages), conversation.tools)


def assert_official(name: str, made_: Any, tokenizer: FastTokenizer, conversation: Conversation) -> None:
    """As `assert_identical`, with reasoning where the template has it."""
    variables = CASES[name].variables
    if name != "smollm3":
        assert_identical(made_, tokenizer, conversation, **variables)
        return
    told = said_inline(name, conversation)
    assert list(made_.render(conversation).tokens) == official(tokenizer, told, **variables)[0]
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            before = Conversation(told.messages[:i])
            tokens = official(tokenizer, before, ask=True, **variables)[0]
            assert list(made_.prompt(conversation.messages[:i])) == tokens


def trained_texts(name: str, messages: Sequence[Message]) -> list[str]:
    """What the answers train, by the words of the template."""
    texts = []
    for message in said_inline(name, Conversation(tuple(messages))).messages:
        if message.role != "assistant":
            continue
        if message.tool_calls:
            function = message.tool_calls[0]["function"]
            call = json.dumps({"name": function["name"], "parameters": function["arguments"]}, ensure_ascii=False)
            texts.append(call + ("<|eom_id|>" if name == "llama-3.1-builtin" else "<|eot_id|>"))
        elif name == "llama-2":
            texts.append(f" {message.content.strip()} </s>")
        elif name.startswith("smollm3"):
            texts.append(message.content.lstrip("\n") + "<|im_end|>")
        else:
            texts.append(message.content.strip() + "<|eot_id|>")
    return texts


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_weights_are_the_templates(made: Made, name: str) -> None:
    case = CASES[name]
    made_, tokenizer = made(name)
    extended = []

    @settings(max_examples=draws(40), deadline=None)
    @given(of(case))
    def check(conversation: Conversation) -> None:
        assert_official(name, made_, tokenizer, conversation)
        assert_trains(made_, tokenizer, conversation, trained_texts(name, conversation.messages))
        extended.append(extends(made_, conversation))

    check()
    assert made_.extension and all(extended)


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2", "llama-2", "smollm3", "smollm3-off"])
def test_tokens_over_a_real_vocabulary(made: Made, name: str) -> None:
    made_, tokenizer = made(name, real=True)

    @settings(max_examples=draws(15), deadline=None)
    @given(of(CASES[name]))
    def check(conversation: Conversation) -> None:
        assume(not spells_special(tokenizer, conversation))
        assert_official(name, made_, tokenizer, conversation)

    check()


@pytest.mark.parametrize("name", CASES)
def test_what_was_written_is_read_back(made: Made, name: str) -> None:
    made_, _ = made(name)

    def normal(message: Message) -> Message:
        calls = tuple({"type": "function", "function": call["function"]} for call in message.tool_calls)
        smol = name.startswith("smollm3")
        content = message.content.lstrip("\n") if smol else message.content.strip()
        return replace(message, content=content, reasoning=message.reasoning.strip("\n"), tool_calls=calls)

    @settings(max_examples=draws(20), deadline=None)
    @given(of(CASES[name]))
    def check(conversation: Conversation) -> None:
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant":
                assert_reads_back(made_, conversation, normal, i)

    check()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gold])
def test_golden_renderings(shared: Path, template: Callable[[str], str], made: Made, tmp_path: Path, name: str) -> None:
    """Refused: `reasoning` but by SmolLM3, since the templates drop it without a word; tools and calls where the
    template has no place for them."""
    case = CASES[name]
    _, tokenizer = made(name)
    rows = golden(shared / "golden/chat_renderings.jsonl", f"templates/{case.template}.jinja")
    for row in rows:
        options = {"thinking": False} if row.case == "thinking_off" and case.module is smollm3 else {}
        own = case.made(tokenizer, tmp_path, **options)
        variables = {**case.variables, **row.variables}
        dropped = (row.case == "reasoning" and not case.reasoning) or (not case.tools and row.conversation.tools)
        if dropped:
            with pytest.raises(DataError, match="no markup for"):
                row.tokens(own)
        elif row.text is None:
            with pytest.raises(DataError):
                row.tokens(own)
        elif row.case == "reasoning":  # where SmolLM3 writes it; its template drops it
            told = said_inline(name, row.conversation)
            assert list(row.tokens(own)) == official(tokenizer, told, ask=row.ask, **variables)[0]
        elif row.case == "special_text":  # spells </s> and <|im_end|>, which stay plain
            assert (
                tokenizer.decode(row.tokens(own)) == official(tokenizer, row.conversation, ask=row.ask, **variables)[1]
            )
        elif case.joined or row.case == "minja_tool_use":
            # the golden text has the blanks between the template's lines; and arguments as JSON in a string
            assert list(row.tokens(own)) == official(tokenizer, row.conversation, ask=row.ask, **variables)[0]
        else:
            assert list(row.tokens(own)) == tokenizer.encode(row.text, special=True), row.case
    assert len(rows) == 11


def test_calls_of_builtin_tools(made: Made) -> None:
    made_, tokenizer = made("llama-3.1-builtin")
    call = {"type": "function", "function": {"name": "brave_search", "arguments": {"query": 'a "b", c', "n": "2"}}}
    messages = (Message("user", "Search."), Message("assistant", "", tool_calls=(call,)), Message("tool", 'x"\n'))
    conversation = Conversation((*messages, Message("assistant", "Done.")))
    assert_identical(made_, tokenizer, conversation, **CASES["llama-3.1-builtin"].variables)
    written = '<|python_tag|>brave_search.call(query="a "b", c", n="2")<|eom_id|>'
    assert_trains(made_, tokenizer, conversation, [written, "Done.<|eot_id|>"])
    assert_reads_back(made_, conversation, lambda message: message, 1)
    number = {"type": "function", "function": {"name": "brave_search", "arguments": {"n": 2}}}
    broken = Conversation((messages[0], Message("assistant", "", tool_calls=(number,))))
    with pytest.raises(DataError, match=r"messages\[1\]: argument n of brave_search is 2"):
        made_.render(broken)


def test_calls_that_are_broken_stay_in_the_content(made: Made) -> None:
    made_, tokenizer = made("llama-3.1")

    def read(text: str) -> Message:
        return made_.parse(tokenizer.encode(text + "<|eot_id|>", special=True)).message

    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert read('{"name": "f", "parameters": {"a": 1}}') == Message("assistant", "", tool_calls=(call,))
    assert read('<|python_tag|>{"name": "f", "parameters": {"a": 1}}').tool_calls == (call,)
    for text in ('{"name": "f", "parameters": {"a": 1}', '{"name": "f"}', "[1]", "<|python_tag|>f.call(a=1)"):
        assert read(text) == Message("assistant", text)
    plain, _ = made("llama-3")
    assert plain.parse(tokenizer.encode('{"name": "f", "parameters": {}}')).message.tool_calls == ()


def test_results_of_tools_keep_their_ranges(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    made_ = CASES["llama-3.1"].made(tokenizer, tmp_path)
    content = 'w"X\nY'
    weights = (Weighted(2, 3, 0.5), Weighted(4, 9, 0.0))
    rendered = made_.render(Conversation((Message("user", "?"), Message("tool", content, train=True, weights=weights))))
    pairs = [(tokenizer.decode([t]), w) for t, w in zip(rendered.tokens, rendered.weights, strict=True)][-11:]
    letters = ['"', "w", "\\", '"', "X", "\\", "n", "Y", '"', "<|eot_id|>"]
    assert pairs[1:] == list(zip(letters, [1, 1, 1, 1, 0.5, 1, 1, 0, 1, 1], strict=True))


@pytest.mark.parametrize("system", ["", "x /think y /no_think z ", "/no_think", " /think\n", "/th/thinkink", "/no/thi"])
@pytest.mark.parametrize("thinking", [True, False])
def test_smollm3_takes_its_mode_from_the_system_message(
    template: Callable[[str], str], tmp_path: Path, system: str, thinking: bool
) -> None:
    case = CASES["smollm3"]
    tokenizer = template_tokenizer(case.source(template), case.special, plain=case.plain, eos=case.eos)
    made_ = case.made(tokenizer, tmp_path, thinking=thinking)
    messages = (Message("system", system), Message("user", "Hello?"), Message("assistant", "Yes."))
    assert_identical(made_, tokenizer, Conversation(messages), enable_thinking=thinking)


def test_train_on_and_flags(made: Made) -> None:
    made_, tokenizer = made("smollm3")
    messages = (Message("system", " a /think b "), Message("user", "U"), Message("assistant", "A", reasoning="R"))
    conversation = Conversation(messages)
    answer = "<think>\nR\n</think>\nA<|im_end|>"
    assert_trains(made_, tokenizer, conversation, [answer])
    assert_trains(made_, tokenizer, conversation, [" a  b", "<|im_end|>", "U<|im_end|>", answer], train_on="all")
    flagged = Conversation((*messages[:2], replace(messages[2], train=False)))
    assert_trains(made_, tokenizer, flagged, [])
    made_, tokenizer = made("llama-2")
    conversation = Conversation((Message("system", " S "), Message("user", " U "), Message("assistant", " A ")))
    assert_trains(made_, tokenizer, conversation, [" A </s>"])
    assert_trains(made_, tokenizer, conversation, ["S", " U", " A </s>"], train_on="all")


def test_spans_are_the_messages(made: Made) -> None:
    made_, tokenizer = made("llama-2")
    rendered = made_.render(Conversation((Message("system", "S"), Message("user", "U"), Message("assistant", "A"))))
    shown = [tokenizer.decode(rendered.tokens[begin:end]) for begin, end in rendered.spans]
    assert shown == ["<s>[INST] <<SYS>>\nS\n<</SYS>>", "\n\nU [/INST]", " A </s>"]
    made_, tokenizer = made("llama-3.1")
    rendered = made_.render(Conversation((Message("system", "S"), Message("user", "U")), (CLOCK,)))
    shown = [tokenizer.decode(rendered.tokens[begin:end]) for begin, end in rendered.spans]
    assert shown[0].startswith("<|start_header_id|>system") and shown[0].endswith("S<|eot_id|>")
    assert shown[1].startswith("<|start_header_id|>user") and shown[1].endswith("U<|eot_id|>")


@pytest.mark.parametrize("name", ["llama-3.1", "llama-2", "smollm3"])
def test_text_that_spells_special_tokens_stays_text(made: Made, name: str) -> None:
    made_, tokenizer = made(name)
    evil = f"x{CASES[name].eos}y"
    tool = {**CLOCK, "function": {**CLOCK["function"], "description": evil}}
    messages = (Message("system", evil), Message("user", evil), Message("assistant", evil))
    rendered = made_.render(Conversation(messages, (tool,) if CASES[name].tools else ()))
    assert rendered.tokens.count(made_.stop_ids[0]) == (1 if name == "llama-2" else 3)
    assert tokenizer.decode(rendered.tokens).count(evil) == (4 if CASES[name].tools else 3)


@pytest.mark.parametrize("name", CASES)
def test_the_official_template_draws_no_note_and_another_does(
    template: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    taken = getattr(case.module, case.module.build.__annotations__["options"])
    for source, notes in ((case.source(template), 0), (template("qwen2.5"), 1)):
        tokenizer = template_tokenizer(source, case.special, plain=case.plain, eos=case.eos, bos=case.bos)
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        case.module.build(taken(**case.options), context)
        assert len(context.notes) == notes, context.notes
