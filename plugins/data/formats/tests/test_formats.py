"""Rows to examples: every shape at hand, detection, and what each broken file of the shared data must say."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, PromptCompletion, RecipeError, Row, Text
from finetooth_hooks.data.examples import Segments, Weighted
from finetooth_kit import FakeContext, entries_of, parametrize_with_checks

Make = Callable[..., Any]
Rows = Callable[[str], Iterator[Row]]


@parametrize_with_checks("finetooth_formats.plugin")
def test_conforms(check: Any) -> None:
    check()


def detected(context: FakeContext, values: dict[str, Any]) -> str | None:
    """As a run detects: by rank, the first that accepts."""
    entries = sorted(entries_of("finetooth_formats.plugin"), key=lambda entry: entry.rank)
    assert len({entry.rank for entry in entries}) == len(entries)
    return next((e.name for e in entries if context.build("format", e.name).detect(values)), None)


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"messages": MESSAGES}, "chat"),
        ({"messages": MESSAGES, "text": "a"}, "chat"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "chat"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction"),
        ({"instruction": "a", "output": "b"}, "instruction"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": "a", "response": "b", "category": "c"}, "prompt_completion"),
        ({"question": "a", "answer": "b"}, "prompt_completion"),
        ({"problem": "a", "solution": "b", "source": "c"}, "prompt_completion"),
        ({"input": "a", "output": "b"}, "prompt_completion"),
        ({"segments": [{"text": "a", "label": True}]}, "segments"),
        ({"segments": [{"text": "a"}]}, None),
        ({"text": "a"}, "text"),
        ({"text": "a", "meta": {}}, "text"),
        ({"messages": None, "text": "a"}, "text"),  # a table's filler
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "stepwise"),
        ({"prompt": "a", "completion": "b", "label": False}, "labelled"),
        ({"text": "a", "label": 1}, "text"),
        ({"prompt": "a"}, "task"),
        ({"prompt": "a", "answer": "b"}, "task"),
        ({}, None),
    ],
)
def test_detection(context: FakeContext, values: dict[str, Any], name: str | None) -> None:
    assert detected(context, values) == name


@pytest.mark.parametrize(
    ("file", "name", "rows"),
    [
        ("sft/gsm8k_train.jsonl", "prompt_completion", 7473),
        ("sft/alpaca_1k.jsonl", "instruction", 1175),
        ("sft/chat_multiturn.jsonl", "chat", 452),
        ("sft/tools.jsonl", "chat", 900),
        ("sft/tools_multiturn_ccbysa.jsonl", "chat", 180),
    ],
)
def test_real_files_are_read_whole(
    context: FakeContext, format_of: Make, rows_of: Rows, file: str, name: str, rows: int
) -> None:
    given = list(rows_of(file))
    assert detected(context, dict(given[0].values)) == name
    reader = format_of(name)
    if file == "sft/alpaca_1k.jsonl":
        # some rows have an empty output, which teaches nothing and is refused by name
        empty = [row for row in given if not row.values["output"]]
        for row in empty:
            with pytest.raises(DataError, match="output is empty"):
                reader.read(row)
        given = [row for row in given if row.values["output"]]
        assert len(given) + len(empty) == rows
    else:
        assert len(given) == rows
    examples = [reader.read(row) for row in given]
    assert all(isinstance(example, Conversation) for example in examples)
    assert all(any(m.role == "assistant" for m in example.messages) for example in examples)


def test_the_content_is_the_files(format_of: Make, rows_of: Rows) -> None:
    """Row by row against the raw values."""
    for row in list(rows_of("sft/gsm8k_train.jsonl"))[:200]:
        assert format_of("prompt_completion").read(row) == Conversation(
            (Message("user", row.values["question"]), Message("assistant", row.values["answer"]))
        )
    chat = format_of("chat")
    for row in rows_of("sft/chat_multiturn.jsonl"):
        said = [(message.role, message.content) for message in chat.read(row).messages]
        assert said == [(message["role"], message["content"]) for message in row.values["messages"]]


# --- prompt and completion, instruction, text -------------------------------------------------------------------------


def test_styles(format_of: Make) -> None:
    row = Row("x:1", {"ask": "2+2?", "reply": "4"})
    named = {"prompt": "ask", "completion": "reply"}
    assert format_of("prompt_completion", **named, style="raw").read(row) == PromptCompletion("2+2?", "4")
    assert format_of("prompt_completion", **named, system="Be brief.").read(row) == Conversation(
        (Message("system", "Be brief."), Message("user", "2+2?"), Message("assistant", "4"))
    )


def test_message_lists_as_prompt_and_completion(format_of: Make) -> None:
    """Answers inside the prompt do not train."""
    prompt = [*MESSAGES, {"role": "user", "content": "c"}]
    row = Row("x:1", {"prompt": prompt, "completion": [{"role": "assistant", "content": "d"}]})
    read = format_of("prompt_completion").read(row)
    assert [message.content for message in read.messages] == ["a", "b", "c", "d"]
    assert [message.train for message in read.messages] == [False, False, False, None]
    with pytest.raises(DataError, match="x:1: prompt is a list of messages, which style raw cannot read"):
        format_of("prompt_completion", style="raw").read(row)


@pytest.mark.parametrize(
    "options",
    [{"prompt": "a"}, {"completion": "a"}, {"style": "raw", "system": "a"}, {"style": "other"}, {"unknown": 1}],
)
def test_options_that_do_not_go_together(format_of: Make, options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        format_of("prompt_completion", **options)


def test_instruction(format_of: Make) -> None:
    read = format_of("instruction", system="S").read(
        Row("x:1", {"instruction": "Add.", "input": "2, 2", "output": "4"})
    )
    assert [(m.role, m.content) for m in read.messages] == [
        ("system", "S"),
        ("user", "Add.\n\n2, 2"),
        ("assistant", "4"),
    ]
    read = format_of("instruction").read(Row("x:1", {"instruction": "Sing.", "input": "", "output": "La."}))
    assert read.messages[0].content == "Sing."


def test_text(format_of: Make) -> None:
    assert format_of("text").read(Row("x:1", {"text": "Once."})) == Text("Once.")
    assert format_of("text", column="body").read(Row("x:1", {"body": "Once.", "text": ""})) == Text("Once.")
    with pytest.raises(DataError, match=r"x:1: text is a number, not text"):
        format_of("text").read(Row("x:1", {"text": 3}))


# --- chat -------------------------------------------------------------------------------------------------------------


def chat(format_of: Make, *messages: Any, **more: Any) -> Conversation:
    read: Conversation = format_of("chat", **more).read(Row("x:1", {"messages": list(messages)}))
    return read


def test_message_fields(format_of: Make) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    read = chat(
        format_of,
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "content": "", "name": "f", "tool_call_id": "c1"},
        {"role": "assistant", "content": "d", "train": False},
        {"role": "assistant", "content": "e", "weight": 1},
    )
    assert read.messages[0].content == "ab"
    assert read.messages[1].tool_calls[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert (read.messages[1].content, read.messages[1].reasoning) == ("", "Hm.")
    assert read.messages[2] == Message("tool", "", name="f", tool_call_id="c1")
    assert [message.train for message in read.messages[3:]] == [False, True]


def test_sharegpt(format_of: Make) -> None:
    row = Row(
        "x:1",
        {
            "system": "S",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "{}"},
                {"from": "gpt", "value": "b"},
            ],
            "tools": '[{"name": "f"}]',
        },
    )
    read = format_of("chat").read(row)
    assert [message.role for message in read.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert read.messages[2].tool_calls == ({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},)
    assert read.tools == ({"type": "function", "function": {"name": "f"}},)


def test_tables_fill_absent_keys_with_null(format_of: Make) -> None:
    full = {"role": "user", "content": "a", "tool_calls": None, "name": None, "train": None}
    assert chat(format_of, full).messages == (Message("user", "a"),)


def test_tables_that_hold_both_shapes(format_of: Make) -> None:
    """A table of rows of both shapes has the columns of both, filled with null."""
    full = {"role": None, "content": None, "from": "human", "value": "a", "mood": None}
    other = {"role": "assistant", "content": "b", "from": None, "value": None, "mood": None}
    assert chat(format_of, full, other).messages == (Message("user", "a"), Message("assistant", "b"))


def test_unused_keys_are_said_once(format_of: Make, context: FakeContext) -> None:
    reader = format_of("chat")
    for number in range(3):
        reader.read(Row(f"x:{number}", {"messages": [{"role": "user", "content": "a", "mood": "fine"}]}))
    assert context.notes == ["messages have the keys mood, which are not used"]


def test_roles_can_be_mapped(format_of: Make) -> None:
    read = chat(
        format_of,
        {"role": "human", "content": "a"},
        {"role": "gpt", "content": "b"},
        roles={"human": "user", "gpt": "assistant"},
    )
    assert [message.role for message in read.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user", "content": ""}, r"messages\[0\]\.content is empty"),
        (
            {"role": "assistant", "content": "a", "tool_calls": {}},
            r"messages\[0\]\.tool_calls is an object, not a list",
        ),
        ({"role": "assistant", "content": "a", "tool_calls": [{"function": {}}]}, r"tool_calls\[0\] names no function"),
        (
            {"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": "{"}]},
            r"tool_calls\[0\]\.arguments is a string but not JSON",
        ),
        (
            {"role": "user", "content": "a", "train": "yes"},
            r"messages\[0\]\.train is 'yes', accepted are true or false",
        ),
        ({"role": "user", "content": "a", "weight": 0.5}, r"messages\[0\]\.weight is 0\.5, accepted are 0 or 1"),
        (
            {"role": "user", "content": [{"type": "file", "file": {"file_id": "a"}}]},
            r"messages\[0\]\.content\[0\] is a part of type 'file'; only text, images, audio and video can be read",
        ),
        ({"rol": "user", "content": "a"}, r"messages\[0\]\.role is missing; did you mean 'rol'"),
    ],
)
def test_a_bad_message_is_named_with_its_path(format_of: Make, message: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=f"^x:1: .*{problem}"):
        chat(format_of, message)


# --- the broken files -------------------------------------------------------------------------------------------------


def problems(format_of: Make, rows: Iterator[Row], name: str = "chat") -> dict[int, str]:
    """What is said of each line."""
    reader = format_of(name)
    said = {}
    for number, row in enumerate(rows, start=1):
        try:
            reader.read(row)
        except DataError as error:
            assert error.where == row.id
            said[number] = str(error)
    return said


def test_null_content(format_of: Make, rows_of: Rows) -> None:
    said = problems(format_of, rows_of("bad/null_content.jsonl"))
    assert set(said) == {2, 3}
    assert "messages[0].content is null" in said[2]
    assert "messages[1].content is null" in said[3]


def test_wrong_roles(format_of: Make, rows_of: Rows) -> None:
    said = problems(format_of, rows_of("bad/wrong_roles.jsonl"))
    assert set(said) == {2, 3, 4}
    assert "messages[0].role is 'human', accepted are system, user, assistant, tool" in said[2]
    assert "set data.format: {name: chat, roles: {gpt: assistant, human: user}}" in said[2]
    assert "roles: {User: user, 'assistant ': assistant}" in said[3]
    assert "messages[0].role is 'User'" in said[3] and "messages[1].role is 'assistant '" in said[3]
    assert "messages[0].role is ''" in said[4] and "messages[1].role is a number, not text" in said[4]


def test_messages_as_string(format_of: Make, rows_of: Rows, context: FakeContext) -> None:
    assert problems(format_of, rows_of("bad/messages_as_string.jsonl")) == {}
    assert len(context.notes) == 1 and "messages_as_string.jsonl:2" in context.notes[0]


def test_tools_as_string(format_of: Make, rows_of: Rows) -> None:
    rows = list(rows_of("bad/tools_as_string.jsonl"))
    reader = format_of("chat")
    assert reader.read(rows[0]).tools == reader.read(rows[1]).tools != ()
    with pytest.raises(DataError, match=r"tools_as_string\.jsonl:3: tools is a string but not JSON"):
        reader.read(rows[2])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"b", r"\.x\[1\] is bytes, which JSON cannot express"),
        (datetime.date(2026, 11, 21), r"\.x\[1\] is date, which JSON cannot express"),
        (math.nan, r"\.x\[1\] is nan, which JSON cannot express"),
        ({3: 1}, r"\.x\[1\] has the key 3, which is a number, not text"),
    ],
)
def test_tools_and_calls_that_json_cannot_say(format_of: Make, value: Any, problem: str) -> None:
    """Tables have such values; renderers write JSON."""
    reader = format_of("chat")
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    call = {"name": "f", "arguments": {"x": [{"y": None, "z": True, "": [1.5]}, value]}}
    with pytest.raises(DataError, match=rf"^x:1: tools\[0\]\.arguments{problem}"):
        reader.read(Row("x:1", {"messages": [asked, said], "tools": [call]}))
    with pytest.raises(DataError, match=rf"^x:1: messages\[1\]\.tool_calls\[0\]\.arguments{problem}"):
        reader.read(Row("x:1", {"messages": [asked, {**said, "tool_calls": [call]}]}))


def test_nested_wrong_types(format_of: Make, rows_of: Rows) -> None:
    objects = (row for row in rows_of("bad/nested_wrong_types.jsonl") if isinstance(row.values, dict))
    said = problems(format_of, objects)
    assert set(said) == {2, 3, 4}
    assert "messages is an object, not a list" in said[2]
    assert "messages[0] is a list, not an object; messages[1] is a list" in said[3]
    assert "messages[0].content is a number, not text; messages[1].content is an object" in said[4]


def test_missing_fields(format_of: Make, rows_of: Rows) -> None:
    said = problems(format_of, rows_of("bad/missing_fields.jsonl"))
    assert set(said) == {2, 3, 4, 5}
    assert "no column 'messages'; the row has 'message'; is 'message' meant?" in said[2]
    assert "messages[0].role is missing; messages[1].content is missing" in said[3]
    assert "the row has 'prompt'" in said[4]
    assert "the row is empty" in said[5]
    paired = problems(format_of, rows_of("bad/missing_fields.jsonl"), "prompt_completion")
    assert "'prompt' without 'completion'" in paired[4]


def test_mixed_schema(format_of: Make, rows_of: Rows) -> None:
    said = problems(format_of, rows_of("bad/mixed_schema.jsonl"))
    assert set(said) == {2, 3, 4}
    assert "it looks like prompt_completion (prompt, completion), not like chat" in said[2]
    assert "it looks like text (text)" in said[3]
    assert "it looks like preference (chosen, rejected)" in said[4]


def test_image_paths_are_refused_where_rows_have_no_folder(format_of: Make, rows_of: Rows) -> None:
    for file in ("bad/path_traversal_images.jsonl", "bad/broken_images.jsonl"):
        rows = list(rows_of(file))
        said = problems(format_of, iter(rows))
        assert len(said) == len(rows)
        reasons = ("leaves the data folder", "is an absolute path", "is a URL", "the rows' source has no folder")
        assert all(any(reason in problem for reason in reasons) for problem in said.values())


def test_ends_with_user_is_a_row_like_any_other(format_of: Make, rows_of: Rows) -> None:
    """What trains nothing is the method's to judge."""
    assert problems(format_of, rows_of("bad/ends_with_user.jsonl")) == {}


# --- parts of a content, each with a flag of its own ------------------------------------------------------------------


def part(text: str, key: str = "text", **flags: Any) -> dict[str, Any]:
    return {"type": "text", key: text, **flags}


def test_parts_are_joined_and_their_flags_become_ranges(format_of: Make) -> None:
    parts = [
        part("think", train=False),
        part(" then", "value"),
        part(" answer", "content", weight=1),
        part("", train=True),
    ]
    message = chat(format_of, {"role": "user", "content": "a"}, {"role": "assistant", "content": parts}).messages[1]
    assert message.content == "think then answer"
    assert message.weights == (Weighted(0, 5, 0.0), Weighted(10, 17, 1.0))


def test_reasoning_has_parts_of_its_own(format_of: Make) -> None:
    message = chat(
        format_of,
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": [part("x", train=False), part("y")]},
    ).messages[1]
    assert (message.reasoning, message.reasoning_weights, message.weights) == ("xy", (Weighted(0, 1, 0.0),), ())


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([part("a", train="yes")], r"messages\[1\]\.content\[0\]\.train is 'yes', accepted are true or false"),
        ([part("a", weight=2)], r"messages\[1\]\.content\[0\]\.weight is 2, accepted are 0 or 1"),
        ([{"type": "text"}], r"messages\[1\]\.content\[0\] is a part of type 'text'"),
        ([part("")], r"messages\[1\]\.content is empty"),
        ([], r"messages\[1\]\.content is empty"),
    ],
)
def test_a_bad_part_is_named_with_its_path(format_of: Make, parts: list[Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        chat(format_of, {"role": "user", "content": "a"}, {"role": "assistant", "content": parts})


def test_segments(format_of: Make) -> None:
    format_ = format_of("segments")
    pieces = [{"text": "<s>a ", "label": False}, {"text": "b</s>", "train": True}]
    assert format_.read(Row("1", {"segments": pieces})) == Segments((("<s>a ", False), ("b</s>", True)))
    for pieces, problem in (
        ([{"text": "a"}], r"segments\[0\]\.label is missing"),
        ([{"text": "a", "label": 1}], r"segments\[0\]\.label is a number, not true or false"),
        ([{"label": True}, "b"], r"segments\[0\]\.text is missing; segments\[1\] is text, not an object"),
        ([], "segments is empty"),
        ("a", "segments is text, not a list of pieces"),
    ):
        with pytest.raises(DataError, match=problem):
            format_.read(Row("1", {"segments": pieces}))
