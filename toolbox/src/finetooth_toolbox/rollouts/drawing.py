"""Prompts, and rollouts of them: sampled and scored, batch by batch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import DataError, EngineError
from finetooth_hooks.examples import Message, Task
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling

from finetooth_toolbox.methods.batched import Batches
from finetooth_toolbox.rollouts.advantages import groups_of
from finetooth_toolbox.rollouts.draws import Draw, Scoring
from finetooth_toolbox.rollouts.episodes import Asked, Playing
from finetooth_toolbox.rollouts.judging import WeightedEnvironment, judged
from finetooth_toolbox.rollouts.options import RolloutOptions
from finetooth_toolbox.rollouts.schedule import Schedule
from finetooth_toolbox.rollouts.scoring import WeightedReward, scored

MOST_PASSED_OVER = 100
"""Batches in a row without anything to learn from, after which a run ends."""


@dataclass(frozen=True)
class Prompts:
    """What is asked in a run.

    Attributes:
        rows: read.
        tasks: by id.
        tokens: of each prompt, in the order of the rows.
    """

    rows: int
    tasks: dict[str, Task]
    tokens: list[tuple[str, tuple[int, ...]]]

    @classmethod
    def read(cls, context: Context) -> Prompts:
        """
        Raises:
            DataError: a row has an answer already, or comes under the id of another.
        """
        rows = context.examples("train").rows
        prompts = cls(len(rows), {}, [])
        for id_, example in rows:
            if not isinstance(example, Task):
                raise DataError(id_, "the row has an answer already", action="set data.format: task")
            if id_ in prompts.tasks:
                raise DataError(id_, "another row has the same id", action="give every row an id of its own")
            prompts.tasks[id_] = example
            prompts.tokens.append((id_, tuple(context.renderer.prompt(messages_of(example), example.tools))))
        return prompts


def messages_of(task: Task) -> tuple[Message, ...]:
    """The prompt of a task as messages."""
    return (Message("user", task.prompt),) if isinstance(task.prompt, str) else tuple(task.prompt)


@dataclass
class Drawn:
    """A batch of rollouts with a reward.

    Attributes:
        rollouts: groups next to each other.
        sampled: how many were sampled for it.
        passed_over: batches of prompts that brought nothing before it.
        left_out: by reward, how many of those sampled it left out; those that all left out by "".
        flops: that sampling took.
        errors, timeouts: episodes that ended so.
        turns: of the policy, in all episodes.
        epoch: passes over the prompts done with them.
    """

    rollouts: list[Rollout] = field(default_factory=list)
    sampled: int = 0
    passed_over: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0
    errors: int = 0
    timeouts: int = 0
    turns: int = 0
    epoch: float = 0.0

    def metrics(self) -> dict[str, float]:
        """What is reported of it. Of each reward that left rollouts out, how many; `left_out` is those that all did,
        which are not trained."""
        found = {"skipped_zero_adv_batches": float(self.passed_over), "num_rollouts": float(self.sampled)}
        found |= {f"rewards/{name}/left_out" if name else "left_out": float(n) for name, n in self.left_out.items()}
        if self.turns:
            found |= {"environment/errors": float(self.errors), "environment/timeouts": float(self.timeouts)}
            found["environment/turns"] = self.turns / self.sampled
        return found


class Drawing:
    """Draws rollouts, some of them before they are wanted.

    Args:
        batches: of the prompts; their number and the run's seed decide everything random.
        schedule: when draws begin.
    """

    def __init__(
        self, context: Context, options: RolloutOptions, prompts: Prompts, batches: Batches, sampler: Sampler,
        rewards: Sequence[WeightedReward], schedule: Schedule, environment: WeightedEnvironment | None = None,
    ) -> None:  # fmt: skip
        self._context, self._options, self._prompts = context, options, prompts
        self._batches, self._sampler, self._rewards = batches, sampler, rewards
        self._environment, self._schedule, self._waiting = environment, schedule, deque[Draw]()
        self._scoring = Scoring(self._score, beside=schedule.ahead > 0 and all(one.beside for one in rewards))

    def go_ahead(self, engine: Engine, indices: Iterator[list[int]], *, left: int, remaining: int) -> None:
        """Begin the draws whose time it is, before an optimizer step; see `Schedule.begins`."""
        while self._schedule.begins(left=left, waiting=len(self._waiting), remaining=remaining):
            of = next(indices, None)
            if of is None:
                return
            self._wait_for(self._draw(engine, of))

    def _wait_for(self, draw: Draw) -> None:
        self._scoring.begin(draw)
        self._waiting.append(draw)

    def stop(self) -> None:
        """Nothing more is scored."""
        self._scoring.stop()

    def state(self) -> list[dict[str, Any]]:
        """The draws that wait."""
        return [draw.state() for draw in self._waiting]

    def take(self, state: Sequence[Mapping[str, Any]]) -> None:
        """What `state` gave; what waits is scored again."""
        self._waiting.clear()
        for one in state:
            self._wait_for(Draw.of(one))

    def batch(self, engine: Engine, indices: Iterator[list[int]], drawn: Drawn) -> bool:
        """Add the next batch to `drawn`; False where the prompts are used up.

        With dynamic sampling, groups whose rewards are all equal are dropped, and prompts are sampled until there are
        `train.batch_size` others (Yu et al., 2025, arXiv:2503.14476, section 3.2); what is over is dropped too.

        Raises:
            DataError: batch after batch has nothing to learn from.
        """
        wanted = self._context.train.batch_size
        while (draw := self._next(engine, indices)) is not None:
            found = self._judged(draw, drawn)
            if not self._options.dynamic_sampling:
                drawn.rollouts = found
                return True
            telling = [one for group in groups_of(found) if _differ(found[group]) for one in found[group]]
            drawn.rollouts += telling
            groups = groups_of(drawn.rollouts)
            if len(groups) >= wanted:
                drawn.rollouts = drawn.rollouts[: groups[wanted - 1].stop]
                return True
            if not telling:
                self.pass_over(drawn)
        return bool(drawn.rollouts)

    def pass_over(self, drawn: Drawn) -> None:
        """Count a batch that brought nothing.

        Raises:
            DataError: there were too many in a row.
        """
        drawn.passed_over += 1
        if drawn.passed_over >= MOST_PASSED_OVER:
            raise DataError(
                "method.rewards",
                f"in the last {drawn.passed_over} batches no group has rewards that differ, so there is nothing to "
                "learn from",
                action="look at the answers and try the rewards on them, or begin from a model that is right sometimes",
            )

    def _next(self, engine: Engine, indices: Iterator[list[int]]) -> Draw | None:
        """What was begun first; where nothing waits, it begins now. None where the prompts are used up."""
        if self._waiting:
            return self._waiting.popleft()
        of = next(indices, None)
        return None if of is None else self._draw(engine, of)

    def _judged(self, draw: Draw, drawn: Drawn) -> list[Rollout]:
        """Rollouts of a draw that have a reward."""
        drawn.sampled, drawn.flops = drawn.sampled + len(draw.episodes), drawn.flops + draw.flops
        drawn.epoch, drawn.turns = draw.epoch, drawn.turns + draw.turns
        found = self._scoring.end(draw)
        if self._environment is not None:
            outcomes = [episode[-1].outcome for episode in draw.episodes]
            drawn.errors += outcomes.count("error")
            drawn.timeouts += outcomes.count("timeout")
            return [one for one in found if one.reward is not None and one.tokens]
        for one in found:
            drawn.left_out.update(name for name, score in one.rewards.items() if score is None)
            drawn.left_out.update([""] if one.reward is None else [])
        return [one for one in found if one.reward is not None]

    def _score(self, draw: Draw) -> list[Rollout]:
        if self._environment is None:
            return scored([one for episode in draw.episodes for one in episode], self._prompts.tasks, self._rewards)
        episodes, failure = [list(episode) for episode in draw.episodes], self._options.environment_failure
        return judged(episodes, self._prompts.tasks, self._rewards, self._environment, failure)

    def _draw(self, engine: Engine, indices: Sequence[int]) -> Draw:
        """Answers to some prompts."""
        options, number = self._options, self._batches.step
        asked = [self._prompts.tokens[i] for i in indices]
        sampling = Sampling(
            options.max_completion_length, options.temperature, options.top_k, options.top_p, options.num_generations,
            seed=int(self._context.generator("rollouts", number).integers(2**31)),
        )  # fmt: skip
        if self._environment is not None:
            return self._play(engine, self._environment, [id_ for id_, _ in asked], sampling)
        prompts = [Prompt(id_, f"{id_}@{number}", tokens) for id_, tokens in asked]
        sampled = self._sampler.sample(engine, prompts, sampling)
        return Draw(self._batches.epoch, tuple((one,) for one in sampled.rollouts), flops=sampled.flops)

    def _play(self, engine: Engine, environment: WeightedEnvironment, ids: Sequence[str], sampling: Sampling) -> Draw:
        """Episodes of some rows.

        Raises:
            EngineError: an episode failed, and the recipe says that this ends the run.
        """
        options, number, context = self._options, self._batches.step, self._context
        playing = Playing(
            context, environment.environment, self._sampler, name=environment.name, most_turns=options.max_turns,
            limit=options.environment_timeout,
        )  # fmt: skip
        seeds = context.generator("environment", number).integers(2**31, size=len(ids))
        asked = [
            Asked(id_, f"{id_}@{number}", self._prompts.tasks[id_], int(seed))
            for id_, seed in zip(ids, seeds, strict=True)
        ]

        def seed_of(turn: int) -> int:
            return int(context.generator("rollouts", number, turn).integers(2**31)) if turn else sampling.seed

        played = playing.play(engine, asked, sampling, seed_of)
        if played.failures:
            why = f"{len(played.failures)} of {len(played.episodes)} episodes failed, the first: {played.failures[0]}"
            if options.environment_failure == "fail":
                raise EngineError(f"method.environment: {why}", action="mend it, then ft resume RUN")
            context.note(f"{why}; see environment/errors and environment/timeouts", topic="episodes failed")
        return Draw(self._batches.epoch, tuple(map(tuple, played.episodes)), played.turns, played.flops)


def _differ(rollouts: Sequence[Rollout]) -> bool:
    return any(one.reward != rollouts[0].reward for one in rollouts)
