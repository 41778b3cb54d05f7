"""Draws: prompts that were answered, with scores that may still be made while the engine trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks.rollouts import Rollout

from finetooth_toolbox.rollouts.rollouts_file import as_json, from_json


@dataclass
class Draw:
    """The answers to some prompts.

    Attributes:
        epoch: passes over the prompts done with them.
        episodes: as sampled, not scored: each of one rollout, or with an environment of one for each stretch of turns.
        turns: of the policy, with an environment.
        flops: that sampling took.
    """

    epoch: float
    episodes: tuple[tuple[Rollout, ...], ...]
    turns: int = 0
    flops: float = 0.0
    _scores: Future[list[Rollout]] | None = field(default=None, repr=False, compare=False)

    def state(self) -> dict[str, Any]:
        """JSON-able. Scores are not part of it: they are made again."""
        episodes = [[as_json(one) for one in episode] for episode in self.episodes]
        return {"epoch": self.epoch, "episodes": episodes, "turns": self.turns, "flops": self.flops}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Draw:
        """What `state` gave."""
        episodes = tuple(tuple(from_json(one) for one in episode) for episode in state["episodes"])
        return cls(float(state["epoch"]), episodes, int(state["turns"]), float(state["flops"]))


Score = Callable[[Draw], list[Rollout]]
"""Gives the rollouts of a draw their rewards."""


class Scoring:
    """Scores draws one after the other, in a thread of its own if they may be scored while the engine trains.

    Args:
        beside: whether they may.
    """

    def __init__(self, score: Score, *, beside: bool) -> None:
        self._score, self._beside = score, beside
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, draw: Draw) -> None:
        """Begin to score a draw, if that may go on beside the engine."""
        if self._beside:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="rewards")
            draw._scores = self._thread.submit(self._score, draw)

    def end(self, draw: Draw) -> list[Rollout]:
        """The rollouts of a draw with their rewards; waits for them.

        Raises:
            FinetoothError: as the rewards.
        """
        scores, draw._scores = draw._scores, None
        return self._score(draw) if scores is None or scores.cancelled() else scores.result()

    def stop(self) -> None:
        """What was begun and is not under way is not scored."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None
