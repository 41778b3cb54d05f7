"""Draws: prompts that were answered, with scores that may still be made while the engine trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.rollouts import Rollout

from finetooth_rollouts.open_episodes import OpenEpisodes
from finetooth_rollouts.rollouts_file import as_json, from_json
from finetooth_rollouts.stretches import unfinished

Episode = tuple[Rollout, ...]
"""Rollouts of one answer, or of one episode of an environment."""


@dataclass
class Draw:
    """The answers to some prompts.

    Attributes:
        epoch: passes over the prompts done with them.
        episodes: as sampled, not scored: each of one rollout, or with an environment of one for each stretch of turns.
        turns: of the policy, with an environment.
        flops: that sampling took.
        number: of the batch of prompts.
        written: tokens that answers could have by now, where they are written a stretch at a time; 0 where they are
            whole.
        playing: its episodes, while they are played a part at a time; `episodes` is empty until they end.
    """

    epoch: float
    episodes: tuple[Episode, ...]
    turns: int = 0
    flops: float = 0.0
    number: int = 0
    written: int = 0
    playing: OpenEpisodes | None = None
    _scores: list[Future[list[Rollout]]] = field(default_factory=list, repr=False, compare=False)

    @property
    def count(self) -> int:
        """Episodes."""
        return len(self.episodes if self.playing is None else self.playing)

    @property
    def open(self) -> bool:
        """Whether one of its answers is unfinished."""
        if self.playing is not None:
            return bool(self.playing.going)
        return any(self.goes_on(episode) for episode in self.episodes)

    def goes_on(self, episode: Episode) -> bool:
        """Whether an answer is unfinished."""
        return bool(self.written) and unfinished(episode[-1], self.written)

    def state(self) -> dict[str, Any]:
        """JSON-able. Scores are not part of it: they are made again."""
        plain = {"epoch": self.epoch, "turns": self.turns, "flops": self.flops, "number": self.number}
        episodes = [[as_json(rollout) for rollout in episode] for episode in self.episodes]
        playing = {} if self.playing is None else {"playing": self.playing.state()}
        return {**plain, "written": self.written, "episodes": episodes, **playing}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Draw:
        """What `state` gave, but for `playing`: that needs the environment."""
        episodes = tuple(tuple(from_json(rollout) for rollout in episode) for episode in state["episodes"])
        plain = float(state["epoch"]), episodes, int(state["turns"]), float(state["flops"])
        return cls(*plain, int(state["number"]), int(state["written"]))


Score = Callable[[Sequence[Episode]], list[Rollout]]
"""Gives the rollouts of some episodes their rewards."""


class Scoring:
    """Scores draws one after the other, in a thread of its own if they may be scored while the engine trains.

    Args:
        concurrent: whether they may.

    Attributes:
        idle: another rank scores.
    """

    idle = False

    def __init__(self, score: Score, *, concurrent: bool) -> None:
        self._score, self._concurrent = score, concurrent
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, draw: Draw, episodes: Sequence[Episode] | None = None) -> None:
        """Begin to score a draw, if that may run while the engine trains.

        Args:
            episodes: those that come next of it; default: all.
        """
        if self._concurrent and not self.idle:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="rewards")
            draw._scores.append(self._thread.submit(self._score, draw.episodes if episodes is None else episodes))

    def end(self, draw: Draw) -> list[Rollout]:
        """The rollouts of a draw with their rewards; waits for them.

        Raises:
            FinetoothError: as the rewards.
        """
        scores, draw._scores = draw._scores, []
        if not scores or any(future.cancelled() for future in scores):
            return self._score(draw.episodes)
        return [rollout for future in scores for rollout in future.result()]

    def stop(self) -> None:
        """What was begun and is not under way is not scored."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
