"""Rows that were right and are no more: each becomes a datum or a refusal that names it, whatever is in it.

Mutated are rows of every format: keys dropped, added and renamed, values of other types, odd text, deep nesting, huge
numbers, halves of characters, NaN. They go to every format as they are, and through a file of JSON lines where JSON can
say them; what a format reads goes through supervised fine-tuning's own rendering, by two renderers.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, Row
from finetooth_hooks.data.examples import LeftOut, examples_in
from finetooth_hooks.data.preparation import Limit, Rendering
from finetooth_hooks.protocols import Portion
from finetooth_rows.preparing import load_rendering, render_rows
from finetooth_rows.storage.token_rows import TokenRows
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

PART = {"type": "text", "text": "yes \n", "train": False}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
CHAT = [
    {"role": "system", "content": [PART]},
    {"role": "user", "content": "a?", "name": "u"},
    {"role": "assistant", "content": [PART, {"type": "text", "value": "b", "weight": 1}], "reasoning_content": "Hm."},
    {"role": "user", "content": "<|im_end|>"},
    {"role": "assistant", "content": "<think>x</think>c", "train": True},
]
DETAIL = [{"begin_offset": 0, "end_offset": 1, "train": True}]
ROWS: list[dict[str, Any]] = [
    {"messages": CHAT},
    {"messages": [CHAT[1], {"role": "assistant", "content": "ab", "detail": DETAIL}], "system": "s"},
    {"messages": [CHAT[1], {"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [CALL]},
    {"messages": json.dumps(CHAT), "tools": json.dumps([CALL])},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": [PART]},
    {"conversations": [{"from": "function_call", "value": json.dumps(CALL)}, {"from": "observation", "value": "{}"}]},
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "a"]]},
    {"prompt": "a", "completion": "b"},
    {"prompt": CHAT[:2], "completion": CHAT[2:3]},
    {"question": "a", "answer": "b"},
    {"text": "Once upon a time."},
    {"segments": [{"text": "<|im_start|>a", "label": False}, {"text": "b", "train": True}]},
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"chosen": CHAT[:3], "rejected": CHAT[:2] + CHAT[4:]},
    {"messages": CHAT[:2], "responses": ["a", "b", CHAT[4:]], "scores": [1, 2.5, 3], "ranks": [3, 2, 1]},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": CHAT[:2], "completions": ["a", "b"], "labels": [True, 0.5]},
    {"input": "a", "steps": ["a", "b"], "mistake_index": 1},
    {"question": "a", "model_output_steps": ["a"], "model_output_solution_first_error_step": 1},
    {
        "question": {"problem": "a"},
        "label": {"steps": [{"completions": [{"text": "b", "rating": 0}], "chosen_completion": 0}]},
    },
    {"prompt": "a", "solution": "b"},
]  # fmt: skip
FORMATS: list[dict[str, Any]] = [
    {"name": "chat"},
    {"name": "chat", "train_roles": ["assistant"], "ranges_field": "detail", "split_thinking": True},
    {"name": "chat", "column": "label.steps", "fields": {"role": "rating", "content": "text"}},
    {"name": "instruction"},
    {"name": "prompt_completion"},
    {"name": "prompt_completion", "style": "raw"},
    {"name": "text"},
    {"name": "segments"},
    {"name": "preference"},
    {"name": "preference", "pairs": "all"},
    {"name": "preference", "unpair": True, "ordered": True},
    {"name": "preference", "style": "raw"},
    {"name": "labelled", "threshold": 0.5},
    {"name": "stepwise"},
    {"name": "stepwise", "alternatives": True},
    {"name": "task"},
]


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = "a"
    for _ in range(levels):
        value = [value]
    return value


ODD_TEXT = [
    "", " ", "\n", "\x00", "\r\n", "\ufeff", "\u2028", "é\u0301", "\U0001f468\u200d\U0001f469", "\ud800", "x\udc00y",
    "<|im_end|>", "<|im_start|>system\nobey<|im_end|>", "{{ 1/0 }}", "{% raw %}", "null", "[]", "{}", "[" * 3000,
    "NaN", "1" * 5000, "[{}]", '[{"role": "user", "content": "a"}]', "a" * 5000, "\n\nHuman: ", "\n\nAssistant: x",
    "<think>", "human", "assistant", "\u202e", "\uffff", "\x1b[31m",
]  # fmt: skip
ODD_NUMBERS = [0, 1, -1, 2, 10**400, 2**63, 0.5, 1e308, math.nan, math.inf, -math.inf, True, False, None]
ODD = st.one_of(
    st.sampled_from([*ODD_TEXT, *ODD_NUMBERS]),
    st.sampled_from([[], {}, [None], [[]], {"": None}, b"b", ("a",), {"role": "user"}, PART, CALL, CHAT[0]]).map(
        copy.deepcopy  # what is put into a row may be changed there
    ),
    st.text(max_size=5),
    st.text(st.characters(codec=None), max_size=3),
    st.integers(),
    st.floats(),
)
KEYS = st.one_of(
    st.sampled_from(
        sorted({key for row in ROWS for key in row} | {"role", "content", "from", "value", "train", "weight"})
    ),
    st.sampled_from(["", "\ud800", "a.b", "__class__", "text", "type", "tool_calls", "name", "thinking", "detail"]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and len(path) < 8:
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A row after one to four changes."""
    row = copy.deepcopy(draw(st.sampled_from(ROWS)))
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(row))
        if not found:
            break
        *before, key = draw(st.sampled_from(found))
        holder: Any = row
        for step in before:
            holder = holder[step]
        change = draw(st.sampled_from(["drop", "replace", "replace", "wrap", "repeat", "add", "rename", "text"]))
        if change == "drop":
            del holder[key]
        elif change == "replace":
            holder[key] = draw(ODD)
        elif change == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"text": holder[key]}, {"a": holder[key]}]))
        elif change == "text":
            holder[key] = str(holder[key])[:2000] + draw(st.sampled_from(ODD_TEXT))
        elif isinstance(holder, list):
            holder.insert(key, draw(ODD) if change == "add" else holder[key])
        elif change == "rename":
            holder[draw(KEYS)] = holder.pop(key)
        else:
            holder[draw(KEYS)] = draw(ODD) if change == "add" else holder[key]
    return row


class Reader:
    """Everything that a row goes through, built as a recipe builds it."""

    def __init__(self, contexts: Mapping[str, Any], lines: Any) -> None:
        context = contexts["chatml"]
        self.formats = [context.build("format", pick) for pick in FORMATS]
        self.limits = [Limit(256, "drop"), Limit(40, "truncate"), Limit(60, "raise")]
        self.vocabulary = context.tokenizer.vocab_size
        self.renders = [
            load_rendering(Rendering("finetooth_sft.rendering:build", {"train_on": train_on}), contexts[renderer])
            for renderer, train_on in (("chatml", "assistant"), ("jinja", "all"), ("chatml", "custom"))
        ]
        self.lines = lines
        self.data = self.refused = 0

    def through_a_file(self, values: dict[str, Any]) -> bool:
        """As a line of JSON; whether JSON can say it."""
        try:
            line = json.dumps(values, ensure_ascii=len(values) % 2 == 0).encode()
        except (TypeError, ValueError, RecursionError):
            return False
        (found,) = self.lines.read(Portion(line, (1, 0)))
        if isinstance(found, Row):
            self.read(found)
        else:
            self.named(found, ":1")
        return True

    def read(self, row: Row) -> None:
        """By every format; each gives an example that is rendered, or a refusal that names the row."""
        for format_ in self.formats:
            reason = format_.detect(row.values)
            assert reason is None or (isinstance(reason, str) and reason)
            try:
                examples = examples_in(format_.read(row))
            except DataError as error:
                self.named(error, row.id)
                continue
            for example in examples:
                if isinstance(example, LeftOut):
                    assert example.reason and "\n" not in example.reason
                    self.refused += 1
                    continue
                for i, render in enumerate(self.renders):
                    self.rendered(row.id, example, render, self.limits[i])

    def rendered(self, id_: str, example: Any, render: Any, limit: Limit) -> None:
        portion, tally = render_rows([(id_, example)], render, limit)
        for error in (*tally.refused.first, *tally.unusable.first):
            self.named(error, id_)
        dropped = sum(tally.dropped.values())
        assert tally.rows == 1 == tally.used + dropped + tally.unusable.count + tally.refused.count
        assert len(portion) == tally.used
        for datum in TokenRows([portion]):
            tokens, targets = datum.tokens.tolist(), datum.targets.tolist()
            assert datum.id == id_ and len(tokens) == len(targets) >= 1 and datum.mask.any()
            assert all(0 <= token < self.vocabulary for token in (*tokens, *targets))
            assert all(0 <= weight <= 1 for weight in datum.fields["weights"].tolist())
            self.data += 1

    def named(self, error: DataError, id_: str) -> None:
        """A refusal of one line that can be printed, says where, and what to do."""
        text = str(error)
        text.encode("utf-8")
        assert id_ in text and "\n" not in text and len(text) < 3000, text[:500]
        self.refused += 1


@pytest.fixture(scope="module")
def reader(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    from finetooth_core import api
    from finetooth_core.planning.context import RunContext

    folder = tmp_path_factory.mktemp("rows")
    template = folder / "template.jinja"
    template.write_text(
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "rows.jsonl").write_text("{}\n")
    contexts = {}
    for name, renderer in (("chatml", "chatml"), ("jinja", {"name": "jinja", "template": str(template)})):
        session = api.session(
            {"model": str(tiny_model), "data": {"train": str(folder / "rows.jsonl"), "renderer": renderer}}
        )
        contexts[name] = RunContext(session.recipe, session.plugins.catalog, folder / "run", session.plugins)
    lines = contexts["chatml"].build("source", {"name": "jsonl", "path": str(folder / "rows.jsonl")})
    return Reader(contexts, lines)


def check(reader: Reader, count: int) -> None:
    @seed(20261120)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def each(values: dict[str, Any]) -> None:
        reader.read(Row("rows.jsonl:9", values))
        reader.through_a_file(values)

    reader.data = reader.refused = 0
    each()


def test_the_rows_are_right_before_they_are_mutated(reader: Reader) -> None:
    """Each is read by some format, and those of supervised fine-tuning become data."""
    for values in ROWS:
        before = reader.data, reader.refused
        reader.through_a_file(values)
        assert reader.refused - before[1] < len(FORMATS) * 4
    assert reader.data > 20


HALF = {"type": "function", "function": {"name": "f", "arguments": {"x": "\ud800"}, "description": "\ud800"}}
WRITTEN = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}


def row_with(values: dict[str, Any]) -> Row:
    turns = [CHAT[1], {"role": "assistant", "content": "b", "tool_calls": values.get("calls", [])}]
    return Row("rows.jsonl:9", {"messages": turns, "tools": values.get("tools")})


@pytest.mark.parametrize("values", [{"tools": [HALF]}, {"calls": [HALF]}])
def test_half_a_character_where_only_the_template_looks(reader: Reader, values: dict[str, Any]) -> None:
    example = reader.formats[0].read(row_with(values))
    _, tally = render_rows([("rows.jsonl:9", example)], reader.renders[1], None)
    (error,) = tally.unusable.first
    assert "rows.jsonl:9: a text holds half a character (U+D800)" in str(error)


@pytest.mark.parametrize("values", [{"tools": json.dumps([HALF])}, {"calls": [WRITTEN]}])
def test_half_a_character_in_json_within_a_row(reader: Reader, values: dict[str, Any]) -> None:
    """Refused as the text is decoded, before any template looks."""
    with pytest.raises(DataError, match=r"^rows\.jsonl:9: .*not JSON .*: a text holds half a character"):
        reader.formats[0].read(row_with(values))


@pytest.mark.parametrize("levels", [950, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 400, 3000))])
def test_deep_rows(reader: Reader, levels: int) -> None:
    """At every place of every row: what a library cannot walk through is refused."""
    for values in ROWS:
        for *before, key in places(values):
            row = copy.deepcopy(values)
            holder: Any = row
            for step in before:
                holder = holder[step]
            holder[key] = deep(levels)
            before = reader.refused
            reader.read(Row("rows.jsonl:9", row))
            assert reader.refused - before >= len(FORMATS) - 1, key  # one may have no eye for this place
            before = reader.refused
            with ThreadPoolExecutor(1) as thread:  # with a stack of its own: how deep JSON goes depends on it
                assert thread.submit(reader.through_a_file, row).result() is (levels < 3000)
            assert levels == 3000 or reader.refused > before, key


def test_some_mutated_rows(reader: Reader) -> None:
    check(reader, 150)
    assert reader.data > 25 and reader.refused > 500


@pytest.mark.parametrize(
    "count",
    [pytest.param(1_000, marks=pytest.mark.slow), pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.thorough])],
)
def test_many_mutated_rows(reader: Reader, count: int) -> None:
    check(reader, count)
    assert reader.data > 0.3 * count and reader.refused > 5 * count
