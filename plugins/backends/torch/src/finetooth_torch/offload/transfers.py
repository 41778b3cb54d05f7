"""Copies between host memory and a device, while the device computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetooth_torch.offload.copies import Shape, alike


class Transfers:
    """Copies on a separate stream, if the device has streams; on a CPU, in tests, copies are immediate.

    A copy waits for the computation of its source; users of the copy must `wait` for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: Any = torch.cuda if device.type == "cuda" else None
        self._own: Any = self._streams.Stream(device) if self._streams else None

    def to_host(self, tensor: Tensor) -> Tensor:
        """(N,) the numbers of a tensor (`Shape.raw`) in pinned memory."""
        raw = Shape.of(tensor).raw(tensor)
        if self._own is None:
            return raw.to("cpu", copy=True)
        pinned = torch.empty(raw.shape, dtype=raw.dtype, pin_memory=True)
        self._own.wait_stream(self._streams.current_stream(self.device))
        with self._streams.stream(self._own):
            pinned.copy_(raw, non_blocking=True)
        raw.record_stream(self._own)  # its memory is not reused before the read
        return pinned

    def to_device(self, held: Tensor, shape: Shape) -> tuple[Tensor, Any]:
        """A tensor of a shape from its numbers, and the event to wait for before use."""
        if self._own is None:
            made, raw = alike(shape, self.device)
            return shape.filled(made, raw.copy_(held)), None
        with self._streams.stream(self._own):
            made, raw = alike(shape, self.device)
            raw.copy_(held, non_blocking=True)
            made = shape.filled(made, raw)
            event = self._streams.Event()
            event.record(self._own)
        return made, event

    def wait(self, made: Tensor, event: Any) -> None:
        """Make the current stream wait for a tensor of `to_device`."""
        if event is not None:
            current = self._streams.current_stream(self.device)
            current.wait_event(event)
            made.record_stream(current)

    def settle(self) -> None:
        """Make the current stream wait for all copies, whose sources may change then."""
        if self._own is not None:
            self._streams.current_stream(self.device).wait_stream(self._own)

    def put(self, tensor: Tensor) -> Callable[[], Tensor]:
        """A tensor in host memory; a call copies it back to the device."""
        on_host, shape = self.to_host(tensor), Shape.of(tensor)

        def back() -> Tensor:
            made, event = self.to_device(on_host, shape)
            self.wait(made, event)
            return made

        return back
