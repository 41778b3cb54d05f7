"""A micro-batch as tensors on a device, from `finetooth_steps.rectangles`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Datum, LossData
from finetooth_steps import rectangles
from finetooth_steps.micro_batches import MicroBatch
from torch import Tensor

from finetooth_torch.offload.transfers import placed_together

Rectangle = rectangles.Rectangle[Tensor]
"""S rows of T positions, padded on the right."""


def make_rectangle(data: Sequence[Datum], batch: MicroBatch, *, pad_id: int, device: torch.device) -> Rectangle:
    """Tensors of `batch` on `device`."""
    made: Any = rectangles.make_rectangle(data, batch, pad_id=pad_id, convert=np.asarray)
    arrays = {name: getattr(made, name) for name in ("tokens", "positions", "mask", "targets", "counted")}
    names = [name for name, values in arrays.items() if values is not None]
    tensors = placed_together([arrays[name] for name in names], device)
    return replace(made, **dict(zip(names, tensors, strict=True)))


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
    as_it_is: Any = np.asarray
    made = rectangles.loss_data(data, rectangle.batch, as_it_is, rectangle=rectangle)
    arrays = [*made.fields.values(), *made.scalars.values(), made.group]
    tensors = iter(placed_together(arrays, rectangle.mask.device, dtype))
    return replace(
        made,
        fields={name: next(tensors) for name in made.fields},
        scalars={name: next(tensors) for name in made.scalars},
        group=next(tensors),
    )
