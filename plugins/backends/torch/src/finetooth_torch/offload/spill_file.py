"""Writes tensors to a file and reads them. Unlike with a mapped file, they take no memory of the process."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import torch
from finetooth_hooks import EngineError
from torch import Tensor

from finetooth_torch.offload.copies import Shape, alike


class SpillFile:
    """A file without a name, which disappears with the process, however that ends.

    It is emptied when it holds no tensor.

    Args:
        folder: on the disk to use.

    Raises:
        EngineError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - open as long as the engine
        except OSError as error:
            raise _cannot(error) from error
        self._lock = threading.Lock()
        self._end = self._kept = 0
        self.most = 0
        """Peak size in bytes."""

    def put(self, tensor: Tensor) -> Spilled:
        """Write a tensor.

        Raises:
            EngineError: the disk is full, or fails.
        """
        shape = Shape.of(tensor)
        content = shape.raw(tensor).cpu().view(torch.uint8).numpy().data
        with self._lock:
            start, self._end = self._end, self._end + len(content)
            self._kept, self.most = self._kept + 1, max(self.most, self._end)
        spilled = Spilled(self, start, shape, tensor.device)
        try:
            while content:
                written = os.pwrite(self._file.fileno(), content, start)
                content, start = content[written:], start + written
        except OSError as error:
            raise _cannot(error) from error
        return spilled

    def read(self, start: int, into: Tensor) -> None:
        """Fill a tensor in host memory, (N,), from what was written at `start`.

        Raises:
            EngineError: the disk fails.
        """
        content = into.view(torch.uint8).numpy().data
        try:
            while content:
                read = os.preadv(self._file.fileno(), [content], start)
                if not read:
                    raise OSError("the file ends early")
                content, start = content[read:], start + read
        except OSError as error:
            raise _cannot(error) from error

    def let_go(self) -> None:
        """One tensor less."""
        with self._lock:
            self._kept -= 1
            if not self._kept:
                self._end = 0
                self._file.truncate(0)


class Spilled:
    """A tensor in a file; a call reads it. It is in the file as long as this object exists."""

    def __init__(self, file: SpillFile, start: int, shape: Shape, device: torch.device) -> None:
        self._file, self._start, self._shape, self._device = file, start, shape, device

    def __call__(self) -> Tensor:
        made, raw = alike(self._shape, self._device)
        if self._device.type == "cpu":
            self._file.read(self._start, raw)
        else:
            read = torch.empty(raw.shape, dtype=raw.dtype)
            self._file.read(self._start, read)
            raw.copy_(read)
        return self._shape.filled(made, raw)

    def __del__(self) -> None:
        self._file.let_go()


def _cannot(error: OSError) -> EngineError:
    return EngineError(
        f"backend.activations=disk: the file in {tempfile.gettempdir()} fails: {error.strerror or error}",
        action="make room there, set TMPDIR to another disk, or set backend.activations to device",
    )
