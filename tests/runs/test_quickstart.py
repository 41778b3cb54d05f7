"""The demo: what it holds out is never trained, and the answer it must find is not the most frequent one."""

from __future__ import annotations

from pathlib import Path

import finetooth
from finetooth_hooks import Conversation

ROOT = Path(__file__).parents[2]


def questions(split: str) -> list[str]:
    session = finetooth.session(ROOT / "docs/recipes/quickstart.yaml")
    examples = [example for _, example in session.job.context.examples(split).rows]
    assert all(isinstance(example, Conversation) for example in examples)
    return [example.messages[-2].content for example in examples if isinstance(example, Conversation)]


def test_no_held_out_question_occurs_in_training() -> None:
    trained, held_out = questions("train"), questions("eval")
    assert len(held_out) >= 300 and len(set(held_out)) == len(held_out)
    assert not set(trained) & set(held_out)
