"""Copies between host memory and a device, while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from finetooth_kernels.memory import placed
from numpy.typing import NDArray
from torch import Tensor

from finetooth_torch.offload.copies import ALIGNED, Shape, alike


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

    def together(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of the host on the device, for which the current stream waits, and the host does not: they share one
        copy. torch keeps pinned memory until it is copied, and the device's until the current stream has read it."""
        if self._own is None:
            return [placed(tensor, self.device) for tensor in tensors]
        starts, size = list[int](), 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // ALIGNED) * ALIGNED
        pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        for tensor, part in zip(tensors, parts_of(pinned, tensors, starts), strict=True):
            part.copy_(tensor)
        made, event = self.to_device(pinned, Shape.of(pinned))
        self.wait(made, event)
        return parts_of(made, tensors, starts)

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


def placed_together(
    arrays: Sequence[NDArray[Any]], device: torch.device, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Arrays of the host as tensors on a device, floats in `dtype`. A GPU gets them in one copy on a stream of its own,
    while it still computes what the host gave it before: the previous micro-batch."""
    tensors = [torch.from_numpy(values) for values in arrays]
    return _for_inputs(device).together([of.to(dtype=dtype) if of.is_floating_point() else of for of in tensors])


@cache
def _for_inputs(device: torch.device) -> Transfers:
    return Transfers(device)


def parts_of(memory: Tensor, like: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    """Tensors in a memory of bytes; changing one in place does not invalidate what autograd has saved of others."""
    return [
        memory[start : start + of.nbytes].view(of.dtype).view(of.shape).data
        for of, start in zip(like, starts, strict=True)
    ]
