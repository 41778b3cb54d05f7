"""Rows as ms-swift's guide to custom datasets lays them out are read like the rows that say the same here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_formats.columns import shape
from finetooth_formats.plugin import FORMATS
from finetooth_hooks import Row
from finetooth_kit import FakeContext

ASK, YES, NO = "2+2?", "4", "5"
BEFORE = [["1+1?", "2"], ["2+1?", "3"]]
TURNS = [{"role": r, "content": c} for pair in BEFORE for r, c in zip(("user", "assistant"), pair, strict=True)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("theirs", "format_", "ours"),
    [
        ({"query": ASK, "response": YES}, "prompt_completion", {"prompt": ASK, "completion": YES}),
        (
            {"system": "Add.", "query": ASK, "response": YES, "history": BEFORE},
            "prompt_completion",
            {"system": "Add.", "prompt": ASK, "completion": YES, "history": BEFORE},
        ),
        (
            {"query": ASK, "response": YES, "rejected_response": NO, "history": None},
            "preference",
            {"prompt": ASK, "chosen": YES, "rejected": NO},
        ),
        (
            {"system": "Add.", "query": ASK, "response": YES, "rejected_response": NO, "history": BEFORE},
            "preference",
            {"system": "Add.", "prompt": [*TURNS, user(ASK)], "chosen": YES, "rejected": NO},
        ),
        (
            {"messages": [*TURNS, user(ASK), assistant(YES)], "rejected_response": NO},
            "preference",
            {"prompt": [*TURNS, user(ASK)], "chosen": [assistant(YES)], "rejected": NO},
        ),
    ],
)
def test_rows_of_ms_swift(
    theirs: dict[str, Any], format_: str, ours: dict[str, Any], context: FakeContext, format_of: Callable[..., Any]
) -> None:
    ranked = sorted(FORMATS, key=lambda entry: entry.rank)
    detected = [entry.name for entry in ranked if context.build("format", entry.name).detect(theirs)]
    assert detected[:1] == [format_]
    assert shape(theirs).startswith(format_)
    reader = format_of(format_)
    assert reader.read(Row("theirs", theirs)) == reader.read(Row("ours", ours))
