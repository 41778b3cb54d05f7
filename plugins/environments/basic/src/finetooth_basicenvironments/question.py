"""A single question: the policy answers once."""

from __future__ import annotations

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_hooks.examples import Task
from finetooth_toolbox.rollouts.drawing import messages_of


class Question(EnvironmentBase):
    """Shows the prompt of the row, and has no opinion of the answer."""

    capabilities = frozenset({"seeded", "concurrent"})

    def episode(self, task: Task, seed: int) -> QuestionEpisode:
        """Of any row."""
        return QuestionEpisode(task)


class QuestionEpisode(EpisodeBase):
    """One turn."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def begin(self) -> Observation:
        """The row's prompt, and its tools."""
        return Observation(messages_of(self._task), self._task.tools)

    def answer(self, turn: Turn) -> Answer:
        """The end."""
        return Answer()


def build(options: NoOptions, context: Context) -> Question:
    """Builder of the environment `question`."""
    return Question()
