"""What can be learned from which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import UserError
from finetooth_hooks.examples import Conversation, Labelled, Pair, PromptCompletion, Segments, Stepwise, Task, Text


@dataclass(frozen=True)
class Goal:
    """Something to learn, and how.

    Attributes:
        says: what is learned, as a choice reads.
        method: entry that learns it, with its options.
        reason: why this method, one clause.
        adapter: `lora` or `full`.
        learning_rate: to begin with.
        batch_size: rows of a step.
    """

    says: str
    method: Any
    reason: str
    adapter: str = "lora"
    learning_rate: float = 2e-4
    batch_size: int = 16

    @property
    def name(self) -> str:
        """Of the method."""
        return str(self.method["name"] if isinstance(self.method, dict) else self.method)


ANSWERS = Goal("answer as the rows answer", "sft", "the rows hold answers to imitate")
GOALS: dict[type, tuple[Goal, ...]] = {
    Conversation: (ANSWERS,),
    PromptCompletion: (ANSWERS,),
    Segments: (ANSWERS,),
    Pair: (
        Goal(
            "prefer one answer to the other", "dpo", "the rows hold a chosen and a rejected answer", learning_rate=1e-4
        ),
        Goal(
            "score answers, for a reward",
            "rm",
            "the rows hold a chosen and a rejected answer, and a score is to tell them apart",
            learning_rate=1e-4,
        ),
    ),
    Labelled: (
        Goal("prefer what was marked good", "kto", "the rows mark single answers good or bad", learning_rate=1e-4),
    ),
    Stepwise: (
        Goal(
            "score the steps of an answer", "prm", "the rows say of each step whether it is right", learning_rate=1e-4
        ),
    ),
    Text: (
        Goal(
            "continue text like this",
            "pretrain",
            "the rows are text without questions",
            adapter="full",
            learning_rate=1e-4,
            batch_size=8,
        ),
    ),
    Task: (
        Goal(
            "earn a reward for right answers",
            {"name": "grpo", "rewards": [{"name": "exact_match", "column": "completion"}], "num_generations": 8},
            "the rows are questions whose answers can be checked",
            batch_size=8,
            learning_rate=1e-4,
        ),
    ),
}


def goals_of(examples: Sequence[object], where: str) -> tuple[Goal, ...]:
    """What the rows can teach, the most usual first.

    Raises:
        UserError: there is nothing to be learned from them, or they are of kinds that no method takes together.
    """
    kinds = dict.fromkeys(type(example) for example in examples)
    found = {goal.name: goal for kind in kinds for goal in GOALS.get(kind, ())}
    if not found:
        names = ", ".join(kind.__name__ for kind in kinds) or "no rows"
        raise UserError(f"{where}: {names}: no method learns from that", action="see docs/guides/your-data.md")
    if len({tuple(goal.name for goal in GOALS.get(kind, ())) for kind in kinds}) > 1:
        names = " and ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{where} holds rows of several kinds, {names}", action="name files of one kind each")
    return tuple(found.values())
