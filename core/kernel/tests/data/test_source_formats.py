"""Sources of several formats in one list, rows that give several examples or none, and columns that nothing reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.planning.context import RunContext
from finetooth_core.settings.claims import unread
from finetooth_hooks import DataError, Rendered, Row
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_rows.columns import WatchedColumns
from finetooth_rows.storage.cache import DataCache

PLUGIN = '''
import json
from pathlib import Path

from finetooth_hooks import DataError, Options, Row, Source, SourceBase, Text, hookimpl, row_format
from finetooth_hooks.data.examples import LeftOut


class JsonOptions(Options):
    path: str
    """The file."""


class Json(SourceBase):
    def __init__(self, path):
        self.path = Path(path)

    def files(self):
        return (self.path,)

    def rows(self):
        for number, line in enumerate(self.path.read_text().splitlines(), start=1):
            yield Row(f"{self.path.name}:{number}", json.loads(line))


@hookimpl
def ft_sources():
    yield Source(name="toy_json", build=f"{__name__}:build_json")


def build_json(options: JsonOptions, context):
    return Json(options.path)


@row_format("ask", rank=-2)
def asks(values):
    return Text("asks " + values["ask"])


@row_format("words", rank=-1)
def words(values):
    if values["words"] == "?":
        raise DataError("words", "a question", action="rewrite it")
    if not values.get("loud"):
        return [Text(word) if word != "-" else LeftOut("a dash") for word in values["words"].split()]
    return Text(values["words"].upper())


@row_format(name="shout")
def shout(values):
    return Text("SHOUTS " + " ".join(map(str, values.values())))
'''

ASKS = [{"ask": "one?", "id": 1}, {"ask": "two?", "id": 2, "note": None}]
WORDS = [
    {"words": "aa bb", "author": "x"},
    {"words": "- cc -"},
    {"words": "-"},
    {"words": "dd", "loud": True},
    {"words": "-"},
]
Make = Callable[..., RunContext]


def item(name: str, **more: Any) -> dict[str, Any]:
    return {"name": "toy_json", "path": name, **more}


@pytest.fixture
def context_over(folder: Path, context_of: Make) -> Make:
    (folder / "formats_plugin.py").write_text(PLUGIN)
    plugins = [str(folder / "preparation_plugin.py"), str(folder / "formats_plugin.py")]

    def make(files: Mapping[str, Sequence[Mapping[str, Any]]], **data: Any) -> RunContext:
        for name, rows in files.items():
            (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return context_of(data={"train": [item(name) for name in files], **data}, plugins=plugins)

    return make


@pytest.fixture
def prepared(context_over: Make, rendering_of: Callable[..., Rendering]) -> Callable[..., Any]:
    def run(*args: Any, **given: Any) -> tuple[Preparation, RunContext]:
        context = context_over(*args, **given)
        return context.prepare("train", rendering_of(context), Limit(100, "drop")), context

    return run


FILES = {"a.jsonl": ASKS, "b.jsonl": WORDS}


def texts(preparation: Preparation) -> dict[str, str]:
    return {datum.id: bytes([int(datum.tokens[0]), *map(int, datum.targets)]).decode() for datum in preparation.data}


EXPECTED = {
    "a.jsonl:1": "asks one?", "a.jsonl:2": "asks two?", "b.jsonl:1#1": "aa", "b.jsonl:1#2": "bb", "b.jsonl:2#2": "cc",
    "b.jsonl:4": "DD",
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_each_source_has_the_format_of_its_rows(prepared: Callable[..., Any], workers: int) -> None:
    preparation, context = prepared(FILES, workers=workers, cache="off")
    assert texts(preparation) == EXPECTED
    said = {name: (one.value, one.reason) for name, one in context.decisions.items() if name.endswith("format")}
    assert {name: (value.split(":")[-1], why) for name, (value, why) in said.items()} == {
        "data.train.0.format": ("asks", "row a.jsonl:1 has the column 'ask'"),
        "data.train.1.format": ("words", "row b.jsonl:1 has the column 'words'"),
    }
    report = preparation.report
    assert (report.rows, report.examples, report.used) == (7, 10, 6)
    assert report.dropped == {"a dash": 4} and report.dropped_ids == {
        "a dash": ("b.jsonl:2#1", "b.jsonl:2#3", "b.jsonl:3", "b.jsonl:5")
    }
    assert report.notes == ("7 rows gave 10 examples", "columns not read: id of data.train.0; author of data.train.1")


def test_the_report_is_the_same_from_the_cache(prepared: Callable[..., Any]) -> None:
    first, _ = prepared(FILES)
    second, context = prepared(FILES)
    assert "from the cache" in context.decisions["data.cache.train"].reason
    assert second.report == first.report and first.report.notes


def test_a_source_names_its_own_format_and_the_key_knows(prepared: Callable[..., Any]) -> None:
    prepared(FILES)
    own = [item("a.jsonl", format="shout"), item("b.jsonl")]
    preparation, context = prepared(FILES, train=own)
    assert texts(preparation) == {**EXPECTED, "a.jsonl:1": "SHOUTS one? 1", "a.jsonl:2": "SHOUTS two? 2 None"}
    assert context.decisions["data.train.0.format"].reason == "the recipe says so"
    assert len(DataCache().entries()) == 2
    general, context = prepared(FILES, train=[item("a.jsonl", format="auto"), item("b.jsonl")], format="shout")
    assert texts(general)["a.jsonl:1"] == "asks one?" and texts(general)["b.jsonl:4"] == "SHOUTS dd True"
    assert context.decisions["data.format"].reason == "the recipe says so"


def test_a_row_that_no_format_knows_is_named_for_its_source(prepared: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1.*: words is missing"):
        prepared({"a.jsonl": ASKS}, train=[item("a.jsonl", format="words")])
    with pytest.raises(DataError, match=r"b\.jsonl: the source has no rows|data\.train\.1.*no rows"):
        prepared({"a.jsonl": ASKS, "b.jsonl": []})


def test_the_first_rows_and_their_examples(context_over: Make) -> None:
    context = context_over({"b.jsonl": WORDS})
    rows = context.examples("train", first=1).rows
    assert [id_ for id_, _ in rows] == ["b.jsonl:1#1", "b.jsonl:1#2"]
    whole = context.examples("train").rows
    assert [id_ for id_, _ in whole[:3]] == ["b.jsonl:1#1", "b.jsonl:1#2", "b.jsonl:2#2"] and len(whole) == 4


def test_repeated_rows_are_told_by_all_their_examples(prepared: Callable[..., Any]) -> None:
    rows = [{"words": "aa bb"}, {"words": "aa"}, {"words": "aa bb", "author": "y"}, {"words": "-"}, {"words": "-"}]
    preparation, _ = prepared({"b.jsonl": rows}, deduplicate="exact")
    assert list(texts(preparation)) == ["b.jsonl:1#1", "b.jsonl:1#2", "b.jsonl:2"]
    assert preparation.report.dropped == {"a dash": 2, "the same as an earlier row": 1}


def test_examples_taken_twice_keep_their_numbers(prepared: Callable[..., Any]) -> None:
    preparation, _ = prepared({"b.jsonl": WORDS[:1]}, train=[item("b.jsonl", weight=2)])
    assert list(texts(preparation)) == ["b.jsonl:1#1", "b.jsonl:1#2", "b.jsonl:1#1~2", "b.jsonl:1#2~2"]


def test_a_stream_gives_refusals_in_their_place(context_over: Make, rendering_of: Callable[..., Rendering]) -> None:
    """Rows passed over are counted with those that cannot be used, so that a cursor stays exact."""
    rows = [{"words": "aa - bad"}, {"words": "?"}, {"words": "bb"}, {"ask": "x", "words": None}, {"words": "cc"}]
    context = context_over({"b.jsonl": rows})
    found = list(context.stream("train", rendering_of(context)))
    assert [id_ for id_, _ in found] == [
        "b.jsonl:1#1", "b.jsonl:1#2", "b.jsonl:1#3", "b.jsonl:2", "b.jsonl:3", "b.jsonl:4", "b.jsonl:5"
    ]  # fmt: skip
    assert [isinstance(one, Rendered) for _, one in found] == [True, False, False, False, True, False, True]
    assert [str(one).partition(" (")[0] for _, one in found if isinstance(one, DataError)] == [
        "b.jsonl:1#2: a dash",
        "b.jsonl:1#3: content: cannot say bad",
        "b.jsonl:2: words: a question",
        "b.jsonl:4: words is missing or null",
    ]
    for skip in range(len(found) + 1):
        assert [id_ for id_, _ in context.stream("train", rendering_of(context), skip=skip)] == [
            id_ for id_, _ in found[skip:]
        ]


@pytest.mark.parametrize(
    ("look", "read"),
    [
        (lambda values: values["a"], {"a"}),
        (lambda values: values.get("a"), {"a"}),
        (lambda values: "a" in values, set()),
        (lambda values: {**values}, {"a", "b"}),
        (lambda values: dict(values), {"a", "b"}),
        (lambda values: json.dumps(values), {"a", "b"}),
        (lambda values: values | {"c": 1}, {"a", "b"}),
        (lambda values: list(values.items()), {"a", "b"}),
        (lambda values: [*values], {"a", "b"}),
    ],
)
def test_what_counts_as_looking_a_column_up(look: Callable[[Any], Any], read: set[str]) -> None:
    values = WatchedColumns({"a": 1, "b": 2})
    assert look(values) == look({"a": 1, "b": 2}) and values.read == read


def test_a_broken_first_row_does_not_decide_the_format(context_over: Make) -> None:
    rows = [{"ask": "one?"}, *({"words": "b", "loud": True} for _ in range(4))]
    context = context_over({"b.jsonl": rows})
    with pytest.raises(DataError, match=r"b\.jsonl:1: words is missing"):
        context.examples("train")
    said = context.decisions["data.train.0.format"]
    assert said.value.endswith(":words")
    assert said.reason == "row b.jsonl:2 has the column 'words'"
    (note,) = context.notes
    assert note == "row b.jsonl:1 looks like asks, and 2 of the first 3 like words: all are read as words"


def test_a_row_without_columns_is_said_to_have_none() -> None:
    assert "knows a row with the columns (none) (set data.format" in str(unread((), Row("a.jsonl:1", {}), None))  # type: ignore[arg-type]
