"""When rollouts are begun: the logical clock of an asynchronous run.

Time is counted in optimizer steps, and nothing else: which draw begins before which step follows from counts alone,
whatever takes how long. So a run with a seed is the same run again, and one that was killed continues as it would have.

A draw that begins before step t + 1 is drawn by weights of t steps. If the batch that trains has `left` steps to go,
that one included, and `waiting` draws were begun before it that no batch has used yet, then it is trained first after
at most left + waiting * per_batch steps: each batch takes per_batch steps at most and uses one draw or more. That
bounds its staleness, the steps between the weights that drew a token and those that first train on it.

Where weights go to the sampler every N steps, draws begin only after a multiple of N steps. The draws that wait then
last for at least one step more than the bound, so with N no greater than it none is missing before the next multiple.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How far ahead of the batch that trains prompts are answered.

    Attributes:
        ahead: draws that may wait; 0 is one after the other.
        per_batch: optimizer steps of a batch at most.
        staleness: bound on it, in optimizer steps; None: what `ahead` comes to.
        late: a part of a draw may be trained a batch later than the rest.
        every: draws begin only where the steps done are a multiple of it.
    """

    ahead: int
    per_batch: int
    staleness: int | None = None
    late: bool = False
    every: int = 1

    @property
    def bound(self) -> int:
        """The staleness that no draw exceeds."""
        reached = (self.ahead + self.late) * self.per_batch
        return reached if self.staleness is None else min(self.staleness, reached)

    def begins(self, *, left: int, waiting: int, remaining: int, version: int = 0) -> bool:
        """Whether one more draw begins now, before an optimizer step.

        Args:
            left: steps that the batch which trains has to go, the coming one included.
            waiting: draws that were begun and not used.
            remaining: steps that the run has to go, the coming one included; nothing is drawn for after its end.
            version: of the weights: optimizer steps done.
        """
        if version % self.every:
            return False
        until = left + waiting * self.per_batch
        return waiting < self.ahead and until + self.late * self.per_batch <= self.bound and until < remaining
