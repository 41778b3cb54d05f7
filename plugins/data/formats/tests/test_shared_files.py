"""Every data file at hand, read by the format that its first row shows, or by the one that is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, Row
from finetooth_hooks.data.examples import LeftOut
from finetooth_kit import FakeContext, entries_of

Make = Callable[..., Any]
Rows = Callable[[str], Iterator[Row]]

EQUAL = {"prompt": "gold", "completion": "answer", "label": "equal"}
FILES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    # file: format by detection, what the rows give, options (with a name: the format that is named)
    "sft/alpaca_1k.jsonl": ("instruction", {"Conversation": 1175}, {}),
    "sft/chat_multiturn.jsonl": ("chat", {"Conversation": 452}, {}),
    "sft/gsm8k_train.jsonl": ("prompt_completion", {"Conversation": 7473}, {}),
    "sft/gsm8k_test.jsonl": ("prompt_completion", {"Conversation": 1000}, {}),
    "sft/sharegpt_toolcall.json": ("chat", {"Conversation": 250}, {}),
    "sft/tools.jsonl": ("chat", {"Conversation": 900}, {}),
    "sft/tools_multiturn_ccbysa.jsonl": ("chat", {"Conversation": 180}, {}),
    "process/stepwise_1k.jsonl": ("stepwise", {"Stepwise": 1075}, {}),
    "process/bigbench_mistake_800.jsonl": ("stepwise", {"Stepwise": 800}, {}),
    "process/mr_gsm8k_errors.jsonl": ("stepwise", {"Stepwise": 275}, {}),
    "process/prm800k_shape_own.jsonl": ("stepwise", {"Stepwise": 5, "no step has a rating": 2}, {}),
    "preference/polite_pref.jsonl": ("preference", {"Pair": 794}, {}),
    "preference/oasst_ranked.jsonl": ("preference", {"Pair": 597}, {}),
    "preference/hh_harmless_1500.jsonl": ("preference", {"Pair": 1496, "chosen is empty": 4}, {}),
    "preference/hh_harmless_test_300.jsonl": ("preference", {"Pair": 300}, {}),
    "multi/oasst_rank_labels.jsonl": ("labelled", {"Labelled": 344}, {}),
    "rl/gsm8k_prompts_500.jsonl": ("task", {"Task": 500}, {}),
    "rl/humaneval.jsonl": ("task", {"Task": 140}, {}),
    "rl/aqua_254.jsonl": ("", {"Task": 254}, {"name": "task", "prompt": "question"}),
    "rl/math_equal_own.jsonl": ("", {"Labelled": 59, "answer is empty": 1}, {"name": "labelled", **EQUAL}),
}  # fmt: skip
FOLDERS = ("sft", "process", "preference", "multi", "rl")


@pytest.fixture
def read_file(shared: Path, rows_of: Rows) -> Callable[[str], list[Row]]:
    def read(name: str) -> list[Row]:
        if name.endswith(".jsonl"):
            return list(rows_of(name))
        rows = json.loads((shared / name).read_text(encoding="utf-8"))
        return [Row(f"{name}:{i}", row) for i, row in enumerate(rows)]

    return read


def test_no_file_is_forgotten(shared: Path) -> None:
    found = {path.relative_to(shared).as_posix() for name in FOLDERS for path in (shared / name).iterdir()}
    assert found == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_what_a_file_gives(
    context: FakeContext, format_of: Make, read_file: Callable[[str], list[Row]], file: str
) -> None:
    format_, wanted, options = FILES[file]
    rows = read_file(file)
    ranked = sorted(entries_of("finetooth_formats.plugin"), key=lambda entry: entry.rank)
    detected = [[e.name for e in ranked if context.build("format", e.name).detect(row.values)][:1] for row in rows[:20]]
    assert detected == [[format_] if format_ else []] * len(detected)
    reader = context.build("format", options or format_)
    found: Counter[str] = Counter()
    for row in rows:
        try:
            read = reader.read(row)
            found[read.reason if isinstance(read, LeftOut) else type(read).__name__] += 1
        except DataError as error:
            assert row.id in str(error)
            found[next((name for name in wanted if name in str(error)), str(error))] += 1
    assert dict(found) == wanted


def test_tool_calls_of_sharegpt_are_those_of_the_file(format_of: Make, read_file: Callable[[str], list[Row]]) -> None:
    """Against the raw values: who speaks, what is called with what, which tools there are."""
    calls = 0
    for row in read_file("sft/sharegpt_toolcall.json"):
        found = format_of("chat").read(row)
        tools = row.values["tools"]
        # they stand there bare, and models know them inside of a level `function`
        given = json.loads(tools) if tools else []
        assert [dict(tool) for tool in found.tools] == [{"type": "function", "function": tool} for tool in given]
        for message, turn in zip(found.messages, row.values["conversations"], strict=True):
            if turn["from"] == "function_call":
                wanted, (call,) = json.loads(turn["value"]), message.tool_calls
                assert (call["function"]["name"], call["function"]["arguments"]) == (
                    wanted["name"],
                    wanted["arguments"],
                )
                calls += 1
            else:
                assert message.content == turn["value"] and not message.tool_calls
    assert calls > 100
