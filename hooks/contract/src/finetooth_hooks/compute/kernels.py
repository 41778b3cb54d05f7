"""Kernels: a backend's request, a provider's answer, and the pick for an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


def _nothing(operation: str, device: str, dtype: str) -> str:
    return ""


@dataclass(frozen=True)
class Kernel:
    """A provider, built.

    Attributes:
        functions: by operation, all that its entry declares; each with the signature of the operation's reference.
        reason: how it computes here, as the end of a sentence: its compiler, the name of the device.
        missing: from an operation, a device (`cpu`, `cuda:0`) and a dtype that the entry declares to why it is unusable
            here; empty if usable.
    """

    functions: Mapping[str, Callable[..., Any]]
    reason: str = ""
    missing: Callable[[str, str, str], str] = _nothing


@dataclass(frozen=True)
class KernelRequest:
    """A backend's request for an operation.

    Attributes:
        dtypes: of its inputs, all of which the provider must support.
        backward: gradients pass through it.
        optional: the backend has its own implementation without a provider.
        only_named: the backend prefers its own to providers that the recipe does not name.
    """

    dtypes: tuple[str, ...]
    backward: bool = True
    optional: bool = False
    only_named: bool = False


@dataclass(frozen=True)
class PickedKernel:
    """The picked provider of an operation.

    Attributes:
        provider: full name of its entry.
        function: computes it.
        features: that the provider declares; see `Serves`.
        reason: why this provider.
    """

    provider: str
    function: Callable[..., Any]
    features: frozenset[str] = frozenset()
    reason: str = ""


class PickKernels(Protocol):
    """Picks a provider for each operation, on the planned device."""

    def __call__(self, wanted: Mapping[str, KernelRequest]) -> Mapping[str, PickedKernel]:
        """A provider for each operation, except optional ones without a usable or named provider.

        Raises:
            PlanError: the recipe picks an unusable provider, or none is usable.
        """
        ...


@dataclass(frozen=True)
class ComputePart:
    """What an engine computes with.

    Attributes:
        kernels: by operation, as the plan picked them; for missing ones the backend uses its own.
    """

    kernels: Mapping[str, PickedKernel] = field(default_factory=dict)
