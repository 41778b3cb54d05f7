"""What can be learned from which rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks import Method, UserError
from finetooth_hooks.context import Catalog
from finetooth_hooks.data.examples import Conversation, Labelled, Pair, PromptCompletion, Segments, Stepwise, Task, Text

from finetooth_init.columns import ANSWERED, called_as


@dataclass(frozen=True)
class Goal:
    """Something to learn, and how. What it is in words is the entry's own: its summary, `learns_from` and `rows`.

    Attributes:
        method: entry that learns it, with its options.
        adapter: `lora` or `full`.
        learning_rate: to begin with.
        batch_size: rows of a step.
        asks: the rows end with an answer, so that held-out ones can be asked.
    """

    method: Any
    adapter: str = "lora"
    learning_rate: float = 2e-4
    batch_size: int = 16
    asks: bool = False

    @property
    def name(self) -> str:
        """Of the method."""
        return str(self.method["name"] if isinstance(self.method, dict) else self.method)


ANSWERS = Goal("sft", asks=True)
GOALS: dict[type, tuple[Goal, ...]] = {
    Conversation: (ANSWERS,),
    PromptCompletion: (ANSWERS,),
    Segments: (Goal("sft"),),
    Pair: (Goal("dpo", learning_rate=1e-4), Goal("rm", learning_rate=1e-4)),
    Labelled: (Goal("kto", learning_rate=1e-4),),
    Stepwise: (Goal("prm", learning_rate=1e-4),),
    Text: (Goal("pretrain", adapter="full", learning_rate=1e-4, batch_size=8),),
    Task: (Goal({"name": "grpo", "num_generations": 8}, batch_size=8, learning_rate=1e-4),),
}
"""What rows of a kind can teach, the most usual first."""


def entry_of(catalog: Catalog, goal: Goal) -> Method:
    """The entry of its method."""
    entry = catalog.get("method", goal.name, setting="method").entry
    assert isinstance(entry, Method)
    return entry


def goals_of(examples: Sequence[object], where: str) -> tuple[Goal, ...]:
    """What the rows can teach, the most usual first.

    Raises:
        UserError: there is nothing to be learned from them, or they are of kinds that no method takes together.
    """
    kinds = dict.fromkeys(type(example) for example in examples)
    goals = {goal.name: goal for kind in kinds for goal in GOALS.get(kind, ())}
    if not goals:
        names = ", ".join(kind.__name__ for kind in kinds) or "no rows"
        raise UserError(f"{where}: {names}: no method learns from such rows", action="see docs/guides/your-data.md")
    if len({tuple(goal.name for goal in GOALS.get(kind, ())) for kind in kinds}) > 1:
        names = " and ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{where} holds rows of several kinds, {names}", action="name files of one kind each")
    if Task in kinds:
        rewards = [{"name": "exact_match", "column": _expected([e for e in examples if isinstance(e, Task)], where)}]
        return tuple(replace(goal, method={**goal.method, "rewards": rewards}) for goal in goals.values())
    return tuple(goals.values())


def _expected(tasks: Sequence[Task], where: str) -> str:
    """The column with the right answers: by its name, or the only one that all rows fill.

    Raises:
        UserError: there is none, so that nothing could judge what is sampled.
    """
    values = [task.columns for task in tasks]
    filled = [name for name in values[0] if all(isinstance(row.get(name), str | int | float) for row in values)]
    column = called_as(filled, ANSWERED) or (filled[0] if len(filled) == 1 else "")
    if not column:
        raise UserError(
            f"{where}: the rows have prompts, but no column with the right answer (other columns: "
            f"{', '.join(filled) or 'none'})",
            action="to train on an answer, name its column with --completion COLUMN; to learn from a reward of your "
            "own, see docs/guides/rewards.md",
        )
    return column
