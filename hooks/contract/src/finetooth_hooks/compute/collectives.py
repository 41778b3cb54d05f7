"""Collectives: how the ranks that train one set of parameters add and gather."""

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

    An engine that has one expects that each rank's calls together hold the data of a step, that each call is given the
    normalizers of the whole step (`normalizer`), and that all ranks make the same calls of the primitives that train
    (`forward` with a loss, `backward`, `forward_backward`, `step`) in the same order. What one of them raises at one
    rank, such as a loss that is not finite, is raised at every rank, and nothing of the call stays at any.
    """

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def sum(self, arrays: Sequence[Any]) -> list[Any]:
        """Element by element, the sums over all ranks: the same bits at each of them.

        Args:
            arrays: of the backend's framework, in the same order, shapes and types at every rank; left as they are.
        """
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in the order of ranks: JSON-able, NumPy arrays and dataclasses of these."""
        ...

    def broadcast(self, value: Any) -> Any:
        """What rank 0 gave, at every rank; see `gather`."""
        ...

    def barrier(self) -> None:
        """Return once every rank has come here."""
        ...

    def reduce_scatter(self, arrays: Sequence[Any]) -> Any:
        """This rank's array of the sums over all ranks.

        Args:
            arrays: of the backend's framework, one for each rank, all of one shape and type; left as they are.
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
    """Whether what this rank says holds for all of a line, as `broadcast` has it. Every rank asks at the same time. Its
    number does not say it: on a line between groups that compute the same rows, several count as the first."""
    own = secrets.token_hex(16)
    return bool(collective.broadcast(own) == own)


def check_whole_steps(losses: Iterable[LossSpec], collective: Collective) -> None:
    """Refuse losses that one rank's engine cannot compute from its own rows.

    A backend calls this with the loss of each call that has a collective (torch's `ranks.py`). An engine in front of
    the ranks' engines, as `ddp` has it, never hands on such a loss: it computes the loss over the whole step first, and
    gives each rank the slopes (`finetooth_steps.sharding`).

    Raises:
        PlanError: a loss must see a whole step at once (`together: step`), and each of several ranks has a part of it.
    """
    for loss in losses:
        if loss.together == "step" and collective.world > 1:
            raise PlanError(
                f"loss {loss.name}: it must see a whole step at once, and each of {collective.world} ranks has a part "
                "of it",
                action="train on one rank, or choose a loss of sequences or groups",
            )
