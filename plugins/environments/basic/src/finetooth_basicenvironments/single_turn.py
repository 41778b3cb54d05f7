"""A single question: the policy answers once."""

from __future__ import annotations

from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import messages_of


class SingleTurn(EnvironmentBase):
    """Shows the prompt of the row, and has no opinion of the answer."""

    capabilities = frozenset({"seeded", "concurrent"})

    def episode(self, task: Task, seed: int) -> SingleTurnEpisode:
        """Of any row."""
        return SingleTurnEpisode(task)


class SingleTurnEpisode(EpisodeBase):
    """One turn."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def begin(self) -> Observation:
        """The row's prompt, and its tools."""
        return Observation(messages_of(self._task), self._task.tools)

    def answer(self, turn: Turn) -> Answer:
        """The end."""
        return Answer()
