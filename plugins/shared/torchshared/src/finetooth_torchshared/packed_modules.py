"""A packed linear module in a file: its names, and the conversion of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from finetooth_hooks.errors import RecipeError
from torch import Tensor

from finetooth_torchshared.grouped_linear import Grouped, GroupedLinear
from finetooth_torchshared.quantised import DequantisingLinear

Read = Callable[[str], Tensor]
"""A tensor of the module's by the last part of its name; KeyError if there is none."""


@dataclass(frozen=True)
class Packing:
    """How the linear weights of a checkpoint are packed.

    Attributes:
        tells: the tensor by which a packed module is known: `qweight`.
        read: from a module's tensors to its weight, or to the module without its bias. A weight may be
            (groups, inputs of a group), where the file does not say how many outputs there are.
    """

    tells: str
    read: Callable[[Read], Grouped | DequantisingLinear]

    def module(self, tensor: Read, outputs: int = 0) -> DequantisingLinear:
        """The linear module of these tensors.

        Args:
            outputs: of the module in its model; 0: as many as the file says.
        """
        weight = self.read(tensor)
        if isinstance(weight, Grouped):
            weight = GroupedLinear(_by_outputs(weight, outputs) if outputs else weight)
        with suppress(KeyError):
            weight.bias = tensor("bias")
        return weight


def _by_outputs(weight: Grouped, outputs: int) -> Grouped:
    """A weight whose rows are groups, or outputs, with a row for each output."""
    if len(weight.codes) == outputs or weight.codes.numel() % outputs or len(weight.codes) % outputs:
        return weight
    zeros = None if weight.zeros is None else weight.zeros.reshape(outputs, -1)
    return replace(
        weight, codes=weight.codes.reshape(outputs, -1), scales=weight.scales.reshape(outputs, -1), zeros=zeros
    )


def unread(where: str, what: str, read: str) -> RecipeError:
    """The refusal of a format that is not read.

    Args:
        where: the model.
        read: what is.
    """
    return RecipeError(
        "model",
        f"{where} is stored as {what}, which finetooth cannot read; it reads {read}",
        action="take another quantisation of the model, or the model itself with quantization: int4",
    )
