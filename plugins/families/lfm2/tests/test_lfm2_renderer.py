"""The renderer against templates that say the same: the same tokens, what trains, what is read back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import (
    assert_identical,
    assert_reads_back,
    assert_trains,
    conversations,
    extends,
    spells_special,
    template_tokenizer,
)
from finetooth_lfm2.calls import read_calls, write_call
from finetooth_lfm2.renderer import LFM2Options, LFM2Renderer, build
from finetooth_rendering.tool_calls import FunctionCall, call_of
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

Tokenizers = Callable[[str], FastTokenizer]
CALL: dict[str, Any] = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC", "days": 2}}}
TOOL = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}
ASK, RESULT, SAY = Message("user", "The time?"), Message("tool", "12:00"), Message("assistant", "Noon.")
CALLS, SURE = Message("assistant", "", tool_calls=(CALL,)), Message("assistant", "Quite.", "Hm.")


def texts(conversation: Conversation) -> str:
    """All text of arguments."""
    return "".join(
        str(value)
        for message in conversation.messages
        for call in message.tool_calls
        for value in call["function"]["arguments"].values()
    )


def unmarked(conversation: Conversation) -> bool:
    """No content spells a think block, or the JSON of none, and no call holds what nobody reads in Python."""
    if any(message.content == "null" for message in conversation.messages):
        return False
    return "think>" not in repr(conversation.messages) and "\0" not in texts(conversation)


def plain(conversation: Conversation) -> bool:
    """No text of an argument needs to be escaped."""
    return not set(texts(conversation)) & set("'\\\n\r")


SAID = {
    "2": conversations(tools=True).filter(unmarked),
    "2.5": conversations(tools=True, reasoning=True).filter(unmarked).filter(plain),
}


@cache
def built(tokenizer: Any, **options: Any) -> LFM2Renderer:
    return LFM2Renderer(tokenizer, LFM2Options(**options))


def check_identity(tokenizer: FastTokenizer, conversation: Conversation, keep: bool) -> None:
    if not spells_special(tokenizer, conversation):
        renderer = built(tokenizer, keep_reasoning=keep)
        assert_identical(renderer, tokenizer, conversation, preserve_thinking=keep)


@pytest.mark.parametrize("version", ["2", "2.5"])
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data(), keep=st.booleans())
def test_tokens_are_those_of_the_template(tokenizers: Tokenizers, version: str, data: Any, keep: bool) -> None:
    assert built(tokenizers(version)).version == version
    check_identity(tokenizers(version), data.draw(SAID[version]), keep)


@pytest.mark.parametrize("version", ["2", "2.5"])
@settings(max_examples=draws(40), deadline=None)
@given(data=st.data(), keep=st.booleans())
def test_the_template_that_is_shipped_says_the_same(
    tokenizers: Tokenizers, version: str, data: Any, keep: bool
) -> None:
    """With calls as Python writes them, lists of LFM2 in JSON."""
    renderer, conversation = built(tokenizers(version), keep_reasoning=keep), data.draw(SAID[version])
    shipped = template_tokenizer(renderer.template, (*renderer.controls, *renderer.optional), eos=renderer.stops[0])
    if not spells_special(shipped, conversation):
        assert_identical(renderer, shipped, conversation)


def silent(conversation: Conversation) -> Conversation:
    """Without calls, which the first template of LFM2 leaves out."""
    kept = (Message(m.role, m.content, name=m.name) for m in conversation.messages)
    return Conversation(tuple(kept), conversation.tools)


OFFICIAL = {
    "lfm2": SAID["2"].map(silent),
    "lfm2_v2": conversations(tools=True, any_values=True).filter(unmarked),
    "lfm2_2_5": SAID["2.5"],
    "lfm2_2_5_v2": SAID["2.5"],
    "lfm2_2_5_vl": conversations(tools=True, reasoning=True, any_values=True).filter(unmarked),
}


@pytest.mark.parametrize("name", OFFICIAL)
@settings(max_examples=draws(60), deadline=None)
@given(data=st.data(), keep=st.booleans())
def test_tokens_are_those_of_the_official_template(officials: Tokenizers, name: str, data: Any, keep: bool) -> None:
    check_identity(officials(name), data.draw(OFFICIAL[name]), keep)


@pytest.mark.parametrize(
    ("version", "lists", "said"),
    [
        ("2", None, """[book(who=["Ann", null], open=True, more={"a": [1]})]"""),
        ("2", "value | string", "[book(who=['Ann', None], open=True, more={\"a\": [1]})]"),
        ("2.5", None, "[book(who=['Ann', None], open=True, more={\"a\": [1]})]"),
        ("2.5", "value | tojson", """[book(who=["Ann", null], open=True, more={"a": [1]})]"""),
    ],
)
def test_lists_are_written_as_the_models_own_template_does(
    lfm2_tokenizer: Tokenizers, tokenizers: Tokenizers, version: str, lists: str | None, said: str
) -> None:
    """That of LFM2.5-VL writes them in JSON, as LFM2's; those of other models of LFM2.5 in Python."""
    template = tokenizers(version).chat_template or ""
    lists_by = {"2": "value is iterable -%}{{ value | tojson }}", "2.5": "value is iterable -%}{{ value | string }}"}
    if lists is not None:
        template = template.replace(lists_by[version], f"value is iterable -%}}{{{{ {lists} }}}}")
    tokenizer = lfm2_tokenizer(template)
    made = {"function": {"name": "book", "arguments": {"who": ["Ann", None], "open": True, "more": {"a": [1]}}}}
    answer = Message("assistant", "", tool_calls=({"type": "function", **made},))
    renderer = built(tokenizer, version=version)
    rendered = renderer.render(Conversation((ASK, answer)))
    assert trained(tokenizer, rendered) == f"<|tool_call_start|>{said}<|tool_call_end|><|im_end|>"
    assert_reads_back(renderer, Conversation((ASK, answer)), lambda message: message)
    shipped = lfm2_tokenizer(renderer.template or "")
    assert_identical(renderer, shipped, Conversation((ASK, answer)))


def trained(tokenizer: Any, rendered: Any) -> str:
    return str(tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]))


def test_what_is_written_and_what_trains() -> None:
    tokenizer = ByteTokenizer()
    asked = Conversation((Message("system", "Be brief."), ASK, CALLS, RESULT, SAY), (TOOL,))
    begin = '<|startoftext|><|im_start|>system\nBe brief.\nList of tools: <|tool_list_start|>[{"type": "function", '
    rendered = built(tokenizer, version="2").render(asked)
    text = tokenizer.decode(list(rendered.tokens))
    assert text.startswith(begin)
    assert text.endswith(
        "}]<|tool_list_end|><|im_end|>\n<|im_start|>user\nThe time?<|im_end|>\n<|im_start|>assistant\n"
        "<|tool_call_start|>[clock(zone='UTC', days=2)]<|tool_call_end|><|im_end|>\n<|im_start|>tool\n"
        "<|tool_response_start|>12:00<|tool_response_end|><|im_end|>\n<|im_start|>assistant\nNoon.<|im_end|>\n"
    )
    said = "<|tool_call_start|>[clock(zone='UTC', days=2)]<|tool_call_end|><|im_end|>Noon.<|im_end|>"
    kept = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
    assert tokenizer.decode(kept) == said
    bare = text
    for token in ("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_response_start|>", "<|tool_response_end|>"):
        bare = bare.replace(token, "")
    assert tokenizer.decode(list(built(tokenizer, version="2.5").render(asked).tokens)) == bare


@settings(max_examples=draws(40), deadline=None)
@given(conversation=SAID["2"])
def test_answers_train_with_their_end_and_read_back(tokenizers: Tokenizers, conversation: Conversation) -> None:
    tokenizer = tokenizers("2")
    if spells_special(tokenizer, conversation):
        return
    renderer, said = built(tokenizer), []
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            calls = [FunctionCall(**call["function"]) for call in message.tool_calls]
            block = ", ".join(write_call(call, json_lists=True) for call in calls)
            block = f"<|tool_call_start|>[{block}]<|tool_call_end|>" if calls else ""
            said.append(f"{message.content}{block}<|im_end|>")
            normal = Message("assistant", message.content, tool_calls=tuple(call_of(*call) for call in calls))
            if not message.content[:1].isspace():  # a token may hold the end of the prompt and a line feed
                assert_reads_back(renderer, conversation, lambda _, normal=normal: normal, i)
    assert_trains(renderer, tokenizer, conversation, said)
    assert renderer.extension and extends(renderer, conversation)


def test_reasoning_of_earlier_questions_goes() -> None:
    tokenizer = ByteTokenizer()
    early = Message("assistant", "<think>So.</think>\n Well, noon. ", weights=(Weighted(20, 24, 0.5),))
    asked = Conversation((ASK, Message("assistant", "Noon.", "Look."), ASK, early, ASK, SURE))
    rendered = built(tokenizer, version="2.5").render(asked)
    kept = [t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]
    assert tokenizer.decode(kept) == "Noon.<|im_end|>Well, noon.<|im_end|><think>Hm.</think>Quite.<|im_end|>"
    assert tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w == 0.5]) == "Well"
    assert rendered.remarks == ("reasoning left out",) and not built(tokenizer, version="2.5").extension
    keeps = built(tokenizer, version="2.5", keep_reasoning=True)
    text = tokenizer.decode(list(keeps.render(asked).tokens))
    assert "<think>Look.</think>Noon." in text and early.content in text and keeps.render(asked).remarks == ()
    assert keeps.extension and extends(keeps, asked)
    assert_reads_back(keeps, asked, lambda message: message)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab' ,)=", max_size=3), inner, max_size=2),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=draws(60), deadline=None)
@given(arguments=st.dictionaries(st.sampled_from(["a", "été", "b_2"]), VALUES, max_size=3), json_lists=st.booleans())
def test_calls_of_all_kinds_are_read_back(arguments: dict[str, Any], json_lists: bool) -> None:
    for name in ("f", "math.sqrt", "get-weather"):
        calls = f"[{write_call(FunctionCall(name, arguments), json_lists=json_lists)}, g()]"
        assert read_calls(calls) == (call_of(name, arguments), call_of("g", {}))


@pytest.mark.parametrize("text", ["", "[]", "[f]", "[f(a)]", "[f(a=)]", "[f(a=b)]", "[f(a='b)]", "f()", "[f() g()]"])
def test_what_is_no_call_is_none(text: str) -> None:
    assert read_calls(text) is None


def test_broken_and_early_calls() -> None:
    tokenizer = ByteTokenizer()
    renderer = built(tokenizer, version="2")
    broken = "hm<|tool_call_start|>[f(a=)]<|tool_call_end|>"
    parsed = renderer.parse(tokenizer.encode(broken, special=True))
    assert (parsed.message, parsed.stop) == (Message("assistant", broken), "length")
    said = "<|tool_call_start|>[clock(zone='UTC', days=2)]<|tool_call_end|>Looking.<|im_end|>"
    parsed = renderer.parse(tokenizer.encode(said, special=True))
    assert (parsed.message, parsed.stop) == (Message("assistant", "Looking.", tool_calls=(CALL,)), "stop")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (Message("judge", "a"), r"messages\[1\].*no role 'judge'"),
        (SURE, r"messages\[1\].*no markup for reasoning"),
        (Message("assistant", "", tool_calls=({"name": "f"},)), r"messages\[1\].*a tool call is not"),
        (Message("assistant", "", tool_calls=(call_of("f(", {}),)), r"messages\[1\].*could be read back"),
        (Message("assistant", "", tool_calls=(call_of("f", {"a": "\0"}),)), r"messages\[1\].*could be read back"),
    ],
)
def test_what_it_cannot_say_is_an_error(message: Message, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        built(ByteTokenizer(), version="2").render(Conversation((ASK, message)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["2", "2.5"])
@pytest.mark.parametrize(("said", "instead"), [("", ""), ("List of tools: ", "Today: 1\\n\\nList of tools: ")])
def test_a_template_that_lists_tools_otherwise_is_told(
    tokenizers: Tokenizers, lfm2_tokenizer: Tokenizers, tmp_path: Path, version: str, said: str, instead: str
) -> None:
    template = (tokenizers(version).chat_template or "").replace(said, instead)
    context = FakeContext(tmp_path, tokenizer=lfm2_tokenizer(template))
    build(LFM2Options(), context)
    assert ["List of tools" in note for note in context.notes] == [True] * bool(said)
