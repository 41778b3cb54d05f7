"""A model whose weights are in host memory for a while, for who writes them and finds no room on the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def on_host(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, parameters and buffers are copies in host memory, made one after the other. What the
    device holds stays there, and is put back."""
    on_device = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for tensor, data in on_device:
            tensor.data = data.to("cpu", copy=True)
        yield
    finally:
        for tensor, data in on_device:
            tensor.data = data
