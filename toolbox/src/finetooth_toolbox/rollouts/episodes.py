"""Rollouts of an environment: episodes of several turns, played side by side.

Turn by turn the policy is asked for all episodes that go on, and the environment for its answers. What becomes a
sequence of tokens is exactly what the policy read and wrote:

    prompt | turn 1 | what follows it | turn 2 | ...        one sequence, the turns are trained
    prompt 1 | turn 1,   prompt 2 | turn 2,   ...           each turn its own

The first where the prompt of a turn begins with the tokens of the prompt and the turn before it. A renderer with the
property `extension` writes every conversation so; then what stands between two turns is all that is ever tokenised
after the first prompt. Without it the conversation is written anew for each turn, as the family's markup asks (it drops
old reasoning, say), and turns whose tokens come out otherwise begin a sequence of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.environments import Answer, Environment, Episode, Observation, Turn
from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Task
from finetooth_hooks.protocols import Renderer, Sampler
from finetooth_hooks.rollouts import End, Prompt, Rollout
from finetooth_hooks.sampling import Sampling

from finetooth_toolbox.rollouts.calls import Failure, Given, call_all
from finetooth_toolbox.rollouts.sequences import Sequences

_T = TypeVar("_T")


@dataclass(frozen=True)
class Asked:
    """What an episode is of.

    Attributes:
        id, group: see `Prompt`.
        seed: of the episode.
    """

    id: str
    group: str
    task: Task
    seed: int


@dataclass
class Played:
    """What was played.

    Attributes:
        episodes: for each that was asked for its rollouts: one, or one for each stretch of turns.
        failures: reasons of those that an error or a time limit ended.
        turns: of the policy.
        flops: that sampling took.
    """

    episodes: list[list[Rollout]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    turns: int = 0
    flops: float = 0.0


class Playing:
    """Plays episodes.

    Args:
        name: of the environment among the rewards.
        most_turns: of the policy in an episode.
        limit: seconds for a call of the environment.
    """

    def __init__(
        self, context: Context, environment: Environment, sampler: Sampler, *, name: str, most_turns: int, limit: float
    ) -> None:
        self._context, self._environment, self._sampler = context, environment, sampler
        self._name, self._most, self._limit = name, most_turns, limit

    def play(self, engine: Engine, asked: Sequence[Asked], sampling: Sampling, seeds: Callable[[int], int]) -> Played:
        """Play `sampling.n` episodes of each.

        Args:
            seeds: from the number of a turn, from 0, to the seed of its sampling.

        Raises:
            DataError: the environment cannot use a row, or the family cannot say what it shows first.
        """
        renderer, most = self._context.renderer, self._longest()
        live = [
            _Live(one, f"{one.group}#{k}", self._environment.episode(one.task, one.seed), renderer)
            for one in asked
            for k in range(sampling.n)
        ]
        played = Played()
        try:
            self._begin(live)
            for turn in range(self._most):
                going = [one for one in live if not one.ended and one.room(most, sampling.max_tokens)]
                if not going:
                    break
                self._say(engine, going, replace(sampling, seed=seeds(turn)), played)
                self._answer(going, last=turn + 1 == self._most)
                played.turns += len(going)
        finally:
            closing = [one.episode.close for one in live]
            call_all(closing, self._limit, together="concurrent" in self._environment.capabilities)
        played.episodes = [one.rollouts(self._context, self._name) for one in live]
        played.failures = [one.failure for one in live if one.failure]
        return played

    def _longest(self) -> int:
        """Tokens of a sequence at most."""
        bounds = (self._context.train.max_length + 1, self._context.facts.max_positions or 0)
        return min(bound for bound in bounds if bound)

    def _begin(self, live: Sequence[_Live]) -> None:
        said = self._call([one.episode.begin for one in live])
        for one, found in zip(live, said, strict=True):
            if isinstance(found, Failure):
                one.fail(found)
            else:
                one.begin(found.value)

    def _say(self, engine: Engine, going: Sequence[_Live], sampling: Sampling, played: Played) -> None:
        """One turn of the policy in each."""
        ways = dict.fromkeys((one.stop, one.stop_ids) for one in going)
        for stop, stop_ids in ways:
            of = [one for one in going if (one.stop, one.stop_ids) == (stop, stop_ids)]
            asked, n = _shared([Prompt(one.asked.id, one.asked.group, one.prompt) for one in of], sampling.n)
            drawn = self._sampler.sample(engine, asked, replace(sampling, n=n, stop=stop, stop_ids=stop_ids))
            played.flops += drawn.flops
            for one, rollout in zip(of, drawn.rollouts, strict=True):
                one.wrote(rollout)

    def _answer(self, going: Sequence[_Live], *, last: bool) -> None:
        """One answer of the environment to each."""
        said = self._call([one.answer for one in going])
        for one, found in zip(going, said, strict=True):
            if isinstance(found, Failure):
                one.fail(found)
            else:
                one.take(found.value, last=last)

    def _call(self, functions: Sequence[Callable[[], _T]]) -> list[Given[_T] | Failure]:
        return call_all(functions, self._limit, together="concurrent" in self._environment.capabilities)


class _Live:
    """An episode that is being played."""

    def __init__(self, asked: Asked, key: str, episode: Episode, renderer: Renderer) -> None:
        self.asked, self.key, self.episode = asked, key, episode
        self.stop: tuple[str, ...] = ()
        self.stop_ids: tuple[int, ...] | None = None
        self.failure = ""
        self.outcome: End | None = None
        self._sequences = Sequences(renderer)
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
        """What the policy reads before its next turn."""
        return self._sequences.prompt

    def room(self, most: int, turn: int) -> bool:
        """Whether another turn fits; else the episode ends.

        Args:
            most: tokens of a sequence.
            turn: tokens of a turn at most.
        """
        if len(self.prompt) + turn > most:
            self.outcome = "length"
        return not self.ended

    def begin(self, observation: Observation) -> None:
        """What the policy sees first.

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
        self._turn = self._sequences.wrote(rollout)
        self._text = rollout.text

    def answer(self) -> Answer:
        """What the environment says to the turn."""
        assert self._turn is not None
        return self.episode.answer(self._turn)

    def take(self, answer: Answer, *, last: bool) -> None:
        """What the environment said.

        Args:
            last: there are no further turns.
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

    def rollouts(self, context: Context, name: str) -> list[Rollout]:
        """Its sequences, in order. The reward of the environment stands under its name, and there is none of an episode
        that failed."""
        found = self._sequences.rollouts() or [
            Rollout(self.asked.id, self.asked.group, self.prompt, (), (), (), "", "error")
        ]
        reward = None if self.failure else self._reward
        return [
            replace(
                one, text=self._text, outcome=self.outcome or "length", rewards={name: reward}, reward=reward,
                episode=self.key, transcript=context.tokenizer.decode(one.tokens, skip_special=False),
                failure=self.failure, metrics=self._metrics,
            )
            for one in found
        ]  # fmt: skip


def _shared(prompts: Sequence[Prompt], n: int) -> tuple[list[Prompt], int]:
    """Prompts to sample, and how often each: once for a group whose episodes all begin alike."""
    if len(prompts) % n == 0:
        blocks = [prompts[i : i + n] for i in range(0, len(prompts), n)]
        if all(one == block[0] for block in blocks for one in block):
            return [block[0] for block in blocks], n
    return list(prompts), 1
