"""Numbers of a device that the host wants to read once a call has asked for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Readings:
    """Reads tensors at the end of a call: the host waits once, and not after each micro-batch, so that it lays out the
    next ones while the device computes.

    A copy begins as soon as it is asked for, into pinned memory on a GPU, and the device's own tensor may be freed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._asked: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def ask(self, values: Tensor, read: Callable[[Tensor], None]) -> None:
        """Have `read` get the numbers on the host, at once where the device is the host."""
        if self._device.type == "cpu":
            read(values.detach())
        else:
            self._asked.append((values.detach().to("cpu", non_blocking=True), read))

    def finish(self) -> None:
        """Wait for the copies and hand them out, in the order in which they were asked for."""
        if self._asked:
            torch.accelerator.synchronize(self._device)
        asked, self._asked = self._asked, []
        for values, read in asked:
            read(values)
