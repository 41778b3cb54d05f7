"""What autograd keeps of a micro-batch for its backward pass, put where the recipe wants it."""

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
"""Bytes of the smallest tensor that is put elsewhere: of smaller ones there are many, and little is gained."""

Back = Callable[[], Tensor]
Put = Callable[[Tensor], Back]


class SavedTensors:
    """Entered around a micro-batch, its forward and its backward.

    Weights are told by their storage, and stay: they take no memory of their own. The weights of a layer that a window
    lends are kept as their place in it, so that they can leave the device meanwhile.

    Args:
        model: whose weights they are.
        put: copies a tensor elsewhere, and says how it comes back; None: tensors other than a window's weights stay.
        window: of frozen layers; None: all are on the device.
        smallest: bytes of a tensor that `put` gets, at least.
    """

    def __init__(
        self, model: nn.Module, put: Put | None, window: LayerWindow | None, *, smallest: int = SMALLEST
    ) -> None:
        self._model, self._put, self._window, self._smallest = model, put, window, smallest
        self._weights: frozenset[int] = frozenset()

    def entered(self) -> AbstractContextManager[Any]:
        """Inside the `with` block, what is kept for backward is kept so."""
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
    """What puts activations where `backend.activations` says.

    Raises:
        EngineError: the file to put them into cannot be made.
    """
    if where == "disk":
        return SpillFile(Path(tempfile.gettempdir())).put
    return Transfers(device).put if where == "host" else None
