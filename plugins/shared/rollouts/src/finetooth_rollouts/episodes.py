"""Rollouts of an environment: episodes of several turns, played side by side.

Turn by turn the policy is asked for all unfinished episodes, and the environment for its answers. What becomes a
sequence of tokens is exactly what the policy read and wrote:

    prompt | turn 1 | what follows it | turn 2 | ...        one sequence, the turns are trained
    prompt 1 | turn 1,   prompt 2 | turn 2,   ...           each turn its own

The first where the prompt of a turn begins with the tokens of the prompt and the turn before it. A renderer with the
property `extension` writes every conversation so; then what stands between two turns is all that is ever tokenised
after the first prompt. Without it the conversation is written again for each turn, as the family's markup asks (it
drops old reasoning, say), and turns whose tokens come out otherwise begin a sequence of their own.

Of several ranks, only the first one calls the environment: each of them samples, and gets what it said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Task
from finetooth_hooks.engine import Engine
from finetooth_hooks.environments import Environment, Episode
from finetooth_hooks.errors import EngineError
from finetooth_hooks.protocols import Sampler
from finetooth_hooks.rollouts import Prompt, Rollout
from finetooth_hooks.sampling import Sampling

from finetooth_rollouts.calls import Failure, Returned, call_all
from finetooth_rollouts.live_episode import EndedEpisode, EpisodeTask, LiveEpisode
from finetooth_rollouts.open_episodes import OpenEpisodes
from finetooth_rollouts.rollouts_file import from_json

__all__ = ["EpisodeTask", "Played", "Playing"]

_T = TypeVar("_T")


@dataclass
class Played:
    """The played episodes.

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

    def play(
        self, engine: Engine, tasks: Sequence[EpisodeTask], sampling: Sampling, seeds: Callable[[int], int]
    ) -> Played:
        """Play `sampling.n` episodes of each.

        Args:
            seeds: from the number of a turn, from 0, to the seed of its sampling.

        Raises:
            DataError: the environment cannot use a row, or the family cannot say what it shows first.
        """
        live = self._made(engine, tasks, sampling.n)
        played = Played()
        try:
            self._begin(engine, live)
            for turn in range(self._most):
                going = self._going(live, sampling.max_tokens)
                if not going:
                    break
                self._say(engine, going, replace(sampling, seed=seeds(turn)), played)
                self._answer(engine, going)
                played.turns += len(going)
        finally:
            self.close(live)
        played.episodes = [list(episode.rollouts(self._name)) for episode in live]
        played.failures = [episode.failure for episode in live if episode.failure]
        return played

    def open(self, engine: Engine, tasks: Sequence[EpisodeTask], n: int) -> OpenEpisodes:
        """Begin `n` episodes of each, to be played by `go_on`, and let go by `close`.

        Raises:
            DataError: as `play`.
        """
        live = self._made(engine, tasks, n)
        try:
            self._begin(engine, live)
        except BaseException:
            self.close(live)
            raise
        return OpenEpisodes(self._name, live)

    def go_on(
        self, engine: Engine, episodes: OpenEpisodes, sampling: Sampling, stretch: int, seeds: Callable[[int, int], int]
    ) -> float:
        """Play a part of each unfinished episode: its turn is continued, and answered once it has ended.

        Args:
            sampling: of a whole turn.
            stretch: so many tokens of it are written; 0 is all.
            seeds: from the number of the part, and of a call of the sampler in it, to the seed of its sampling.

        Returns:
            operations that sampling took.
        """
        longest, flops = sampling.max_tokens, 0.0
        going = self._going(episodes.going, longest)
        ways: dict[tuple[Any, ...], list[LiveEpisode]] = {}
        for episode in going:
            most = min(stretch or longest, episode.left(longest))
            ways.setdefault((most, episode.stop, episode.stop_ids), []).append(episode)
        ended: list[LiveEpisode] = []
        for call, ((most, stop, stop_ids), of) in enumerate(ways.items()):
            seed = seeds(episodes.parts, call)
            now = replace(sampling, max_tokens=most, stop=stop, stop_ids=stop_ids, seed=seed)
            prompts, n = _shared([Prompt(e.asked.id, e.asked.group, e.prompt) for e in of], sampling.n)
            drawn = self._sampler.sample(engine, prompts, replace(now, n=n))
            flops += drawn.flops
            ended += [episode for episode, rollout in zip(of, drawn.rollouts, strict=True)
                      if episode.wrote_on(rollout, most, longest)]  # fmt: skip
        self._answer(engine, ended)
        episodes.parts += 1
        return flops

    def close(self, live: Sequence[LiveEpisode]) -> None:
        """Close episodes, which releases their resources."""
        held = [episode.episode for episode in live if episode.episode is not None]
        call_all([episode.close for episode in held], self._limit, together=self._together)

    def again(self, engine: Engine, state: Mapping[str, Any], tasks: Mapping[str, Task]) -> OpenEpisodes:
        """The episodes of a state; unfinished ones are played again up to where they were.

        Raises:
            EngineError: the environment's answers differ from the recorded ones.
        """
        records = [record for record in state["episodes"] if "found" not in record]
        asked = [EpisodeTask(of["id"], of["group"], tasks[of["id"]], int(of["seed"])) for of in records]
        live = self._episodes(engine, asked, [of["key"] for of in records])
        pairs, unfinished = list(zip(live, records, strict=True)), iter(live)
        episodes = [
            EndedEpisode(of["group"], tuple(map(from_json, of["found"])), int(of["count"]))
            if "found" in of
            else next(unfinished)
            for of in state["episodes"]
        ]
        try:
            self._begin(engine, live)
            for turn in range(max((len(of["turns"]) for _, of in pairs), default=0)):
                going = [(episode, from_json(of["turns"][turn])) for episode, of in pairs if len(of["turns"]) > turn]
                for episode, rollout in going:
                    self._check(episode, rollout.prompt)
                    episode.wrote(rollout)
                self._answer(engine, [episode for episode, _ in going])
            for episode, of in pairs:
                self._check(episode, tuple(of["prompt"]))
                episode.begun = None if of["begun"] is None else from_json(of["begun"])
        except BaseException:
            self.close(live)
            raise
        return OpenEpisodes(self._name, episodes, int(state["parts"]))

    def _check(self, episode: LiveEpisode, prompt: tuple[int, ...]) -> None:
        """
        Raises:
            EngineError: it is not asked now what it was asked then.
        """
        if episode.ended or episode.prompt != prompt:
            why = episode.failure or "it says something else than it did"
            raise EngineError(
                f"method.environment: {self._name}: an episode of {episode.asked.id} cannot be played again up to "
                f"where the run ended: {why}",
                action="ft resume RUN once it answers as before, or leave method.partial_rollouts out",
            )

    def _made(self, engine: Engine, tasks: Sequence[EpisodeTask], n: int) -> list[LiveEpisode]:
        asked = [ask for ask in tasks for _ in range(n)]
        return self._episodes(engine, asked, [f"{ask.group}#{k}" for ask in tasks for k in range(n)])

    def _episodes(self, engine: Engine, asked: Sequence[EpisodeTask], keys: Sequence[str]) -> list[LiveEpisode]:
        made: list[Episode | None] = [None] * len(asked)

        def make() -> None:
            made[:] = [self._environment.episode(ask.task, ask.seed) for ask in asked]

        engine.first(make)
        return [LiveEpisode(self._context, *of) for of in zip(asked, keys, made, strict=True)]

    def _going(self, live: Sequence[LiveEpisode], turn: int) -> list[LiveEpisode]:
        """The unfinished episodes that have room.

        Args:
            turn: tokens of a turn.
        """
        most = self._longest()
        return [episode for episode in live if episode.room(most, turn)]

    @property
    def _together(self) -> bool:
        return "concurrent" in self._environment.capabilities

    def _longest(self) -> int:
        """Tokens of a sequence at most."""
        bounds = (self._context.train.max_length + 1, self._context.facts.max_positions or 0)
        return min(bound for bound in bounds if bound)

    def _begin(self, engine: Engine, live: Sequence[LiveEpisode]) -> None:
        outcomes = self._call(engine, [episode.observed for episode in live])
        for episode, outcome in zip(live, outcomes, strict=True):
            if isinstance(outcome, Failure):
                episode.fail(outcome)
            else:
                episode.begin(outcome.value)

    def _say(self, engine: Engine, going: Sequence[LiveEpisode], sampling: Sampling, played: Played) -> None:
        """One turn of the policy in each."""
        ways = dict.fromkeys((episode.stop, episode.stop_ids) for episode in going)
        for stop, stop_ids in ways:
            of = [episode for episode in going if (episode.stop, episode.stop_ids) == (stop, stop_ids)]
            prompts, n = _shared([Prompt(e.asked.id, e.asked.group, e.prompt) for e in of], sampling.n)
            drawn = self._sampler.sample(engine, prompts, replace(sampling, n=n, stop=stop, stop_ids=stop_ids))
            played.flops += drawn.flops
            for episode, rollout in zip(of, drawn.rollouts, strict=True):
                episode.wrote(rollout)

    def _answer(self, engine: Engine, going: Sequence[LiveEpisode]) -> None:
        """One answer of the environment to each."""
        outcomes = self._call(engine, [episode.answer for episode in going])
        for episode, outcome in zip(going, outcomes, strict=True):
            if isinstance(outcome, Failure):
                episode.fail(outcome)
            else:
                episode.take(outcome.value, last=len(episode.turns) >= self._most)

    def _call(self, engine: Engine, functions: Sequence[Callable[[], _T]]) -> list[Returned[_T] | Failure]:
        return engine.first(lambda: call_all(functions, self._limit, together=self._together)) if functions else []


def _shared(prompts: Sequence[Prompt], n: int) -> tuple[list[Prompt], int]:
    """Prompts to sample, and how often each: once for a group whose episodes all begin alike."""
    if len(prompts) % n == 0:
        blocks = [prompts[i : i + n] for i in range(0, len(prompts), n)]
        if all(prompt == block[0] for block in blocks for prompt in block):
            return [block[0] for block in blocks], n
    return list(prompts), 1
