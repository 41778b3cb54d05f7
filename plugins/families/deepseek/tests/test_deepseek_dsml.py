# ruff: noqa: RUF001  # the bars of these tokens are wide ones
"""`deepseek_v3_2` and `deepseek_v4` by hand; whole conversations stand in tests/families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_deepseek import markup as m
from finetooth_deepseek.dsml import DeepSeekV4, DeepSeekV32, DSMLOptions, build_v3_2, build_v4
from finetooth_hooks import Conversation, DataError, Message
from finetooth_kit import ByteTokenizer, FakeContext, draws
from finetooth_kit.templates import assert_reads_back, conversations, extends, says_any
from hypothesis import assume, given, settings

BOTH = pytest.mark.parametrize("kind", [DeepSeekV32, DeepSeekV4])
MARKS = ("think>", "DSML", "<｜")
ASK, AGAIN = Message("user", "The time?"), Message("user", "Sure?")
SAY, SURE = Message("assistant", "Noon.", "Look."), Message("assistant", "Quite.", "Hm.")


def call(name: str = "clock", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def built(kind: Any, **options: Any) -> Any:
    return kind(ByteTokenizer(), DSMLOptions(**options))


def trained(renderer: Any, *messages: Message) -> str:
    rendered = renderer.render(Conversation(messages))
    return str(renderer.tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w]))


@BOTH
def test_what_trains(kind: Any) -> None:
    """What the prompt ends with does not train, nor does anything in place of reasoning that is left out."""
    thinking = built(kind, thinking=True)
    assert trained(thinking, ASK, SAY, AGAIN, SURE) == f"Noon.{m.END}Hm.</think>Quite.{m.END}"
    kept = built(kind, thinking=True, keep_reasoning=True)
    assert trained(kept, ASK, SAY, AGAIN, SURE) == f"Look.</think>Noon.{m.END}Hm.</think>Quite.{m.END}"
    assert trained(built(kind), ASK, SAY) == f"Noon.{m.END}"
    called = Message("assistant", "", "Look.", (call(zone="UTC"),))
    calls = trained(thinking, ASK, called).removeprefix("Look.</think>\n\n")
    assert calls == (
        f'<｜DSML｜{kind.block}>\n<｜DSML｜invoke name="clock">\n'
        '<｜DSML｜parameter name="zone" string="true">UTC</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        f"</｜DSML｜{kind.block}>{m.END}"
    )


@BOTH
def test_reasoning_that_is_not_written_is_counted(kind: Any) -> None:
    asked = Conversation((ASK, SAY, AGAIN, SURE))
    assert built(kind).render(asked).remarks == ("reasoning left out",)
    assert built(kind, thinking=True).render(asked).remarks == ("reasoning left out",)
    assert built(kind, thinking=True, keep_reasoning=True).render(asked).remarks == ()
    inline = (ASK, Message("assistant", "<think>Look.</think>Noon."))
    assert trained(built(kind, thinking=True), *inline) == trained(built(kind, thinking=True), ASK, SAY)
    assert built(kind).render(Conversation(inline)).remarks == ("reasoning left out",)


def test_v4_keeps_all_reasoning_where_there_are_tools() -> None:
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    asked = Conversation((ASK, SAY, AGAIN, SURE), (tool,))
    assert built(DeepSeekV4, thinking=True).render(asked).remarks == ()
    assert built(DeepSeekV32, thinking=True).render(asked).remarks == ("reasoning left out",)


@BOTH
@pytest.mark.parametrize(("messages", "problem"), [
    ((ASK, Message("system", "Be brief."), SURE), "a system message only at the beginning"),
    ((ASK, SAY, SURE), "no think block for a second answer"),
    ((ASK, replace(SAY, content="<think>So.</think>Noon.")), "one think block for an answer"),
    ((ASK, replace(SAY, reasoning="a</think>b")), "one think block"),
    ((ASK, Message("assistant", "", "", (call(a="</｜DSML｜parameter>\n"),))), "spells its markup and ends early"),
    ((ASK, Message("assistant", "", "", (call('a"b'),))), "spells its markup and ends early"),
])  # fmt: skip
def test_what_it_cannot_say_is_refused(kind: Any, messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        built(kind, thinking=True).render(Conversation(messages))


@pytest.mark.parametrize(("messages", "problem"), [
    ((ASK, Message("tool", "12:00"), SURE), "a result of no call"),
    ((ASK, Message("assistant", "", "", (call(),)), Message("tool", "12"), Message("tool", "13")), "of no call"),
    ((ASK, Message("assistant", "", "", (call(), call())), Message("tool", "12"), AGAIN), "for all results"),
])  # fmt: skip
def test_v3_2_takes_a_result_for_each_call(messages: tuple[Message, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        built(DeepSeekV32).render(Conversation(messages))


@BOTH
@settings(max_examples=draws(15), deadline=None)
@given(drawn=conversations(tools=True, reasoning=True, any_values=True))
def test_answers_are_read_back_and_conversations_grow_at_their_end(kind: Any, drawn: Conversation) -> None:
    """Values too, whatever text they are."""
    assume(not says_any(drawn, MARKS))
    kept = built(kind, thinking=True, keep_reasoning=True)
    assert kept.extension and extends(kept, drawn)
    for i, message in enumerate(drawn.messages):
        if message.role == "assistant":
            assert_reads_back(kept, drawn, _without_ids, i)
    quiet = replace(drawn, messages=tuple(replace(message, reasoning="") for message in drawn.messages))
    silent = built(kind)
    assert silent.extension and extends(silent, quiet)
    assert_reads_back(silent, quiet, _without_ids)


def _without_ids(message: Message) -> Message:
    calls = [made["function"] for made in message.tool_calls]
    return replace(message, tool_calls=tuple(call(made["name"], **made["arguments"]) for made in calls))


@BOTH
@pytest.mark.parametrize("text", [
    '\n\n<｜DSML｜{}>\n<｜DSML｜invoke name="clock">\n', '\n\n<｜DSML｜{}>\n</｜DSML｜{}>',
    '\n\n<｜DSML｜{}>\n<｜DSML｜invoke name="a">\n<｜DSML｜parameter name="a" string="false">{{</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜{}>",
])  # fmt: skip
def test_a_broken_call_is_text(kind: Any, text: str) -> None:
    said = f"I look.{text.format(kind.block, kind.block)}"
    assert built(kind).read(said) == Message("assistant", said)
    assert built(kind, thinking=True).read(f"Hm.</think>{said}") == Message("assistant", said, reasoning="Hm.")
    assert built(kind, thinking=True).read("Hm.") == Message("assistant", "", reasoning="Hm.")


@pytest.mark.parametrize("build", [build_v3_2, build_v4])
def test_a_template_of_another_model_is_noted(tmp_path: Path, build: Any) -> None:
    theirs = (
        "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' }}{{ m.content }}"
        "{{ '<｜Assistant｜></think>' if m.role == 'user' }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    )
    for template, told in ((theirs, 0), (theirs.replace("</think>", "<think></think>"), 1)):
        tokenizer = ByteTokenizer(special=("<|pad|>", m.BEGIN, m.END), chat_template=template)
        context = FakeContext(tmp_path, tokenizer=tokenizer)
        build(DSMLOptions(), context)
        assert len(context.notes) == told, context.notes
