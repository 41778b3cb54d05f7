"""Moves the tensors that autograd saves for the backward pass to where the recipe wants them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetooth_torch.offload.copies import overlaps
from finetooth_torch.offload.layer_window import LayerWindow
from finetooth_torch.offload.spill_file import SpillFile
from finetooth_torch.offload.transfers import Transfers

SMALLEST = 2**20
"""Bytes of the smallest tensor to move: smaller ones are many and save little."""

Back = Callable[[], Tensor]
Put = Callable[[Tensor], Back]


class SavedTensors:
    """Entered around a micro-batch's forward and backward.

    Weights, recognised by their storage, stay: saving them takes no memory. Weights of a layer in a window are saved as
    references to it, so that the layer can leave the device.

    Args:
        model: whose weights they are.
        put: moves a tensor, and returns a function that brings it back; None: only a window's weights are replaced.
        window: of frozen layers; None: all are on the device.
        smallest: bytes of the smallest tensor for `put`.
    """

    def __init__(
        self, model: nn.Module, put: Put | None, window: LayerWindow | None, *, smallest: int = SMALLEST
    ) -> None:
        self._model, self._put, self._window, self._smallest = model, put, window, smallest
        self._weights: frozenset[int] = frozenset()

    def entered(self) -> AbstractContextManager[Any]:
        """Inside the `with` block, tensors saved for the backward pass are moved."""
        if self._put is None and (self._window is None or not self._window.moves):
            return nullcontext()
        tensors = (*self._model.parameters(), *self._model.buffers())
        self._weights = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> Tensor | Back:
        lent = None if self._window is None else self._window.place_of(tensor)
        if lent is not None:
            return lent
        if self._put is None or tensor.nbytes < self._smallest or overlaps(tensor):
            return tensor
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        return self._put(tensor)

    def _unpack(self, kept: Tensor | Back) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()


def putting(where: str, device: torch.device) -> Put | None:
    """Moves activations to where `backend.activations` says.

    Raises:
        EngineError: their file cannot be made.
    """
    if where == "disk":
        return SpillFile(Path(tempfile.gettempdir())).put
    return Transfers(device).put if where == "host" else None
