"""Exchanges of an engine with the other ranks that train the same parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from finetooth_hooks import LossSpec
from finetooth_hooks.compute.collectives import check_whole_steps
from finetooth_hooks.protocols import Collective, ShardedOptimizer
from finetooth_steps.agreement import together
from finetooth_steps.passes import Counters

from finetooth_torch.updates.parameters import TrainedParameters


class Ranks:
    """Sums one rank's gradients with those of the others.

    Each rank holds gradients of its own examples, normalised over the step of all ranks; their sum is the step's
    gradient. It is bit-identical at every rank, so all clip and skip alike and get the same weights.

    Args:
        collective: None for a single rank.
        spread: the optimizer, if each rank keeps a part of the gradients and of its state; None: each keeps all.
        joint: ranks divide the positions of rows, or the layers.

    Attributes:
        joint: no rank computes the model alone: each has parts of it, or some positions of a row.
        stops_together: no rank can save alone, so all of them stop at the same call.
    """

    def __init__(
        self, parameters: TrainedParameters, collective: Collective | None, spread: ShardedOptimizer | None = None, *,
        joint: bool = False,
    ) -> None:  # fmt: skip
        self._parameters, self._collective, self._spread = parameters, collective, spread
        self.joint = joint or parameters.sharded
        self.stops_together = self.joint or spread is not None

    def check_loss(self, loss: LossSpec) -> None:
        """Checks that the loss can be computed from one rank's part.

        Raises:
            PlanError: the loss needs a whole step, and each rank has only its part.
        """
        if self._collective is not None:
            check_whole_steps([loss], self._collective)

    def norm(self) -> float:
        """Global L2 norm of the gradients of all ranks, in fp32; the gradients do not change."""
        if self._collective is None or self._parameters.sharded:
            return self._parameters.norm()
        return self._parameters.norm_of(self._summed(self._collective))

    def share_gradients(self) -> None:
        """Replace every rank's gradients by the sum over all ranks, or its part of it."""
        if self._spread is not None:
            self._spread.share()
            return
        if self._collective is None or self._parameters.sharded:  # then the backward pass has summed them
            return
        for place, gradient in self._summed(self._collective).items():
            self._parameters.masters[place].grad = gradient

    def waiting(self, counters: Counters) -> tuple[dict[str, torch.Tensor], Counters]:
        """The accumulated gradients by the names of masters, with their counts, for a saved state; summed if each rank
        has its own."""
        named = self._parameters.named()
        gradients = {name: master.grad for name, master in named if master.grad is not None}
        if self._collective is None or not counters.accumulated:
            return gradients, counters
        counters = replace(counters, loss=self.total(counters.loss), rows=list(self.rows(counters.rows)))
        if self._add_up:
            gradients = {named[place][0]: total for place, total in self._summed(self._collective).items()}
        return gradients, counters

    def took(self, counters: Counters) -> None:
        """After every rank has loaded a state, only the first one keeps its gradients, since ranks add up."""
        if self._collective is not None and self._collective.rank > 0:
            counters.loss, counters.rows = 0.0, []
            if self._add_up:
                self._parameters.zero_grad()

    @property
    def _add_up(self) -> bool:
        """Whether a step sums gradients, of which each rank has all parameters'."""
        return self._collective is not None and not self._parameters.sharded and not self._parameters.staged

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error in the `with` block at one rank ends it at every rank; see `finetooth_steps.agreement.together`."""
        if self._collective is None:
            yield
            return
        with together(self._collective, joint=self.joint):
            yield

    def any(self, own: bool) -> bool:
        """Whether it is true at some rank."""
        return own if self._collective is None else any(self._collective.gather(own))

    def finite_weights(self) -> bool:
        """Whether this rank's trained parameters are finite."""
        weights = self._parameters.masters if self.sharded else self._parameters.live
        return all(bool(weight.isfinite().all()) for weight in weights if not weight.is_meta)

    def missing(self, rounds: int) -> int:
        """How many more passes some rank makes in a call than this one: with a sharded model all need as many."""
        if self._collective is None or not self._parameters.sharded:
            return 0
        return int(max(self._collective.gather(rounds))) - rounds

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the model, so that none computes alone."""
        return self._parameters.sharded

    def total(self, own: float) -> float:
        """The sum over all ranks, in their order."""
        return own if self._collective is None else float(sum(self._collective.gather(own)))

    def sums(self, own: Sequence[float]) -> list[float]:
        """The sums over all ranks, number by number; a rank without numbers adds none."""
        by_rank = [own] if self._collective is None else self._collective.gather(list(own))
        return [float(sum(of)) for of in zip(*filter(None, by_rank), strict=True)]

    def rows(self, own: Iterable[str]) -> tuple[str, ...]:
        """Ids of rows at all ranks, in their order."""
        own = list(own)
        return tuple(
            own if self._collective is None else [row for rows in self._collective.gather(own) for row in rows]
        )

    def _summed(self, collective: Collective) -> dict[int, torch.Tensor]:
        """Sums by index of the master; a rank without a gradient that others have adds zeros."""
        masters = self._parameters.masters
        has = [float(master.grad is not None) for master in masters]
        present = collective.sum([torch.tensor(has, device=self._parameters.device)])[0].tolist() if masters else []
        places = [place for place, ranks in enumerate(present) if ranks]
        own = [masters[place].grad for place in places]
        gradients = [
            torch.zeros_like(masters[place]) if gradient is None else gradient.detach()
            for place, gradient in zip(places, own, strict=True)
        ]
        sums = dict(zip(places, collective.sum(gradients) if gradients else [], strict=True))
        return self._parameters.joined(sums)
