"""A micro-batch as tensors on a device, from `finetooth_steps.rectangles`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from finetooth_hooks import Datum, LossData
from finetooth_kernels.memory import placed
from finetooth_steps import rectangles
from finetooth_steps.micro_batches import MicroBatch
from numpy.typing import NDArray
from torch import Tensor

Rectangle = rectangles.Rectangle[Tensor]
"""S rows of T positions, padded on the right."""


def make_rectangle(data: Sequence[Datum], batch: MicroBatch, *, pad_id: int, device: torch.device) -> Rectangle:
    """Tensors of `batch` on `device`."""
    return rectangles.make_rectangle(data, batch, pad_id=pad_id, convert=_placed(device))


def counted_cells(rectangle: Rectangle) -> Tensor:
    """(M,) indices of the cells where the mask is true, in order."""
    if rectangle.counted is not None:
        return rectangle.counted
    return rectangle.mask.flatten().nonzero().squeeze(1)


def on_host(rectangle: Rectangle) -> rectangles.OnHost:
    """Its arrays in NumPy, read from the device unless they were kept."""
    if rectangle.host is not None:
        return rectangle.host
    tokens, mask = (of.cpu().numpy() for of in (rectangle.tokens, rectangle.mask))
    return rectangles.OnHost(tokens, mask, None if rectangle.positions is None else rectangle.positions.cpu().numpy())


def loss_data(data: Sequence[Datum], rectangle: Rectangle, dtype: torch.dtype) -> LossData:
    """A loss's batch from a rectangle.

    Args:
        data: of the step, checked by `check_fields`.
        dtype: of fields and scalars.
    """
    convert = _placed(rectangle.mask.device, dtype)
    return rectangles.loss_data(data, rectangle.batch, convert, rectangle=rectangle)


def _placed(device: torch.device, dtype: torch.dtype | None = None) -> Callable[[NDArray[Any]], Tensor]:
    """Makes tensors on `device`, floats in `dtype`."""

    def convert(values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        return placed(tensor, device, dtype if tensor.is_floating_point() else None)

    return convert
