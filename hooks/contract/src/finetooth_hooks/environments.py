"""Environments, which answer a policy's turns and score them.

A method gets an episode of a task from an environment, shows the policy its observations, and passes back the policy's
turns. A turn is passed both as tokens and as a message: an environment that reads messages need not tokenise, and the
policy's tokens are never tokenised again from text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from finetooth_hooks.data.examples import Message, Task


@dataclass(frozen=True)
class Observation:
    """What an environment shows the policy before a turn: messages, or tokens.

    Attributes:
        messages: new ones, in order; those of the first observation begin the conversation.
        tools: that the policy may call, as schemas in OpenAI's format; of the first observation, for the whole episode.
        tokens: the whole prompt of the turn, instead of messages, from an environment that tokenises itself. If it
            begins with the previous turn's prompt and tokens, one sequence trains both turns.
        stop: strings that end the turn.
        stop_ids: token ids that end it; None: the family's stop tokens.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Turn:
    """A turn of the policy.

    Attributes:
        tokens: (T,) as sampled, with the stop token.
        text: the tokens decoded, without the stop token.
        message: parsed by the renderer: content, reasoning, calls of tools.
        stop: how it ended. After a turn that was cut off (`length`) the episode ends, whatever the answer to it is.
    """

    tokens: tuple[int, ...]
    text: str
    message: Message
    stop: Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """The environment's answer to a turn.

    Attributes:
        observation: what the policy sees next; None ends the episode.
        reward: of this turn; an episode's is their sum. None: the turn is not scored, and an episode without scored
            turns has no reward from the environment.
        metrics: numbers to report: the mean over episodes of the sum over turns.
    """

    observation: Observation | None = None
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Episode(Protocol):
    """One conversation about one task; used once, its methods called one after the other.

    If `begin` or `answer` raises, the outcome of the rollout is `error`; if a call takes longer than the method allows,
    it is `timeout`. Neither counts as a reward of 0.
    """

    def begin(self) -> Observation:
        """What the policy sees first."""
        ...

    def answer(self, turn: Turn) -> Answer:
        """The answer to a turn."""
        ...

    def close(self) -> None:
        """Release the episode's resources. Called once, however the episode ended. If a call did not return in time,
        it may still be running."""
        ...


class Environment(Protocol):
    """Makes episodes. An environment derives from `finetooth_hooks.EnvironmentBase`.

    Built once a run; its settings and rows are checked then and in `episode`, so that they fail early.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities.ENVIRONMENT`."""
        ...

    def episode(self, task: Task, seed: int) -> Episode:
        """A new episode. It must be quick: slow work belongs in `begin`.

        Args:
            task: the row: its prompt, and `columns` for all else it has.
            seed: of all random choices. Episodes of a group have the same one, so that its rollouts answer the same
                question.

        Raises:
            DataError: the row lacks what the environment needs. It ends the run.
        """
        ...


__all__ = ["Answer", "Environment", "Episode", "Observation", "Turn"]
