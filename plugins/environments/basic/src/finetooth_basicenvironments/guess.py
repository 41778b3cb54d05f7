"""Number guessing: the policy guesses, and is told whether it was too low or too high."""

from __future__ import annotations

import random
import re

from finetooth_hooks import Options
from finetooth_hooks.bases import EnvironmentBase, EpisodeBase
from finetooth_hooks.data.examples import Message, Task
from finetooth_hooks.environments import Answer, Observation, Turn
from finetooth_hooks.errors import DataError
from finetooth_rollouts.prompts import messages_of
from pydantic import Field, model_validator

_NUMBER = re.compile(r"(?<!\d)-?\d{1,9}(?!\d)")


class GuessOptions(Options):
    """Options of `guess_number`."""

    low: int = 1
    """The smallest possible hidden number."""
    high: int = 100
    """The largest possible hidden number."""
    column: str = "number"
    """Column with the hidden number. A row without it gets one drawn from the run's seed, the same for all rollouts of
    a group."""
    guesses: int = Field(default=7, ge=1)
    """Number of guesses that the policy has; `method.max_turns` limits them too."""
    near: float = Field(default=0.0, ge=0, le=1)
    """Highest reward for a wrong last guess; it falls with the distance."""

    @model_validator(mode="after")
    def _some(self) -> GuessOptions:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Guess(EnvironmentBase):
    """Reward 1 for the number; at the last guess, `near` times how near it is."""

    capabilities = frozenset({"seeded", "concurrent"})

    def __init__(self, options: GuessOptions) -> None:
        self._options = options

    def episode(self, task: Task, seed: int) -> GuessEpisode:
        """Returns an episode about the row's number, or one drawn by the seed.

        Raises:
            DataError: the row's number is none, or out of bounds.
        """
        options = self._options
        number = task.columns.get(options.column)
        if number is None:
            number = random.Random(seed).randint(options.low, options.high)
        if isinstance(number, bool) or not isinstance(number, int) or not options.low <= number <= options.high:
            raise DataError(
                options.column,
                f"{number!r} is not a whole number from {options.low} to {options.high}",
                action="fix the row, or set low and high of the environment",
            )
        return GuessEpisode(task, number, options)


class GuessEpisode(EpisodeBase):
    """One number."""

    def __init__(self, task: Task, number: int, options: GuessOptions) -> None:
        self._task, self._number, self._options = task, number, options
        self._left = options.guesses

    def begin(self) -> Observation:
        """The row's prompt."""
        return Observation(messages_of(self._task))

    def answer(self, turn: Turn) -> Answer:
        """Too low, too high, or the end. The last number that the policy wrote is its guess."""
        self._left -= 1
        numbers = _NUMBER.findall(turn.message.content)
        guess = int(numbers[-1]) if numbers else None
        if guess == self._number:
            return Answer(reward=1.0, metrics={"guesses": 1.0, "found": 1.0})
        if not self._left or turn.stop == "length":
            return Answer(reward=self._worth(guess), metrics={"guesses": 1.0, "found": 0.0})
        side = "low" if guess is None or guess < self._number else "high"
        hint = "Say a number." if guess is None else f"{guess} is too {side}."
        return Answer(Observation((Message("user", hint),)), reward=0.0, metrics={"guesses": 1.0})

    def _worth(self, guess: int | None) -> float:
        if guess is None:
            return 0.0
        options = self._options
        off = abs(guess - self._number) / (options.high - options.low)
        return options.near * max(0.0, 1.0 - off)
