"""An episode in progress, with its turns so far and its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from finetooth_hooks.environments import Answer, Episode, Observation, Turn
from finetooth_hooks.errors import DataError
from finetooth_hooks.rollouts import End, Rollout

from finetooth_rollouts.calls import Failure
from finetooth_rollouts.rollouts_file import as_json
from finetooth_rollouts.sequences import Sequences
from finetooth_rollouts.stretches import continued_prompt, joined, unfinished


@dataclass(frozen=True)
class EpisodeTask:
    """The fixed facts of an episode.

    Attributes:
        id, group: see `Prompt`.
        seed: of the episode.
    """

    id: str
    group: str
    task: Task
    seed: int


class LiveEpisode:
    """An episode that is being played.

    Args:
        key: of it among the episodes of a run.
        episode: of the environment; None where another rank has it.

    Attributes:
        turns: of the policy that have ended, as they were sampled.
        begun: a turn that is unfinished, as far as it was written.
        stop, stop_ids: texts and token ids that end a turn.
        failure: why it failed; empty if it did not.
        outcome: how it ended; None as long as it has not.
    """

    def __init__(self, context: Context, task: EpisodeTask, key: str, episode: Episode | None) -> None:
        self.asked, self.key, self.episode, self._context = task, key, episode, context
        self.stop: tuple[str, ...] = ()
        self.stop_ids: tuple[int, ...] | None = None
        self.turns: list[Rollout] = []
        self.begun: Rollout | None = None
        self.failure = ""
        self.outcome: End | None = None
        self._sequences = Sequences(context.renderer)
        self._turn: Turn | None = None
        self._text = ""
        self._reward: float | None = None
        self._metrics: dict[str, float] = {}

    @property
    def ended(self) -> bool:
        """There is an outcome."""
        return self.outcome is not None

    @property
    def prompt(self) -> tuple[int, ...]:
        """What the policy reads before it writes on."""
        return self._sequences.prompt if self.begun is None else continued_prompt(self.begun).tokens

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of the weights that wrote the turns so far."""
        written = self.turns if self.begun is None else [*self.turns, self.begun]
        return tuple(version for rollout in written for version in rollout.versions)

    def left(self, longest: int) -> int:
        """Tokens that its turn may still get.

        Args:
            longest: of a turn.
        """
        return longest if self.begun is None else longest - len(self.begun.tokens)

    def room(self, most: int, turn: int) -> bool:
        """Whether it is unfinished, and its next turn fits; else it ends here.

        Args:
            most: tokens of a sequence.
            turn: tokens of a turn at most.
        """
        if not self.ended and self.begun is None and len(self.prompt) + turn > most:
            self.outcome = "length"
        return not self.ended

    def begin(self, observation: Observation) -> None:
        """The first prompt of the policy.

        Raises:
            DataError: the family has no words for it, which other rows would meet too.
        """
        self.stop, self.stop_ids = observation.stop, observation.stop_ids
        self._sequences.see(observation)

    def see(self, observation: Observation) -> None:
        """What the policy sees next; that it cannot be written down is an error of the episode."""
        try:
            self.begin(observation)
        except DataError as error:
            self.fail(Failure("error", str(error)))

    def wrote(self, rollout: Rollout) -> None:
        """The policy's turn, as it was sampled."""
        self.turns.append(rollout)
        self._turn = self._sequences.wrote(rollout)
        self._text = rollout.text

    def wrote_on(self, rollout: Rollout, allowed: int, longest: int) -> bool:
        """What the policy wrote further; whether its turn is at its end.

        Args:
            allowed: tokens that it could write now.
            longest: of a turn.
        """
        written = len(self.begun.tokens) if self.begun is not None else 0
        if self.begun is not None:
            rollout = joined(self._context, self.begun, rollout, stop=self.stop, stop_ids=self.stop_ids)
        if written + allowed < longest and unfinished(rollout, written + allowed):
            self.begun = rollout
            return False
        self.begun = None
        self.wrote(rollout)
        return True

    def observed(self) -> Observation:
        """The environment's first messages."""
        assert self.episode is not None
        return self.episode.begin()

    def answer(self) -> Answer:
        """The environment's answer to the turn."""
        assert self._turn is not None and self.episode is not None
        return self.episode.answer(self._turn)

    def take(self, answer: Answer, *, last: bool) -> None:
        """The environment's last answer.

        Args:
            last: no further turns follow.
        """
        assert self._turn is not None
        if answer.reward is not None:
            if not math.isfinite(answer.reward):
                self.fail(Failure("error", f"its reward is {answer.reward}"))
                return
            self._reward = (self._reward or 0.0) + answer.reward
        for name, value in answer.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value
        if self._turn.stop == "length":
            self.outcome = "length"
        elif answer.observation is None:
            self.outcome = "stop"
        elif last:
            self.outcome = "turns"
        else:
            self.see(answer.observation)

    def fail(self, failure: Failure) -> None:
        """It ended otherwise."""
        self.outcome, self.failure = failure.outcome, f"{self.asked.id}: {failure.reason}"

    def rollouts(self, name: str) -> Sequence[Rollout]:
        """Its sequences, in order. The reward of the environment stands under its name, and there is none of an episode
        that failed."""
        sequences = self._sequences.rollouts() or [
            Rollout(self.asked.id, self.asked.group, self.prompt, (), (), (), "", "error")
        ]
        reward = None if self.failure else self._reward
        return [
            replace(
                rollout, text=self._text, outcome=self.outcome or "length", rewards={name: reward}, reward=reward,
                episode=self.key, transcript=self._context.tokenizer.decode(rollout.tokens, skip_special=False),
                failure=self.failure, metrics=self._metrics,
            )
            for rollout in sequences
        ]  # fmt: skip

    def state(self) -> Mapping[str, Any]:
        """What was asked and written: JSON. What the environment said follows from it, and is compared with the prompt
        of the next or unfinished turn."""
        return {
            "id": self.asked.id,
            "group": self.asked.group,
            "seed": self.asked.seed,
            "key": self.key,
            "turns": [as_json(rollout) for rollout in self.turns],
            "begun": None if self.begun is None else as_json(self.begun),
            "prompt": list(self._sequences.prompt),
        }


@dataclass(frozen=True)
class EndedEpisode:
    """An episode that a checkpoint has from its beginning to its end.

    Attributes:
        count: turns of the policy.
    """

    group: str
    found: tuple[Rollout, ...]
    count: int

    def rollouts(self, name: str) -> Sequence[Rollout]:
        """See `LiveEpisode.rollouts`."""
        return self.found
