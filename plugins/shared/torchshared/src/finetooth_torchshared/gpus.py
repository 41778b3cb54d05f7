"""Facts of torch about GPUs of every maker, for hardware plugins; torch calls all of them `cuda`."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from finetooth_hooks.protocols import Device

CONTEXT = 512 * 2**20
"""About what a process takes of a GPU before its first tensor, in bytes: code and workspaces. It is taken as soon as
one asks what is free, and memory estimates count it."""


class Gpus(ABC):
    """GPUs as torch sees them: what hardware plugins share (`finetooth_hooks.protocols.Hardware`).

    Args:
        index: of the only device; None takes all that are like the first.
        torch: the framework; tests pass a stand-in.

    Attributes:
        maker: of the GPUs, for messages.
    """

    maker: ClassVar[str]

    def __init__(self, index: int | None = None, torch: Any = None) -> None:
        self._index, self._given = index, torch

    @property
    def _torch(self) -> Any:
        if self._given is None:
            import torch

            self._given = torch
        return self._given

    @abstractmethod
    def wrong_build(self) -> str:
        """Why this build of torch cannot compute on such GPUs; empty if it can."""

    def missing(self) -> str:
        """Why this machine has no such GPU; empty if it has one."""
        if wrong := self.wrong_build():
            return wrong
        with warnings.catch_warnings(record=True) as said:  # where torch tells what is wrong with the driver
            warnings.simplefilter("always")
            available = self._torch.cuda.is_available()
        if not available:
            reason = f" ({_first_sentence(str(said[-1].message))})" if said else ""
            return f"torch finds no {self.maker} driver or GPU{reason}"
        count = self._torch.cuda.device_count()
        if (self._index or 0) >= count:
            return f"this machine has no GPU {self._index or 0}: torch sees {count}"
        try:
            properties = self._torch.cuda.get_device_properties(self._index or 0)
        except RuntimeError as error:
            return f"the {self.maker} driver does not give torch its GPU ({_first_sentence(str(error))})"
        return self.without_kernels(properties, self._torch.cuda.get_arch_list())

    def without_kernels(self, properties: Any, architectures: Sequence[str]) -> str:
        """Why torch has no kernels for a GPU; empty if it has some.

        Args:
            properties: of the GPU, torch's.
            architectures: for which this build of torch was compiled; empty: unknown.
        """
        return ""


def _first_sentence(said: str) -> str:
    """Without where in torch's own code it was said, and what to do about it."""
    return said.strip().partition("\n")[0].partition(". ")[0].partition(" (Triggered")[0].removesuffix(".")


def gpu_available(torch: Any, index: int, total: int) -> int | None:
    """Bytes of a GPU that this process could hold now: what is free, what torch's allocator holds, and the context;
    None where the driver does not tell.

    Asking makes a context on the GPU, so only that which will compute is asked.

    Args:
        torch: the framework.
        total: bytes of the GPU.
    """
    with suppress(RuntimeError):
        free, _ = torch.cuda.mem_get_info(index)
        return min(total, int(free) + int(torch.cuda.memory_reserved(index)) + CONTEXT)
    return None


def split_devices(
    torch: Any, index: int | None, described: Callable[[int, Any], Device]
) -> tuple[tuple[Device, ...], tuple[Device, ...]]:
    """The GPUs that hardware takes, and the others that torch sees. Only the first is asked what is free.

    Args:
        torch: the framework.
        index: of the only one to take; None takes the first and all that are labelled like it, since facts are of all.
        described: a device, of its index and torch's properties.
    """
    first = index or 0
    count = max(first + 1, torch.cuda.device_count())
    gpus = [described(place, torch.cuda.get_device_properties(place)) for place in range(count)]
    alike = [device for device in gpus if device.label == gpus[first].label] if index is None else [gpus[first]]
    names = {device.name for device in alike}
    available = gpu_available(torch, first, alike[0].memory)
    taken = (replace(alike[0], available=available), *alike[1:])
    return taken, tuple(device for device in gpus if device.name not in names)
