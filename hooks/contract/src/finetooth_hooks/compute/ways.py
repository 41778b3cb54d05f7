"""Ways to train a model on a machine, most trained weights first, with their memory and cost."""

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
        kind: `whole`, `adapter`, `8 bits`, `4 bits`, `recomputed` or `elsewhere`: its addition to the previous ways.
        label: for people.
        gives_up: all its disadvantages compared with full fine-tuning.
        changes: settings of the recipe by their dotted paths.
        memory: peak bytes; None if the combination cannot work.
        lacks: why this machine cannot use it; empty: it fits.
        flops: operations per row; None if unknown.
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
        """Whether this machine can use it."""
        return self.memory is not None and not self.lacks


@dataclass(frozen=True)
class Ways:
    """Every way to train a model on a machine, in the order in which `adapter: auto` tries them.

    Attributes:
        parameters: of the model.
        hardware: the machine.
        length: tokens of a row.
        peak: the device's peak FLOP/s; 0 if unknown.
        ways: in their order.
    """

    parameters: int
    hardware: HardwareFacts
    length: int
    peak: float
    ways: tuple[Way, ...]
