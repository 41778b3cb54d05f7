"""Collectives: sums and gathers over the ranks that train one set of parameters."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.errors import PlanError


class Collective(Protocol):
    """One rank's line to the others. Every rank makes the same calls in the same order; a call returns once all have
    made it.

    An engine with one expects that the calls of all ranks together hold the examples of a step, that each call gets the
    normalizers of the whole step (`normalizer`), and that all ranks call the training primitives (`forward` with a
    loss, `backward`, `forward_backward`, `step`) in the same order. An error at one rank, such as a loss that is not
    finite, is raised at every rank, and the call has no effect at any.
    """

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        ...

    @property
    def world(self) -> int:
        """The number of ranks."""
        ...

    def sum(self, arrays: Sequence[Any]) -> list[Any]:
        """The element-wise sums over all ranks, bit-identical at each of them.

        Args:
            arrays: of the backend's framework, in the same order, shapes and types at every rank; not changed.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks: JSON-able, NumPy arrays and dataclasses of these."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, at every rank; see `gather`."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called it."""
        ...

    def reduce_scatter(self, arrays: Sequence[Any]) -> Any:
        """This rank's array of the sums over all ranks.

        Args:
            arrays: of the backend's framework, one for each rank, all of one shape and type; not changed.
        """
        ...


class PatientCollective(Collective, Protocol):
    """A line whose ranks can wait for one that is busy, such as with a slow disk, for as long as its process lives."""

    def waits(self) -> AbstractContextManager[None]:
        """Every rank enters and leaves; what it gives may be entered again inside. Leaving returns once all ranks are
        there, however long one of them was busy inside.

        Raises:
            EngineError: behind the body, where a rank has ended, or its process is silent.
        """
        ...


def is_first(collective: Collective) -> bool:
    """Whether this rank is the source of `broadcast`. All ranks call it together. Its number does not tell: on a line
    between groups that compute the same rows, several count as the first."""
    own = secrets.token_hex(16)
    return bool(collective.broadcast(own) == own)


def check_whole_steps(losses: Iterable[LossSpec], collective: Collective) -> None:
    """Refuse losses that one rank's engine cannot compute from its own rows.

    A backend calls this with the loss of each call that has a collective (torch's `ranks.py`). An engine in front of
    the ranks' engines, as in `ddp`, never passes on such a loss: it first computes the loss over the whole step, and
    gives each rank its gradients (`finetooth_steps.sharding`).

    Raises:
        PlanError: a loss needs a whole step at once (`together: step`), and each of several ranks has only a part.
    """
    for loss in losses:
        if loss.together == "step" and collective.world > 1:
            raise PlanError(
                f"loss {loss.name}: it must see a whole step at once, and each of {collective.world} ranks has a part "
                "of it",
                action="train on one rank, or choose a loss of sequences or groups",
            )
