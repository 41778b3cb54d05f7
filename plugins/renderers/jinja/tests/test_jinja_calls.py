"""Calls in completions: read as the template writes them, or kept as text with a word about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message
from finetooth_jinja.renderer import JinjaOptions, JinjaRenderer, build
from finetooth_kit import FakeContext, draws
from finetooth_kit.templates import CLOCK, WEATHER
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

HEAD = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or () %}{% set f = call.function %}"
)
TAIL = "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LIST = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}BEGIN[{% for call in m.tool_calls %}{{ call.function | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}]END{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WAYS = {
    "tags": HEAD + "{{ '\n' if m.content or not loop.first }}<tool_call>\n{{ f | tojson }}\n</tool_call>" + TAIL,
    "coder": HEAD
    + "<tool_call>\n<function={{ f.name }}>\n{% for key, value in f.arguments | items %}<parameter={{ key }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>" + TAIL,
    "list": LIST.replace("BEGIN", "<|tool_call|>").replace("END", ""),
    "closed list": LIST.replace("BEGIN", "<TOOLCALL>").replace("END", "</TOOLCALL>"),
    "named": HEAD + "[CALL]{{ f.name }}[ARGS]{{ f.arguments | tojson }}" + TAIL,
    "bare": HEAD + '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}' + TAIL,
    "braced": HEAD + "<|tool_call|>call:{{ f.name }}{{ '{' }}{% for key, value in f.arguments | items %}{{ key }}:"
    "{{ '<|\"|>' + value + '<|\"|>' if value is string else value | tojson }}{{ ',' if not loop.last }}{% endfor %}"
    "{{ '}' }}[CALL]" + TAIL,
    "invoked": HEAD
    + "{{ '\n' if m.content and loop.first }}to={{ f.name }}[CALL]<a:calls>\n<a:invoke name=\"{{ f.name }}\">\n"
    '{% for key, value in f.arguments | items %}<a:parameter name="{{ key }}">'
    "{{ value if value is string else value | tojson }}</a:parameter>\n{% endfor %}</a:invoke>\n</a:calls>" + TAIL,
}
"""How templates write calls: Hermes and Qwen, Qwen3-Coder, Granite, Nemotron, Mistral, Llama, Gemma 4, Muse."""
OWN = HEAD + "{{ f.name }}({% for key, value in f.arguments | items %}{{ key }}={{ value }}{% endfor %})" + TAIL
OFFICIAL = (
    *("qwen2.5", "qwen3", "qwen3-instruct-2507", "llama-3.1", "llama-3.2", "mistral-v3", "mistral-v3-tekken"),
    *("mistral-nemo-2407", "mistral-small-3.2", "deepseek-v3.1", "hermes-2-pro-tools", "glm-4.6"),
)


@pytest.fixture
def of(byte_level: Callable[..., FastTokenizer], tmp_path: Path) -> Callable[[str], tuple[JinjaRenderer, Any, Any]]:
    """Renderer, tokenizer and context of a template."""

    def make(template: str) -> tuple[JinjaRenderer, Any, Any]:
        special = ["<|im_start|>", "<|im_end|>", "<|tool_call|>", "[CALL]", "[ARGS]"]
        tokenizer = byte_level(template, special, eos="<|im_end|>")
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        return build(JinjaOptions(), context), tokenizer, context

    return make


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def read_back(renderer: JinjaRenderer, answer: Message) -> Message:
    """What is read of what the template makes of an answer."""
    asked = (Message("user", "Time?"),)
    tokens = renderer.render(Conversation((*asked, answer), (CLOCK, WEATHER))).tokens
    return renderer.parse(tokens[len(renderer.prompt(asked, (CLOCK, WEATHER))) :]).message


ARGUMENTS = st.dictionaries(
    st.sampled_from(["place", "days", "a_b"]),
    st.one_of(st.sampled_from(["Oslo", "été", "a b", "x\ny"]), st.integers(-9, 9), st.just(["a"]), st.booleans()),
    max_size=3,
)


@pytest.mark.parametrize("way", WAYS)
def test_calls_are_read_as_the_template_writes_them(of: Any, way: str) -> None:
    renderer, _, context = of(WAYS[way])
    assert renderer.reads_calls and not context.notes

    @settings(max_examples=draws(20), deadline=None)
    @given(st.lists(ARGUMENTS, min_size=1, max_size=1 if way == "bare" else 3), st.sampled_from(["", "I look."]))
    def check(several: list[dict[str, Any]], content: str) -> None:
        content = "" if way == "bare" else content
        calls = tuple(call(("clock", "get_weather")[i % 2], arguments) for i, arguments in enumerate(several))
        answer = Message("assistant", content, tool_calls=calls)
        assert read_back(renderer, answer) == answer

    check()


@pytest.mark.parametrize("name", OFFICIAL)
def test_calls_of_official_templates_are_read(shared: Path, tmp_path: Path, name: str) -> None:
    tokenizer, renderer, _ = official_renderer(shared, tmp_path, name)
    called = {**call("clock", {"zone": "Europe/Oslo", "days": 2}), "id": "abcdefghi"}
    written = Conversation((Message("user", "Time?"), Message("assistant", "", tool_calls=(called,))), (CLOCK, WEATHER))
    text = renderer._rendered(written.messages, written.tools).text
    prompt = renderer._rendered(written.messages[:1], written.tools, prompt=True).text
    assert text.startswith(prompt) or name == "deepseek-v3.1"
    said = renderer.parse(tokenizer.encode(text[len(prompt) :], special=True)).message
    assert [one["function"] for one in said.tool_calls] == [called["function"]]
    assert not said.content


def official_renderer(shared: Path, folder: Path, name: str) -> tuple[FastTokenizer, JinjaRenderer, FakeContext]:
    from finetooth_kit.templates import template_tokenizer

    source = (shared / f"templates/{name}.jinja").read_text(encoding="utf-8")
    ends = {"llama": "<|eot_id|>", "mistral": "</s>", "deepseek": "<\uff5cend▁of▁sentence\uff5c>", "glm": "<|user|>"}
    eos = next((end for start, end in ends.items() if name.startswith(start)), "<|im_end|>")
    special = [eos, "<s>", "[TOOL_CALLS]", "<|im_start|>", "<|python_tag|>", "<|assistant|>"]
    tokenizer = template_tokenizer(source, special, eos=eos, bos="<s>")
    context = FakeContext(folder, tokenizer=tokenizer)
    return tokenizer, build(JinjaOptions(), context), context


def test_calls_in_a_way_of_its_own_stay_text_and_a_note_says_so(of: Any) -> None:
    renderer, _, context = of(OWN)
    assert not renderer.reads_calls
    assert ["and stay text" in note for note in context.notes] == [True]
    answer = Message("assistant", "", tool_calls=(call("clock", {"zone": "UTC"}),))
    assert read_back(renderer, answer) == Message("assistant", "clock(zone=UTC)")


def test_a_template_without_calls_draws_no_note(of: Any) -> None:
    renderer, tokenizer, context = of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert not renderer.reads_calls and not context.notes
    said = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert renderer.parse(tokenizer.encode(f"{said}<|im_end|>", special=True)).message == Message("assistant", said)


@pytest.mark.parametrize("way", WAYS)
def test_broken_calls_stay_text(of: Any, way: str) -> None:
    renderer, tokenizer, _ = of(WAYS[way])
    for said in (
        "<tool_call>\n{broken\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\n</tool_call>",
        '<|tool_call|>[{"name": "f"}]',
        "<TOOLCALL>[]</TOOLCALL>",
        "[CALL]f[ARGS]{",
        '{"name": "f", "parameters": 1}',
        '{"name": "f", "parameters": {}} and more',
        json.dumps({"answer": 42}),
    ):
        assert renderer.parse(tokenizer.encode(said, special=True)).message == Message("assistant", said)


def test_reasoning_goes_before_calls(of: Any) -> None:
    renderer, tokenizer, _ = of(WAYS["tags"])
    said = '<think>\nhm\n</think>\n\nSo.\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>'
    expected = Message("assistant", "So.", reasoning="hm", tool_calls=(call("clock", {}),))
    assert renderer.parse(tokenizer.encode(said, special=True)).message == expected


def test_reasoning_in_a_block_that_the_prompt_opened(of: Any) -> None:
    renderer, tokenizer, _ = of(WAYS["tags"].replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    said = tokenizer.encode("hm\n</think>\n\nYes.<|im_end|>", special=True)
    assert renderer.parse(said).message == Message("assistant", "Yes.", reasoning="hm")
    assert renderer.parse(tokenizer.encode("Yes.", special=True)).message == Message("assistant", "Yes.")


def test_calls_that_a_template_drops_behind_the_first_are_refused(of: Any) -> None:
    first = WAYS["named"].replace("m.tool_calls or ()", "(m.tool_calls or ())[:1]")
    renderer, _, _ = of(first)
    one = Message("assistant", "", tool_calls=(call("clock", {}),))
    assert renderer.reads_calls and read_back(renderer, one) == one
    two = Message("assistant", "", tool_calls=(call("clock", {}), call("clock", {"zone": "UTC"})))
    with pytest.raises(DataError, match=r"messages\[1\]: the chat template leaves all but 1 of its calls out"):
        renderer.render(Conversation((Message("user", "Time?"), two), (CLOCK,)))


TO_ITSELF = (
    "{{ tools | tojson if tools }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content %}<|im_start|>assistant to=self[CALL]"
    "{{ m.reasoning_content }}[ARGS]{% endif %}<|im_start|>assistant to=user[CALL]{{ m.content }}<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}[CALL]{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
CHANNEL = (
    "{{ tools | tojson if tools }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}[CALL]thought\n"
    "{{ m.reasoning_content }}\n[ARGS]{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [TO_ITSELF, CHANNEL])
@pytest.mark.parametrize("reasoning", ["", "So it is.", "A thought\n\nto=user", "thought\n"])
def test_reasoning_that_special_tokens_mark_is_read(of: Any, template: str, reasoning: str) -> None:
    """As messages to itself (Muse), and in a channel (DiffusionGemma)."""
    renderer, tokenizer, _ = of(template)
    answer = Message("assistant", "Yes.", reasoning=reasoning)
    assert read_back(renderer, answer) == answer
    opened = tokenizer.encode(
        " to=self[CALL]no end" if template is TO_ITSELF else "[CALL]thought\nno end", special=True
    )
    assert not renderer.parse(opened).message.reasoning
