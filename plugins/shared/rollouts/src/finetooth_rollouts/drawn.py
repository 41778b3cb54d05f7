"""A batch of rollouts that is being filled, with its counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from finetooth_hooks.errors import DataError
from finetooth_hooks.rollouts import Rollout


class NothingToLearn(DataError):
    """Batch after batch was passed over.

    Args:
        drawn: the sampled rollouts.
    """

    def __init__(self, drawn: Drawn) -> None:
        if drawn.all_left_out:
            by = ", ".join(f"{name} {count}" for name, count in drawn.left_out.items() if name)
            super().__init__(
                "method.rewards",
                f"all {drawn.sampled} answers so far were left out ({by or 'no reward scores them'}), so there is "
                "nothing to learn from",
                action="read what the notes say of the first ones, and try the rewards on them",
            )
            return
        super().__init__(
            "method.rewards",
            f"in the last {drawn.passed_over} batches no group has rewards that differ, so there is nothing to "
            "learn from",
            action="look at the answers and try the rewards on them, or begin from a model that is right sometimes",
        )


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
        replayed: groups of earlier batches among them.
        late: groups with unfinished answers, which are not among them.
        epoch: passes over the prompts done with them.
        judged: mean reward of what was last sampled for it; None if nothing of that has a reward.
    """

    rollouts: list[Rollout] = field(default_factory=list)
    sampled: int = 0
    passed_over: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    flops: float = 0.0
    errors: int = 0
    timeouts: int = 0
    turns: int = 0
    replayed: int | None = None
    late: int | None = None
    epoch: float = 0.0
    judged: float | None = None

    @property
    def all_left_out(self) -> bool:
        """Something was sampled, and no reward scored any of it."""
        return 0 < self.sampled == self.left_out[""]

    def count_left_out(self, rollouts: Iterable[Rollout]) -> None:
        """Count which rewards left rollouts out."""
        for rollout in rollouts:
            self.left_out.update(name for name, score in rollout.rewards.items() if score is None)
            self.left_out.update([""] if rollout.reward is None else [])

    def metrics(self) -> dict[str, float]:
        """What is reported of it. Of each reward that left rollouts out, how many; `left_out` is those that all did,
        which are not trained."""
        numbers = {"skipped_zero_adv_batches": float(self.passed_over), "num_rollouts": float(self.sampled)}
        numbers |= {f"rewards/{name}/left_out" if name else "left_out": float(n) for name, n in self.left_out.items()}
        for name, count in (("replayed_groups", self.replayed), ("late_groups", self.late)):
            numbers |= {} if count is None else {name: float(count)}
        if self.turns:
            numbers |= {"environment/errors": float(self.errors), "environment/timeouts": float(self.timeouts)}
            numbers["environment/turns"] = self.turns / self.sampled
        return numbers
