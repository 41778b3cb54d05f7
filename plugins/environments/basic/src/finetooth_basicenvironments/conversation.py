"""A conversation of the row, in which the policy says the assistant's turns and the row all others."""

from __future__ import annotations

from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_rollouts.prompts import later_turns, messages_of


class Conversation(EnvironmentBase):
    """Shows what the row says after each of the policy's turns, whatever the policy said. Its own reward is 0."""

    capabilities = frozenset({"seeded", "concurrent"})

    def episode(self, task: Task, seed: int) -> ConversationEpisode:
        """One pass through the conversation.

        Raises:
            DataError: the row does not say how its conversation continues.
        """
        return ConversationEpisode(task, [shown for shown, _ in later_turns(task)])


class ConversationEpisode(EpisodeBase):
    """Ends after the turn that the row has no more to say to."""

    def __init__(self, task: Task, shown: list[tuple[Message, ...]]) -> None:
        self._task, self._shown = task, iter(shown)

    def begin(self) -> Observation:
        """The row's prompt, and its tools."""
        return Observation(messages_of(self._task), self._task.tools)

    def answer(self, turn: Turn) -> Answer:
        """What the row says next."""
        messages = next(self._shown, None)
        return Answer(None if messages is None else Observation(messages), reward=0.0)
