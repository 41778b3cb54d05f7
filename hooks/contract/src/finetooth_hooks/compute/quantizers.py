"""Quantizers: store the linear weights of a base in fewer bits, and describe the format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Stored:
    """How the linear weights of a model are stored.

    Attributes:
        name: of the format, for messages: `int8 by row`.
        bytes_per_weight: what a weight takes, its share of scales and the like included.
    """

    name: str
    bytes_per_weight: float


class Quantizer(Protocol):
    """Stores the linear weights of a frozen base in fewer bits, and computes with them. A quantizer derives from
    `finetooth_hooks.QuantizerBase`.

    A loader passes it one module after the other while loading, so that the whole model is never in full precision on
    the device: for torch with `finetooth_torchshared.quantised.quantise`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.QUANTIZER`."""
        ...

    @property
    def stored(self) -> Stored:
        """The format of its weights, for the memory estimate."""
        ...

    @property
    def skip(self) -> Sequence[str]:
        """Ends of paths that the recipe excludes. Each must be the end of a weight's path; an unmatched one is refused
        as soon as the names are known."""
        ...

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """Whether it stores this weight.

        Args:
            path: of the linear module in the model, `model.layers.0.mlp.up_proj`.
            shape: (outputs, inputs).
        """
        ...

    def linear(self, module: Any, *, device: str) -> Any:
        """A replacement module on `device` that computes with the quantised weight, and a gradient for its input.

        For torch it has `in_features`, `out_features` and `bias`, keeps its storage in buffers, trains nothing, and is
        not a `torch.nn.Linear`, whose weight other code would read.

        Args:
            module: the framework's linear module with its weight in the run's precision; dropped afterwards.
        """
        ...

    def calibrate(self, model: Any, *, device: str) -> int:
        """Quantise the linear modules of a whole model with calibration; each is replaced as by `linear`. Capability
        `calibrate`: a loader then calls this instead of `linear`.

        Args:
            model: the framework's, in the precision of the run and in host memory; changed in place.

        Returns:
            The number of quantised modules.

        Raises:
            RecipeError: calibration data are missing.
        """
        ...
