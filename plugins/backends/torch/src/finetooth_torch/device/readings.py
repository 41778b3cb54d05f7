"""Reads numbers from a device at the end of a call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Readings:
    """Reads tensors at the end of a call: the host waits once and not after each micro-batch, so it prepares the next
    ones while the device computes.

    A copy begins at once, into pinned memory on a GPU, and the device's tensor may be freed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def ask(self, values: Tensor, read: Callable[[Tensor], None]) -> None:
        """Call `read` with the numbers on the host; at once if the device is the host."""
        if self._device.type == "cpu":
            read(values.detach())
        else:
            self._asked.append((values.detach().to("cpu", non_blocking=True), read))

    def finish(self) -> None:
        """Wait for the copies and pass them on, in the order of the requests."""
        if self._asked:
            torch.accelerator.synchronize(self._device)
        asked, self._asked = self._asked, []
        for values, read in asked:
            read(values)
