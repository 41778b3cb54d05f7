"""What a quantised module stores as one row of bytes, of which ranks can hold a part each.

A strategy divides parameters, and a quantised module has buffers, of several types and shapes. As a row of bytes they
are one parameter that is divided evenly, and that no precision of the run changes."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, ClassVar, cast

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Neighbours
from finetooth_torchshared.quantised import QuantisedLinear
from torch import Tensor, nn

ROW = "stored_row"
PART = "_part_of_row"
ALIGNED = 16
"""Bytes that a tensor begins at multiples of."""


def put_in_rows(module: nn.Module) -> None:
    """Turn the buffers of every quantised module inside into views of one parameter, `ROW`; biases stay as they are.

    The numbers that the modules compute with are the same. What it has done before, it leaves.

    Raises:
        PlanError: a module stores what has no plain bytes.
    """
    for path, inner in module.named_modules():
        if isinstance(inner, QuantisedLinear) and ROW not in inner._parameters:
            if PART in vars(inner):
                inner.register_parameter(ROW, nn.Parameter(vars(inner).pop(PART).whole(), requires_grad=False))
            else:
                _put_in_row(path, inner)
    RowPart.gathered = None


def keep_part(path: str, module: nn.Module, line: Neighbours, device: str) -> None:
    """Leave a quantised module this rank's part of its row alone, until `put_in_rows`. Where the module computes before
    that, its row is gathered, and all ranks have it compute in the same order.

    Args:
        line: to the ranks that have the other parts.
        device: on which they exchange.

    Raises:
        PlanError: as `put_in_rows`.
    """
    _put_in_row(path, module)
    row = module._parameters.pop(ROW)
    assert row is not None
    vars(module)[PART] = RowPart(row.detach(), line, device)


class RowPart:
    """A rank's part of a row.

    Attributes:
        gathered: the part whose row was gathered last, and that row: a module reads it in several pieces.
    """

    gathered: ClassVar[tuple[RowPart, Tensor] | None] = None

    def __init__(self, row: Tensor, line: Neighbours, device: str) -> None:
        self._length, self._line, self._device = len(row), line, device
        size = -(-len(row) // line.world)
        own = row[line.rank * size :][:size]
        self.part = nn.functional.pad(own, (0, size - len(own))) if len(own) < size else own.clone()

    def whole(self) -> Tensor:
        """The row, in host memory."""
        last = RowPart.gathered
        if last is None or last[0] is not self:
            RowPart.gathered = last = None  # before there is another
            row = torch.cat(self._line.all_gather(self.part.to(self._device)))
            RowPart.gathered = last = (self, row[: self._length].cpu())
        return last[1]


def _put_in_row(path: str, module: nn.Module) -> None:
    stored = {name: of for name, of in module._buffers.items() if of is not None and name != "bias"}
    odd = [name for name, of in stored.items() if type(of) is not Tensor or of.layout != torch.strided]
    if odd or not stored or any(module.parameters(recurse=False)):
        raise PlanError(
            f"scale.strategy: it divides the model among ranks, and {path} ({type(module).__name__}) does not store "
            "its weight in plain buffers",
            action="choose another quantization, or scale.strategy: ddp",
        )
    pieces, places, end = list[Tensor](), dict[str, tuple[int, torch.dtype, torch.Size]](), 0
    for name, of in stored.items():
        places[name] = end, of.dtype, of.shape
        bytes_ = of.contiguous().reshape(-1).view(torch.uint8)
        padded = nn.functional.pad(bytes_, (0, -len(bytes_) % ALIGNED))
        pieces.append(padded)
        end += len(padded)
        del module._buffers[name]
    module.register_parameter(ROW, nn.Parameter(torch.cat(pieces), requires_grad=False))
    vars(module)["_places"] = places
    made: Any = type(module)
    module.__class__ = _class_of(made, tuple(stored))


@cache
def _class_of(made: type[nn.Module], names: tuple[str, ...]) -> type[QuantisedLinear]:
    """The class of a module whose buffers of these names are in a row."""

    def reads(name: str) -> property:
        def read(self: Any) -> Tensor:
            first, dtype, shape = self._places[name]
            row: Tensor = self._parameters[ROW] if ROW in self._parameters else vars(self)[PART].whole()
            return row[first : first + prod(shape) * dtype.itemsize].view(dtype).view(shape)

        return property(read)

    content: dict[str, Any] = {name: reads(name) for name in names}
    first = property(lambda self: self._parameters[ROW] if ROW in self._parameters else vars(self)[PART].part)
    content.update(qweight=first, __module__=made.__module__)
    return cast("type[QuantisedLinear]", type(made.__name__, (made,), content))
