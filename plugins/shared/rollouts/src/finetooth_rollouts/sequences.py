"""An episode as sequences of tokens that the policy read and wrote, without tokenising them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.data.examples import Conversation, Message
from finetooth_hooks.environments import Observation, Turn
from finetooth_hooks.errors import DataError
from finetooth_hooks.protocols import Renderer
from finetooth_hooks.rollouts import Rollout


@dataclass
class _Sequence:
    """Turns that one sequence trains.

    Attributes:
        prompt: before the first of them.
        last: the last turn as it was sampled: its prompt is all that stands before it.
    """

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    last: Rollout | None = None

    @property
    def all(self) -> tuple[int, ...]:
        """Prompt and tokens."""
        return (*self.prompt, *self.tokens)

    def shown(self, tokens: Sequence[int]) -> None:
        """Tokens that the policy did not write."""
        count = len(tokens)
        self.tokens += tokens
        self.logprobs += [0.0] * count
        self.versions += [-1] * count
        self.kept += [()] * count
        self.own += [False] * count

    def wrote(self, rollout: Rollout) -> None:
        """Tokens that it wrote."""
        count = len(rollout.tokens)
        self.tokens += rollout.tokens
        self.logprobs += rollout.logprobs
        self.versions += rollout.versions
        self.kept += rollout.kept or [()] * count
        self.own += [True] * count
        self.last = rollout

    def rollout(self) -> Rollout:
        """As a rollout that is not scored."""
        assert self.last is not None
        last = self.last
        return Rollout(
            last.id, last.group, self.prompt, tuple(self.tokens), tuple(self.logprobs), tuple(self.versions), last.text,
            last.outcome, kept=tuple(self.kept) if any(self.kept) else (), own=() if all(self.own) else tuple(self.own),
        )  # fmt: skip


class Sequences:
    """The sequences of an episode, the last of them open.

    Attributes:
        prompt: all that the policy reads before its next turn.
    """

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._messages: tuple[Message, ...] = ()
        self._tools: tuple[Mapping[str, Any], ...] = ()
        self._done: list[_Sequence] = []
        self.prompt: tuple[int, ...] = ()

    def see(self, observation: Observation) -> None:
        """The next prompt of the policy.

        Raises:
            DataError: the family cannot say it, or there is nothing.
        """
        if not observation.messages and not observation.tokens:
            raise DataError("", "the environment shows nothing before the turn", action="give messages, or tokens")
        open_ = self._done[-1] if self._done else None
        if open_ is None:
            self._messages, self._tools = observation.messages, observation.tools
            self.prompt = observation.tokens or tuple(self._renderer.prompt(self._messages, self._tools))
            return
        before = self._messages
        self._messages = (*self._messages, *observation.messages)
        if observation.tokens:
            self.prompt = observation.tokens
        elif self._renderer.extension:
            self.prompt = (*open_.all, *self._between(before))
        else:
            self.prompt = tuple(self._renderer.prompt(self._messages, self._tools))

    def wrote(self, rollout: Rollout) -> Turn:
        """The policy's turn.

        Args:
            rollout: its prompt is `prompt`.
        """
        open_ = self._done[-1] if self._done else None
        if open_ is None or self.prompt[: len(open_.all)] != open_.all:
            open_ = _Sequence(self.prompt)
            self._done.append(open_)
        open_.shown(self.prompt[len(open_.all) :])
        open_.wrote(rollout)
        message = _message(self._renderer, rollout)
        self._messages = (*self._messages, message)
        stop = "stop" if rollout.outcome == "stop" else "length"
        return Turn(rollout.tokens, rollout.text, message, stop)  # type: ignore[arg-type]

    def rollouts(self) -> list[Rollout]:
        """All sequences."""
        return [sequence.rollout() for sequence in self._done]

    def _between(self, said: tuple[Message, ...]) -> tuple[int, ...]:
        """What follows a turn, up to where the policy speaks again.

        The conversation is written twice, with what is new and without it; tokens of the turn in it are only counted,
        never used.

        Args:
            said: all messages up to and with the turn.

        Raises:
            DataError: the family cannot say it, or writes it otherwise than it promises.
        """
        upto = self._renderer.render(Conversation(said, self._tools), train_on="last")
        whole = tuple(self._renderer.prompt(self._messages, self._tools))
        end = max((i for i, weight in enumerate(upto.weights) if weight), default=-1)
        if end < 0 or upto.tokens[end] not in self._renderer.stop_ids:
            raise DataError(
                "data.renderer", "it ends a turn without a stop token, so turns have no bound", action="choose another"
            )
        if whole[: end + 1] != tuple(upto.tokens[: end + 1]):  # behind it may stand the end of the document
            raise DataError(
                "data.renderer",
                "it says that prompts extend the conversation before them, and this one does not",
                action="choose another renderer",
            )
        ended = self._done[-1].tokens[-1] in self._renderer.stop_ids
        return whole[end + 1 :] if ended else whole[end:]  # a string ended the turn: its bound is not the policy's word


def _message(renderer: Renderer, rollout: Rollout) -> Message:
    """The message of a turn; its plain text if the family cannot parse it."""
    try:
        return renderer.parse(rollout.tokens).message
    except DataError:
        return Message("assistant", rollout.text)
