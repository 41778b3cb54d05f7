"""Prompts, and rollouts of them: sampled and scored, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.engine import Engine
from finetooth_hooks.errors import EngineError
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling
from finetooth_methods.batched import Batches

from finetooth_rollouts.advantages import groups_of, last_of_episodes, rewards_of
from finetooth_rollouts.drawn import Drawn, NothingToLearn
from finetooth_rollouts.draws import Draw, Episode, Scoring
from finetooth_rollouts.episodes import EpisodeTask, Playing
from finetooth_rollouts.judging import WeightedEnvironment, judged
from finetooth_rollouts.options import RolloutOptions
from finetooth_rollouts.prompts import Prompts
from finetooth_rollouts.replay import Replay, Unsolved, differ
from finetooth_rollouts.schedule import Schedule
from finetooth_rollouts.scoring import WeightedReward, scored
from finetooth_rollouts.stretches import continued_prompt, joined

MOST_PASSED_OVER = 100
"""Batches in a row without anything to learn from, after which a run ends."""

MOST_LEFT_OUT = 10
"""Batches in a row without a reward for any answer, after which a run ends: each may take as long as a reward may take
to fail."""


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
        self._playing = None if environment is None else Playing(
            context, environment.environment, sampler, name=environment.name, most_turns=options.max_turns,
            limit=options.environment_timeout,
        )  # fmt: skip
        concurrent = schedule.ahead > 0 or options.streaming_groups > 0
        self._scoring = Scoring(self._score, concurrent=concurrent and all(reward.concurrent for reward in rewards))
        self._late: Draw | None = None
        self._replay = Replay(options.replay_groups, options.replay_staleness) if options.replay_groups else None
        self._unsolved = Unsolved()
        self._restored: Mapping[str, Any] | None = None

    def begin(self, engine: Engine) -> None:
        """Before the first step: of several ranks, the first one judges answers and calls the environment.

        Raises:
            EngineError: an episode cannot be played again up to where the run ended.
        """
        self._scoring.idle = not engine.leads
        if self._restored is not None:
            self._resume(engine, self._restored)
            self._restored = None

    def go_ahead(self, engine: Engine, indices: Iterator[list[int]], *, left: int, remaining: int) -> None:
        """Begin the draws that are due before an optimizer step; see `Schedule.begins`. Answers that are written in
        stretches are continued first."""
        stretch = self._options.partial_rollouts
        for draw in self._begun():
            if draw.open:
                self._go_on(engine, draw, stretch)
        version = engine.weights_version
        while self._schedule.begins(left=left, waiting=len(self._waiting), remaining=remaining, version=version):
            of = next(indices, None)
            if of is None:
                return
            self._waiting.append(self._draw(engine, of, stretch))

    def stop(self) -> None:
        """Nothing more is scored, and episodes are let go."""
        self._scoring.stop()
        for draw in self._begun():
            if draw.playing is not None and self._playing is not None:
                self._playing.close(draw.playing.held)

    def state(self) -> dict[str, Any]:
        """The draws that wait, the groups that are late, those kept for a replay, and the prompts to ask again."""
        if self._restored is not None:
            return dict(self._restored)
        return {
            "waiting": [draw.state() for draw in self._waiting],
            "late": None if self._late is None else self._late.state(),
            "replay": [] if self._replay is None else self._replay.state(),
            "unsolved": self._unsolved.state(),
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """What `state` gave, for `begin` to continue with: unfinished episodes are played again, and what waits is
        scored again."""
        self._restored = state

    def _resume(self, engine: Engine, state: Mapping[str, Any]) -> None:
        self._waiting = deque(self._of(engine, draw) for draw in state["waiting"])
        self._late = None if state["late"] is None else self._of(engine, state["late"])
        for draw in self._begun():
            if not draw.open:
                self._scoring.begin(draw)
        if self._replay is not None:
            self._replay.take(state["replay"])
        self._unsolved.take(state["unsolved"])

    def _begun(self) -> list[Draw]:
        """The draws that no batch has used, in their order."""
        return [*([] if self._late is None else [self._late]), *self._waiting]

    def _of(self, engine: Engine, state: Mapping[str, Any]) -> Draw:
        draw = Draw.of(state)
        if "playing" in state and self._playing is not None:
            draw.playing = self._playing.again(engine, state["playing"], self._prompts.tasks)
        return draw

    def batch(self, engine: Engine, indices: Iterator[list[int]], drawn: Drawn, *, remaining: int) -> bool:
        """Add the next batch to `drawn`; False where the prompts are used up.

        With dynamic sampling, groups whose rewards are all equal are dropped, and prompts are sampled until there are
        `train.batch_size` others (Yu et al., 2025, arXiv:2503.14476, section 3.2); what is over is dropped too.

        Args:
            remaining: steps that the run has to go.

        Raises:
            NothingToLearn: batch after batch has nothing to learn from.
        """
        wanted = self._context.train.batch_size
        while draws := self._next(engine, indices, drawn, remaining):
            rollouts = [rollout for draw in draws for rollout in self._judged(engine, draw, drawn)]
            drawn.judged = float(rewards_of(rollouts).mean()) if rollouts else None
            if not self._options.dynamic_sampling:
                drawn.rollouts = self._replayed(rollouts, drawn, engine.weights_version)
                return True
            telling = [r for group in groups_of(rollouts) if differ(rollouts[group]) for r in rollouts[group]]
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
            NothingToLearn: there were too many in a row.
        """
        drawn.passed_over += 1
        if drawn.passed_over >= (MOST_LEFT_OUT if drawn.all_left_out else MOST_PASSED_OVER):
            raise NothingToLearn(drawn)

    def _next(self, engine: Engine, indices: Iterator[list[int]], drawn: Drawn, remaining: int) -> list[Draw]:
        """What was late, and what was begun first; where nothing waits, it begins now. Nothing where the prompts are
        used up."""
        late, self._late = self._late, None
        if self._waiting:
            draw: Draw | None = self._waiting.popleft()
        else:
            of = next(indices, None)
            draw = None if of is None else self._draw(engine, of)
        if draw is not None and self._options.partial_groups:
            self._late = self._left_late(engine, draw, remaining)
            drawn.late = 0 if self._late is None else self._late.count // self._options.num_generations
        draws = [part for part in (late, draw) if part is not None]
        for part in draws:
            if part.open:
                self._go_on(engine, part)
        return draws

    def _left_late(self, engine: Engine, draw: Draw, remaining: int) -> Draw | None:
        """Take the groups with unfinished answers out of a draw, if another batch comes before they are too stale."""
        per_batch = self._schedule.per_batch
        if draw.playing is not None:
            done, going_on = draw.playing.parted()
            oldest = engine.weights_version if draw.playing.oldest is None else draw.playing.oldest
            stale = engine.weights_version + per_batch - oldest > self._schedule.bound
            if not len(done) or not len(going_on) or remaining <= per_batch or stale:
                return None
            draw.playing = done
            self._ended(draw)
            return Draw(draw.epoch, (), number=draw.number, playing=going_on)
        groups = groups_of([episode[-1] for episode in draw.episodes])
        going = [any(draw.goes_on(episode) for episode in draw.episodes[group]) for group in groups]
        if all(going) or not any(going):
            return None
        parts = [
            tuple(e for group, on in zip(groups, going, strict=True) if on is late for e in draw.episodes[group])
            for late in (False, True)
        ]
        oldest = min(version for (rollout,) in parts[1] for version in rollout.versions)
        if remaining <= per_batch or engine.weights_version + per_batch - oldest > self._schedule.bound:
            return None
        draw.episodes = parts[0]
        return Draw(draw.epoch, parts[1], number=draw.number, written=draw.written)

    def _go_on(self, engine: Engine, draw: Draw, stretch: int = 0) -> None:
        """Write the answers of a draw further that are not at their end.

        Args:
            stretch: so many tokens at most; 0 is to their end.
        """
        if draw.playing is not None:
            self._play_on(engine, draw, stretch)
            return
        left = self._options.max_completion_length - draw.written
        sampling = self._sampling(draw.number, min(stretch or left, left), draw.written)
        places = [i for i, episode in enumerate(draw.episodes) if draw.goes_on(episode)]
        prompts = [continued_prompt(draw.episodes[i][-1]) for i in places]
        further = self._sampler.sample(engine, prompts, replace(sampling, n=1))
        episodes = list(draw.episodes)
        for i, rollout in zip(places, further.rollouts, strict=True):
            begun, stop_ids = episodes[i][-1], sampling.stop_ids
            episodes[i] = (joined(self._context, begun, rollout, stop=sampling.stop, stop_ids=stop_ids),)
        draw.episodes, draw.flops = tuple(episodes), draw.flops + further.flops
        draw.written = 0 if sampling.max_tokens == left else draw.written + sampling.max_tokens
        if not draw.open:
            self._scoring.begin(draw)

    def _replayed(self, rollouts: list[Rollout], drawn: Drawn, version: int) -> list[Rollout]:
        """A batch with groups of earlier ones in place of those that teach nothing."""
        if self._options.reroll_groups:
            self._unsolved.see(rollouts)
        if self._replay is None or not rollouts:
            return rollouts
        random = self._context.generator("replay", self._batches.step, version)
        filled, drawn.replayed = self._replay.filled(rollouts, version, random)
        return filled

    def _judged(self, engine: Engine, draw: Draw, drawn: Drawn) -> list[Rollout]:
        """Rollouts of a draw that have a reward."""
        drawn.sampled, drawn.flops = drawn.sampled + len(draw.episodes), drawn.flops + draw.flops
        drawn.epoch, drawn.turns = draw.epoch, drawn.turns + draw.turns
        rollouts = engine.first(lambda: self._scoring.end(draw))
        if self._environment is None:
            drawn.count_left_out(rollouts)
            return [rollout for rollout in rollouts if rollout.reward is not None]
        outcomes = [episode[-1].outcome for episode in draw.episodes]
        drawn.errors += outcomes.count("error")
        drawn.timeouts += outcomes.count("timeout")
        drawn.count_left_out(last_of_episodes(rollouts))
        return [rollout for rollout in rollouts if rollout.reward is not None and rollout.tokens]

    def _score(self, episodes: Sequence[Episode]) -> list[Rollout]:
        if self._environment is None:
            return scored([rollout for episode in episodes for rollout in episode], self._prompts.tasks, self._rewards)
        played, failure = [list(episode) for episode in episodes], self._options.environment_failure
        return judged(played, self._prompts.tasks, self._rewards, self._environment, failure)

    def _sampling(self, number: int, most: int, written: int = 0) -> Sampling:
        """How a batch of prompts is sampled.

        Args:
            most: tokens.
            written: tokens of its answers so far.
        """
        options = self._options
        form = {} if options.guided is None else dict([options.guided.form])
        keys: tuple[str | int, ...] = ("rollouts", number, written) if written else ("rollouts", number)
        return Sampling(
            most, options.temperature, options.top_k, options.top_p, options.num_generations,
            seed=int(self._context.generator(*keys).integers(2**31)),
            min_p=options.min_p, repetition_penalty=options.repetition_penalty, stop=tuple(options.stop),
            stop_ids=None if options.stop_ids is None else tuple(options.stop_ids),
            schema=form.get("schema"), regex=form.get("regex"), grammar=form.get("grammar"),
        )  # fmt: skip

    def _batch_prompts(self, indices: Sequence[int]) -> list[tuple[str, tuple[int, ...]]]:
        """Prompts of a batch, and behind them those that are asked again."""
        options, batches = self._options, self._batches
        prompts = [self._prompts.tokens[i] for i in indices]
        if options.reroll_groups and batches.step > options.reroll_start * batches.total_steps:
            again = self._unsolved.again(options.reroll_groups, [id_ for id_, _ in prompts])
            prompts += [(id_, self._prompts.by_id[id_]) for id_ in again]
        return prompts

    def _draw(self, engine: Engine, indices: Sequence[int], stretch: int = 0) -> Draw:
        """Answers to some prompts, which begin to be scored where they are whole.

        Args:
            stretch: tokens of an answer that are written now; 0 is all.
        """
        longest, number = self._options.max_completion_length, self._batches.step
        wanted = self._batch_prompts(indices)
        sampling = self._sampling(number, min(stretch or longest, longest))
        if self._playing is not None:
            return self._play(engine, self._playing, [id_ for id_, _ in wanted], stretch)
        written = 0 if sampling.max_tokens == longest else sampling.max_tokens
        draw = Draw(self._batches.epoch, (), number=number, written=written)
        at_once, seen = self._options.streaming_groups or len(wanted), set[tuple[int, ...]]()
        for first in range(0, len(wanted), at_once):
            some = wanted[first : first + at_once]
            prompts = [Prompt(id_, f"{id_}@{number}", tokens) for id_, tokens in some]
            if seen & {
                tokens for _, tokens in some
            }:  # asked twice in a batch: with the same seed it were answered alike
                other = int(self._context.generator("rollouts", number, "from", first).integers(2**31))
                sampled = self._sampler.sample(engine, prompts, replace(sampling, seed=other))
            else:
                sampled = self._sampler.sample(engine, prompts, sampling)
            seen |= {tokens for _, tokens in some}
            of = tuple((rollout,) for rollout in sampled.rollouts)
            draw.episodes, draw.flops = draw.episodes + of, draw.flops + sampled.flops
            if not draw.written:
                self._scoring.begin(draw, of)
        if draw.written and not draw.open:
            self._scoring.begin(draw)
        return draw

    def _play(self, engine: Engine, playing: Playing, ids: Sequence[str], stretch: int) -> Draw:
        """Episodes of some rows.

        Args:
            stretch: tokens of a turn that are written now; 0 plays them to their end.

        Raises:
            EngineError: an episode failed, and the recipe says that this ends the run.
        """
        number, context, n = self._batches.step, self._context, self._options.num_generations
        seeds = context.generator("environment", number).integers(2**31, size=len(ids))
        tasks = [
            EpisodeTask(id_, f"{id_}@{number}", self._prompts.tasks[id_], int(seed))
            for id_, seed in zip(ids, seeds, strict=True)
        ]
        if stretch:
            draw = Draw(self._batches.epoch, (), number=number, playing=playing.open(engine, tasks, n))
            self._play_on(engine, draw, stretch)
            return draw
        sampling = self._sampling(number, self._options.max_completion_length)

        def seed_of(turn: int) -> int:
            return int(context.generator("rollouts", number, turn).integers(2**31)) if turn else sampling.seed

        played = playing.play(engine, tasks, sampling, seed_of)
        self._tell(played.failures, len(played.episodes))
        draw = Draw(self._batches.epoch, tuple(map(tuple, played.episodes)), played.turns, played.flops)
        if self._schedule.ahead:
            self._scoring.begin(draw)
        return draw

    def _play_on(self, engine: Engine, draw: Draw, stretch: int) -> None:
        """Play a part of a draw's episodes.

        Args:
            stretch: tokens of a turn; 0 plays them to their end.
        """
        playing, episodes = self._playing, draw.playing
        assert playing is not None and episodes is not None
        sampling = self._sampling(draw.number, self._options.max_completion_length)

        def seed_of(part: int, call: int) -> int:
            generator = self._context.generator("rollouts", draw.number, "part", part, call)
            return int(generator.integers(2**31))

        while episodes.going:
            draw.flops += playing.go_on(engine, episodes, sampling, stretch, seed_of)
            if stretch:
                break
        if not episodes.going:
            self._ended(draw)
            self._scoring.begin(draw)

    def _ended(self, draw: Draw) -> None:
        """The episodes of a draw are at their end."""
        playing, episodes = self._playing, draw.playing
        assert playing is not None and episodes is not None
        playing.close(episodes.held)
        draw.episodes, draw.turns, draw.playing = episodes.episodes(), episodes.turns, None
        self._tell(episodes.failures, len(draw.episodes))

    def _tell(self, failures: Sequence[str], count: int) -> None:
        """
        Raises:
            EngineError: an episode failed, and the recipe says that this ends the run.
        """
        if not failures:
            return
        why = f"{len(failures)} of {count} episodes failed, the first: {failures[0]}"
        if self._options.environment_failure == "fail":
            raise EngineError(f"method.environment: {why}", action="fix it, then ft resume RUN")
        self._context.note(f"{why}; see environment/errors and environment/timeouts", topic="episodes failed")
