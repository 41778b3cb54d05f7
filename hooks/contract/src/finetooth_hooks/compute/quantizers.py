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

    A loader hands it one module after the other while it loads, so that the whole model is never held in full
    precision on the device: for torch with `finetooth_torchshared.quantised.quantise`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.QUANTIZER`."""
        ...

    @property
    def stored(self) -> Stored:
        """What it makes of a weight; the memory estimate counts with that."""
        ...

    @property
    def skip(self) -> Sequence[str]:
        """Ends of paths that the recipe leaves as they are. Each must end the path of a weight of the model: one that
        ends none is refused as soon as the names are known."""
        ...

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        """Whether it stores this weight.

        Args:
            path: of the linear module in the model, `model.layers.0.mlp.up_proj`.
            shape: (outputs, inputs).
        """
        ...

    def linear(self, module: Any, *, device: str) -> Any:
        """A module in its place, on `device`, that gives what the stored weight gives, and a gradient for its input.

        For torch it has `in_features`, `out_features` and `bias`, keeps what it stores in buffers, has nothing that
        trains, and not a `torch.nn.Linear`: code that reads the weight of one would read something else.

        Args:
            module: the framework's linear module with its weight in the precision of the run; dropped afterwards.
        """
        ...

    def calibrate(self, model: Any, *, device: str) -> int:
        """Store the linear modules of a whole model that it takes, by what they read; each is replaced by what `linear`
        would give. Capability `calibrate`: then a loader calls this, and `linear` of no module.

        Args:
            model: the framework's, in the precision of the run and in host memory; changed in place.

        Returns:
            How many modules were stored.

        Raises:
            RecipeError: there is nothing to calibrate it with.
        """
        ...
