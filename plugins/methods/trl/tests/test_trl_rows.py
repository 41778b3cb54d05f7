"""Examples become rows with TRL's columns; what would not reach a trainer is refused."""

from __future__ import annotations

import pytest
from finetooth_hooks.data.examples import Conversation, Labelled, Message, Pair, PromptCompletion, Segments, Task
from finetooth_hooks.errors import DataError
from finetooth_trl.rows import columns_of

ASKED, SAID = Message("user", "2+2?"), Message("assistant", "4", reasoning="2 and 2")


def test_columns_are_those_of_trl() -> None:
    """The dataset types of TRL's documentation: messages, prompt and completion, preference, unpaired, prompt only."""
    asked = [{"role": "user", "content": "2+2?"}]
    said = [{"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    for example, row in (
        (Conversation((ASKED, SAID)), {"messages": asked + said}),
        (Conversation((Message("user", "2+2?", train=False), SAID)), {"prompt": asked, "completion": said}),
        (PromptCompletion("a", "b"), {"prompt": "a", "completion": "b"}),
        (Pair((ASKED,), (SAID,), "5"), {"prompt": asked, "chosen": said, "rejected": "5"}),
        (Labelled("a", "b", True), {"prompt": "a", "completion": "b", "label": True}),
        (Task((ASKED,), {"answer": "4"}), {"prompt": asked, "answer": "4"}),
    ):
        assert columns_of([("row", example)]) == [row]


def test_what_does_not_reach_a_trainer_is_refused() -> None:
    marked = Conversation((ASKED, Message("assistant", "4", train=False)))
    for example in (marked, Segments((("a", True),)), Labelled("a", "b", 0.5)):
        with pytest.raises(DataError, match="method of finetooth"):
            columns_of([("row 7", example)])
    with pytest.raises(DataError, match="rows of one kind"):
        columns_of([("1", PromptCompletion("a", "b")), ("2", Conversation((ASKED, SAID)))])
