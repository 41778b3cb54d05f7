"""Options of `chat` and the names that axolotl has for them: other keys, other roles, whose messages train."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from finetooth_formats.parts import Content, split_thought
from finetooth_hooks import Conversation, DataError, Message, RecipeError, Row
from finetooth_hooks.data.examples import Weighted
from finetooth_kit import FakeContext
from hypothesis import given
from hypothesis import strategies as st

Make = Callable[..., Any]

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PLAIN = (Message("user", "a"), Message("assistant", "b"))


def read(format_of: Make, values: dict[str, Any], **options: Any) -> Conversation:
    found: Conversation = format_of("chat", **options).read(Row("f:1", values))
    return found


# --- where things are -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"responses_create_params": {"input": [ASK, SAY]}}, {"column": "responses_create_params.input"}),
        ({"responses_create_params": {"input": [ASK, SAY]}}, {"field_messages": "responses_create_params.input"}),
        ({"a.b": [ASK, SAY], "a": {"b": []}}, {"column": "a.b"}),
        ({"dialog": [{"who": "user", "said": "a"}, {"who": "assistant", "said": "b"}]},
         {"column": "dialog", "fields": {"role": "who", "content": "said"}}),
        ({"dialog": [{"who": "user", "said": "a"}, {"who": "assistant", "said": "b"}]},
         {"field_messages": "dialog", "message_property_mappings": {"role": "who", "content": "said"}}),
        ({"dialog": [{"who": "user", "said": "a"}, {"who": "assistant", "said": "b"}]},
         {"field_messages": "dialog", "message_field_role": "who", "message_field_content": "said"}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
         {"message_property_mappings": {"role": "from", "content": "value"}}),
        ({"messages": [{"from": "human", "content": "a"}, {"from": "gpt", "content": "b"}]}, {}),
        ({"messages": [{"role": "human", "content": "a"}, {"role": "bot", "content": "b"}]},
         {"roles": {"human": "user", "bot": "assistant"}}),
        ({"messages": [{"role": "human", "content": "a"}, {"role": "bot", "content": "b"}]},
         {"roles": {"user": ["human"], "assistant": ["bot", "gpt"]}}),
        ({"messages": json.dumps([ASK, SAY])}, {}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, SAY]}, {}),
    ],
)  # fmt: skip
def test_the_same_conversation(format_of: Make, values: dict[str, Any], options: dict[str, Any]) -> None:
    format_ = format_of("chat", **options)
    assert format_.detect(values)
    assert format_.read(Row("f:1", values)) == Conversation(PLAIN)


def test_system_messages_of_every_shape(format_of: Make) -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    brief = (Message("system", "Be brief."), *PLAIN)
    assert read(format_of, {"messages": [{"role": "system", "content": parts}, ASK, SAY]}).messages == brief
    assert read(format_of, {"messages": [ASK, SAY], "system": parts}).messages == brief
    assert read(format_of, {"messages": [ASK, SAY], "system": "Be brief."}, system="Other.").messages == brief
    assert read(format_of, {"messages": [ASK, SAY], "system": None}, system="Be brief.").messages == brief
    given = {"messages": [ASK, SAY], "meta": {"system": "Be brief."}}
    assert read(format_of, given, field_system="meta.system").messages == brief
    with pytest.raises(DataError, match="f:1: system is a number, not text"):
        read(format_of, {"messages": [ASK], "system": 3})


def test_a_system_column_that_is_not_used_is_said(format_of: Make, context: FakeContext) -> None:
    own = {"role": "system", "content": "Mine."}
    found = read(format_of, {"messages": [own, ASK, SAY], "system": "Other."})
    assert [message.content for message in found.messages] == ["Mine.", "a", "b"]
    assert len(context.notes) == 1 and "column 'system' is not used in f:1" in context.notes[0]


def test_tool_calls_of_every_shape(format_of: Make, context: FakeContext) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    shapes: list[Any] = [
        [call],
        json.dumps([call]),
        [{"id": None, "function": {"name": "f", "arguments": '{"x": 1}'}}],
        [{"name": "f", "arguments": {"x": 1}}],
        [json.dumps(call)],
    ]
    for shape in shapes:
        (message,) = read(
            format_of, {"messages": [{"role": "assistant", "content": None, "tool_calls": shape}]}
        ).messages
        assert message.tool_calls == (call,)
    for value in ('{"name": "f", "arguments": {"x": 1}}', '[{"name": "f", "arguments": {"x": 1}}]'):
        found = read(format_of, {"conversations": [{"from": "function_call", "value": value}]})
        assert found.messages == (Message("assistant", "", tool_calls=(call,)),)
        turn = {"role": "function_call", "content": value}  # the same speaker by the other name of the key
        assert read(format_of, {"messages": [turn]}) == found
        spoken = read(format_of, {"messages": [turn]}, roles={"function_call": "assistant"})
        assert spoken.messages == (Message("assistant", value),)
    for value, problem in (
        ("", "holds no call"),
        ("{", "is a string but not JSON"),
        ('{"name": 3}', "names no function"),
    ):
        with pytest.raises(DataError, match=problem):
            read(format_of, {"conversations": [{"from": "function_call", "value": value}]})
    assert context.notes == []


def test_parts_that_are_thoughts_are_reasoning(format_of: Make) -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Six"}, {"type": "text", "text": "..."}]}
    plain = {"type": "thinking", "thinking": "Six...", "train": False}
    said = {"type": "text", "text": "6"}
    for first in (thought, plain):
        (message,) = read(format_of, {"messages": [{"role": "assistant", "content": [first, said]}]}).messages
        assert (message.reasoning, message.content) == ("Six...", "6")
    assert message.reasoning_weights == (Weighted(0, 6, 0.0),)
    for parts in ([said, thought], [{"type": "thinking", "thinking": 3}, said]):
        with pytest.raises(DataError, match=r"messages\[0\]\."):
            read(format_of, {"messages": [{"role": "assistant", "content": parts}]})
    with pytest.raises(DataError, match="a part of type 'thinking'"):
        read(format_of, {"messages": [{"role": "user", "content": [plain, said]}]})


@pytest.mark.parametrize("text", ['{"x": NaN}', '{"x": 1e999}', "[" * 100_000])
def test_json_that_is_none_is_named(format_of: Make, text: str) -> None:
    call = {"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": text}]}
    with pytest.raises(DataError, match=r"f:1: messages\[0\]\.tool_calls\[0\]\.arguments is a string but not JSON"):
        read(format_of, {"messages": [call]})
    with pytest.raises(DataError, match="f:1: messages is "):
        read(format_of, {"messages": text})


# --- names of roles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "problem", "action"),
    [
        (
            [ASK, {"role": "gpt", "content": "b"}],
            r"messages\[1\]\.role is 'gpt', accepted are system, user, assistant, tool",
            "roles: {gpt: assistant}",
        ),
        (
            [{"role": "developer", "content": "a"}],
            r"messages\[0\]\.role is 'developer'",
            "roles: {developer: system}",
        ),
        (
            [{"from": "narrator", "value": "a"}],
            r"messages\[0\]\.from is 'narrator', accepted are human, user, gpt, assistant, system, tool",
            "fix or remove the row, or say which role it is in data.format: {name: chat, roles: {narrator: ROLE}}",
        ),
        ([{"role": "Customer", "content": "a"}], r"role is 'Customer'", "roles: {Customer: user}"),
        ([ASK, {"role": "asistant ", "content": "a"}], r"role is 'asistant '", "roles: {'asistant ': assistant}"),
        ([{"role": "\ud800", "content": "a"}], r"role is '\\ud800'", "fix or remove"),
    ],
)
def test_an_unknown_role_is_named(format_of: Make, turns: list[Any], problem: str, action: str) -> None:
    with pytest.raises(DataError, match=f"^f:1: .*{problem}") as caught:
        read(format_of, {"messages": turns})
    assert action in caught.value.action


def test_other_formats_map_roles_too(format_of: Make) -> None:
    turns = [{"role": "human", "content": "q"}]
    for name, values in (
        ("preference", {"prompt": turns, "chosen": "a", "rejected": "b"}),
        ("labelled", {"prompt": turns, "completion": "a", "label": True}),
        ("stepwise", {"prompt": turns, "completions": ["a"], "labels": [True]}),
        ("task", {"prompt": turns}),
    ):
        with pytest.raises(DataError) as caught:
            format_of(name).read(Row("f:1", values))
        assert f"set data.format: {{name: {name}, roles: {{human: user}}}}" in str(caught.value)
        assert format_of(name, roles={"human": "user"}).read(Row("f:1", values)).prompt == (Message("user", "q"),)


def test_a_name_cannot_stand_for_two_roles(format_of: Make) -> None:
    with pytest.raises(RecipeError, match="'x' stands for user and for tool"):
        format_of("chat", roles={"user": ["x"], "tool": ["x"]})


# --- what trains ------------------------------------------------------------------------------------------------------

TURNS = [
    {"role": "system", "content": "s"},
    ASK,
    {**SAY, "flag": False},
    {"role": "tool", "content": "t"},
    {**ASK, "flag": True},
    SAY,
]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, [None] * 6),
        ({"train_roles": ["assistant"]}, [False, False, True, False, False, True]),
        ({"roles_to_train": ["assistant", "tool"]}, [False, False, True, True, False, True]),
        ({"roles_to_train": ["gpt"], "train_on_inputs": False}, [False, False, True, False, False, True]),
        ({"train_on_inputs": False}, [None] * 6),
        ({"train_on_inputs": True}, [True] * 6),
        ({"train_field": "flag"}, [None, None, False, None, True, None]),
        ({"message_field_training": "flag", "roles_to_train": ["assistant"]}, [False, False, False, False, True, True]),
    ],
)
def test_which_messages_train(format_of: Make, options: dict[str, Any], flags: list[bool | None]) -> None:
    found = read(format_of, {"messages": TURNS}, **options)
    assert [message.train for message in found.messages] == flags


def test_ranges_of_characters(format_of: Make) -> None:
    """Both ends belong to a range; the characters between ranges do not train (axolotl masks them)."""
    text = "I'm doing very well, thank you!"
    detail = [
        {"begin_offset": 9, "end_offset": 18, "train": True},
        {"begin_offset": 0, "end_offset": 3, "train": False},
    ]
    turn = {"role": "assistant", "content": text, "train_detail": detail}
    (message,) = read(format_of, {"messages": [turn]}, message_field_training_detail="train_detail").messages
    weights = [float("nan")] * len(text)
    for part in message.weights:
        weights[part.start : part.stop] = [part.weight] * (part.stop - part.start)
    assert weights == [float(9 <= i <= 18) for i in range(len(text))]


@pytest.mark.parametrize(
    ("detail", "problem"),
    [
        ({}, "train_detail is an object, not a list"),
        ([{"begin_offset": 0, "end_offset": 4}], r"train_detail\[0\] is not of the kind"),
        ([{"begin_offset": True, "end_offset": 4, "train": True}], r"train_detail\[0\] is not of the kind"),
        ([{"begin_offset": 0, "end_offset": 5, "train": True}], "is 0 to 5, and the text has the characters 0 to 4"),
        (
            [{"begin_offset": 0, "end_offset": 2, "train": True}, {"begin_offset": 2, "end_offset": 4, "train": False}],
            "overlap at character 2",
        ),
    ],
)
def test_a_bad_range_is_named(format_of: Make, detail: Any, problem: str) -> None:
    turn = {"role": "assistant", "content": "fives", "train_detail": detail}
    with pytest.raises(DataError, match=rf"f:1: messages\[0\]\..*{problem}"):
        read(format_of, {"messages": [turn]}, ranges_field="train_detail")


# --- reasoning --------------------------------------------------------------------------------------------------------


def test_reasoning_by_any_name(format_of: Make) -> None:
    for key, options in (
        ("reasoning_content", {}),
        ("thinking", {}),
        ("cot", {"fields": {"reasoning": "cot"}}),
        ("cot", {"message_property_mappings": {"thinking": "cot"}}),
        ("cot", {"message_property_mappings": {"reasoning_content": "cot"}}),
    ):
        (message,) = read(format_of, {"messages": [{**SAY, key: "Hm."}]}, **options).messages
        assert (message.content, message.reasoning) == ("b", "Hm.")


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("\n<think>Hm.</think>Yes.", "Hm.", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("Yes. <think>no</think>", "", "Yes. <think>no</think>"),
        ("<think>open", "", "<think>open"),
    ],
)
def test_thinking_is_split_off(format_of: Make, content: str, reasoning: str, rest: str) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    asked, said = read(format_of, {"messages": turns}, split_thinking=True).messages
    assert (said.reasoning, said.content) == (reasoning, rest)
    assert (asked.reasoning, asked.content) == ("", content)  # the assistant's only
    assert read(format_of, {"messages": turns}).messages[1].content == content


@given(st.data())
def test_what_is_split_keeps_the_weights_of_its_characters(data: st.DataObject) -> None:
    """Character by character: each keeps the weight it had, and only markup and line feeds go."""
    inside, after = (data.draw(st.text("ab \n", max_size=6)) for _ in range(2))
    text = f"<think>{inside}</think>{after}"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6)))
    ranges = [Weighted(a, b, float(i % 2)) for i, (a, b) in enumerate(pairwise(cuts)) if a < b]

    def spelled(content: Content) -> list[tuple[str, float | None]]:
        weights: list[float | None] = [None] * len(content.text)
        for part in content.weights:
            weights[part.start : part.stop] = [part.weight] * (part.stop - part.start)
        return list(zip(content.text, weights, strict=True))

    whole = spelled(Content(text, tuple(ranges)))
    thought, rest = split_thought(Content(text, tuple(ranges)))
    body = whole[len("<think>") : len("<think>") + len(inside)]
    assert thought.text == inside.strip("\n") and rest.text == after.lstrip("\n")
    lead = len(inside) - len(inside.lstrip("\n"))
    assert spelled(thought) == body[lead : lead + len(thought.text)]
    assert spelled(rest) == whole[len(whole) - len(rest.text) :]


# --- names ------------------------------------------------------------------------------------------------------------


def test_other_names_are_noted_once(format_of: Make, context: FakeContext) -> None:
    for _ in range(2):
        format_of("chat", field_messages="dialog", roles_to_train=["gpt"], message_field_role="who")
    assert sorted(context.notes) == [
        "data.format: field_messages is read as column",
        "data.format: message_field_role is read as fields.role",
        "data.format: roles_to_train is read as train_roles",
    ]


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("chat", {"field_messages": "a", "column": "b"}, "field_messages is another name of column"),
        (
            "chat",
            {"message_field_role": "a", "fields": {"role": "b"}},
            "message_field_role is another name of fields.role",
        ),
        ("chat", {"chat_template_kwargs": {}}, r"set data.renderer: \{name: jinja, arguments"),
        ("chat", {"roles_to_train": ["narrator"]}, r"train_roles\.0"),
        ("chat", {"message_property_mappings": {"mood": "x"}}, "mood"),
        ("chat", {"field_mesages": "a"}, "field_mesages"),
    ],
)
def test_names_that_do_not_go_together(format_of: Make, name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        format_of(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("text", {"field": "body"}, {"body": "a"}),
        ("instruction", {"field_instruction": "i", "field_output": "o"}, {"i": "a", "o": "b"}),
        ("preference", {"field_messages": "m", "field_chosen": "c"}, {"m": "q", "c": "a", "rejected": "b"}),
        ("labelled", {"field_completion": "c", "field_label": "l"}, {"prompt": "q", "c": "a", "l": True}),
        ("prompt_completion", {"field_prompt": "p", "field_completion": "c"}, {"p": "q", "c": "a"}),
        ("task", {"field_messages": "responses_create_params.input"}, {"responses_create_params": {"input": [ASK]}}),
    ],
)  # fmt: skip
def test_other_names_of_other_formats(format_of: Make, name: str, options: Any, values: dict[str, Any]) -> None:
    format_ = format_of(name, **options)
    assert format_.detect(values) and format_.read(Row("f:1", values))


def test_half_a_character_is_named(format_of: Make) -> None:
    for name, values, path in (
        ("chat", {"messages": [ASK, {"role": "assistant", "content": "x\ud800"}]}, r"messages\[1\]\.content"),
        ("text", {"text": "x\ud800"}, "text"),
        ("prompt_completion", {"prompt": "q", "completion": "x\udfff"}, "completion"),
        ("preference", {"prompt": "q", "chosen": "x\ud800", "rejected": "b"}, "chosen"),
        ("segments", {"segments": [{"text": "x\ud800", "label": True}]}, r"segments\[0\]\.text"),
    ):
        with pytest.raises(
            DataError, match=rf"f:1: {path} is not Unicode text: half of a surrogate pair .* at character 1"
        ):
            format_of(name).read(Row("f:1", values))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "b", "train": True, "weight": 0},
        {"role": "assistant", "content": [{"type": "text", "text": "b", "train": False, "weight": 1}]},
    ],
)
def test_flags_that_contradict_each_other_are_refused(format_of: Make, message: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"messages\[1\].* has train: (true|false) and weight: [01], which contradict"):
        read(format_of, {"messages": [ASK, message]})
