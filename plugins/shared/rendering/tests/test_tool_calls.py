"""Calls of tools read out of text, and templates compared with renderers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer
from finetooth_rendering.page import Page
from finetooth_rendering.tool_calls import call_of, function_call, json_call, tagged_calls
from finetooth_rendering.turns import TurnRenderer, split_thought
from finetooth_toolbox.messages.chat_templates import chatml_system, foreign_template, render_template
from hypothesis import given
from hypothesis import strategies as st

ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.just("</call>\n<call>"), max_size=2)
TEXT = st.text(max_size=8).filter(lambda text: "<call>" not in text and not text.endswith("\n"))


@given(TEXT, st.lists(st.tuples(st.text("ab.", min_size=1, max_size=3), ARGUMENTS), max_size=3))
def test_tagged_calls_are_read_back(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    said = [json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) for name, arguments in calls]
    written = text + "".join(f"\n<call>\n{one}\n</call>" for one in said)
    assert tagged_calls(written, "<call>", "</call>") == (text, tuple(call_of(*call) for call in calls))


@pytest.mark.parametrize(
    "broken",
    [
        "<call>",
        "<call>{",
        "<call>{}</call>",
        '<call>{"name": "f", "arguments": {}}',
        '<call>{"name": 1, "arguments": {}}',
    ],
)
def test_what_is_no_call_stays_in_the_text(broken: str) -> None:
    good = '<call>{"name": "f", "arguments": {}}</call>'
    assert tagged_calls(f"a\n{broken}", "<call>", "</call>") == (f"a\n{broken}", ())
    assert tagged_calls(f"{broken}\n{good}", "<call>", "</call>") == (broken, (call_of("f", {}),))


def test_a_text_that_is_a_call() -> None:
    assert json_call('{"name": "f", "parameters": {"a": 1}}', arguments="parameters") == call_of("f", {"a": 1})
    for text in ("", "[]", "{}", '{"name": "f", "parameters": {}, "more": 1}', '{"name": "f", "parameters": 1}'):
        assert json_call(text, arguments="parameters") is None


@pytest.mark.parametrize("call", [{}, {"function": 1}, {"function": {"name": "f"}}, {"function": {"arguments": {}}}])
def test_a_call_of_another_shape_is_refused(call: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"messages\[2\]: a tool call is not of the form"):
        function_call(call, "messages[2]")
    assert function_call(call_of("f", {"a": 1}), "").arguments == {"a": 1}


def test_thoughts() -> None:
    assert split_thought("Yes.") == ("", "Yes.")
    assert split_thought("\n<think>\nhm\n</think>\n\nYes.\n") == ("hm", "Yes.\n")
    assert split_thought("<think>\nhm") == ("hm", "")
    assert split_thought("[A]hm[B]Yes.", "[A]", "[B]") == ("hm", "Yes.")


class Plain(TurnRenderer):
    """`<|im_start|>role\\ncontent<|im_end|>\\n`, as the template of the byte tokenizer; without system messages."""

    name = "plain"
    controls = ("<|im_start|>", "<|im_end|>")
    stops = ("<|im_end|>",)

    def write(self, page: Page, conversation: Conversation, trained: Any, *, ask: bool) -> None:
        if conversation.tools:
            raise self.refuse("no tools", "tools")
        for message in conversation.messages:
            if message.role == "system":
                raise self.refuse("no system message", "messages[0]")
            page.markup(f"<|im_start|>{message.role}\n")
            page.say(message.content)
            page.markup("<|im_end|>\n")
        page.markup("<|im_start|>assistant\n" * ask)


class Telling(Plain):
    """With tools, whose names stand last."""

    def write(self, page: Page, conversation: Conversation, trained: Any, *, ask: bool) -> None:
        super().write(page, replace(conversation, tools=()), trained, ask=ask)
        page.say("".join(tool["function"]["name"] for tool in conversation.tools))


def test_a_foreign_template_is_named() -> None:
    own = ByteTokenizer()
    assert foreign_template(Plain(own), "plain", own) == ""  # the conversation with a system message is not compared
    assert foreign_template(Plain(own), "plain", ByteTokenizer(chat_template=None)) == ""
    other = ByteTokenizer(chat_template="{{ bos_token }}{{ messages[0]['content'] }}{{ more }}")
    text = foreign_template(Plain(other), "plain", other, more="!")
    assert re.match(
        r"renderer plain: the model's own chat template says '<\|begin\|>Hello\?!' where plain says '", text
    )
    assert "\n" not in text and text.endswith("data.renderer: jinja follows the model's own chat template")
    opened = ByteTokenizer(chat_template=f"{own.chat_template}{{% if add_generation_prompt %}}<think>{{% endif %}}")
    text = foreign_template(Plain(opened), "plain", opened)  # the same conversations, another prompt
    assert r"<|im_start|>assistant\n<think>' where plain says" in text
    untold = f"{own.chat_template}{{{{ 'Tools.' if tools }}}}"
    assert foreign_template(Plain(own), "plain", ByteTokenizer(chat_template=untold)) == ""  # nor is one with tools
    text = foreign_template(Telling(own), "telling", ByteTokenizer(chat_template=untold))
    assert "Tools.' where telling says" in text and "clock' with tools; data.renderer" in text
    refuses = ByteTokenizer(chat_template=f"{own.chat_template}{{{{ raise_exception('no') if tools }}}}")
    assert foreign_template(Telling(own), "telling", refuses) == ""
    assert foreign_template(Telling(own), "telling", own) == ""  # which leaves them out
    broken = ByteTokenizer(chat_template="{{ raise_exception('no') }}")
    assert "cannot be rendered" in foreign_template(Plain(broken), "plain", broken)


def test_the_system_message_a_template_adds() -> None:
    template = "<|im_start|>system\nBe {{ 'kind' }}.<|im_end|>\n{{ messages[0]['content'] }}"
    assert chatml_system(template) == "Be kind."
    assert chatml_system("{{ messages[0]['content'] }}") == chatml_system(None) == ""
    assert render_template("{% for", [Message("user", "a").__dict__]) is None


def test_golden_rows(tmp_path: Any) -> None:
    from finetooth_kit.templates import golden

    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    rows = [
        {"template": "x", "case": "a", "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}],
         "add_generation_prompt": False, "expected": "t"},
        {"template": "x", "case": "b", "messages": [], "add_generation_prompt": True, "expected_error": "E"},
        {"template": "y", "case": "c", "messages": [], "add_generation_prompt": True, "expected": ""},
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = golden(file, "x")
    assert first.conversation.messages[0].tool_calls[0]["function"]["arguments"] == {"a": 1}
    assert (first.text, first.ask, second.text, second.ask) == ("t", False, None, True)


def test_json_in_a_template_is_as_in_transformers() -> None:
    """Jinja's own way escapes for web pages, itself and what is written beside it, and sorts keys."""
    template = "{{ '<a>' + (tools | tojson) }} {{ tools | tojson(indent=1) }}"
    said = render_template(template, (), tools=[{"b": "<é>", "a": 1}])
    assert said == '<a>[{"b": "<é>", "a": 1}] [\n {\n  "b": "<é>",\n  "a": 1\n }\n]'
