"""Ways to train a model on a machine, most weights first, each with what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.compute.backends import HardwareFacts
from finetooth_hooks.plan import MemoryEstimate


@dataclass(frozen=True)
class Way:
    """One way to train a model.

    Attributes:
        kind: `whole`, `adapter`, `8 bits`, `4 bits`, `recomputed` or `elsewhere`: what it is beyond those before.
        label: what a person calls it.
        gives_up: all that is lost compared with training every weight as it is.
        changes: settings of the recipe by their dotted paths.
        memory: at the peak, in bytes; None where the combination cannot work.
        lacks: what keeps it from this machine; empty: it fits.
        flops: operations that one row takes; None where it is not known.
    """

    kind: str
    label: str
    gives_up: tuple[str, ...]
    changes: Mapping[str, Any]
    memory: MemoryEstimate | None
    lacks: str = ""
    flops: float | None = None

    @property
    def fits(self) -> bool:
        """Whether it can be taken here."""
        return self.memory is not None and not self.lacks


@dataclass(frozen=True)
class Ways:
    """Every way to train a model on a machine, in the order in which `adapter: auto` tries them.

    Attributes:
        parameters: of the model.
        hardware: the machine.
        length: tokens of a row.
        peak: FLOP/s that the device does at most; 0 where that is not known.
        ways: in their order.
    """

    parameters: int
    hardware: HardwareFacts
    length: int
    peak: float
    ways: tuple[Way, ...]
