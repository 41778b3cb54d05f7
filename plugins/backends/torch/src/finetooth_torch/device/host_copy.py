"""Moves a model's weights to host memory for a while, to write them without room on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def on_host(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, parameters and buffers are copies in host memory, made one after the other. The device
    keeps the originals, which return afterwards."""
    on_device = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for tensor, data in on_device:
            tensor.data = data.to("cpu", copy=True)
        yield
    finally:
        for tensor, data in on_device:
            tensor.data = data
