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
        reason: how it computes here, as the end of a sentence: what it was compiled by, the name of the device.
        missing: for an operation, a device (`cpu`, `cuda:0`) and a dtype that the entry declares, why it cannot serve
            here all the same; empty if it can.
    """

    functions: Mapping[str, Callable[..., Any]]
    reason: str = ""
    missing: Callable[[str, str, str], str] = _nothing


@dataclass(frozen=True)
class KernelRequest:
    """A backend's request for an operation.

    Attributes:
        dtypes: of what it will be given, all of which the provider must take.
        backward: gradients will go through it.
        optional: the backend has a way of its own where no provider can serve.
        only_named: that way goes before every provider that the recipe does not name.
    """

    dtypes: tuple[str, ...]
    backward: bool = True
    optional: bool = False
    only_named: bool = False


@dataclass(frozen=True)
class PickedKernel:
    """An operation, as it will be computed.

    Attributes:
        provider: full name of its entry.
        function: computes it.
        features: what the provider declares of it; see `Serves`.
        reason: why this provider.
    """

    provider: str
    function: Callable[..., Any]
    features: frozenset[str] = frozenset()
    reason: str = ""


class PickKernels(Protocol):
    """Picks a provider for each operation, on the planned device."""

    def __call__(self, wanted: Mapping[str, KernelRequest]) -> Mapping[str, PickedKernel]:
        """A provider for each operation, but for optional ones that none can serve, or that nobody names.

        Raises:
            PlanError: the recipe picks a provider that cannot serve, or none can.
        """
        ...


@dataclass(frozen=True)
class ComputePart:
    """What an engine computes with.

    Attributes:
        kernels: by operation, as the plan picked them; for what is missing the backend has a way of its own.
    """

    kernels: Mapping[str, PickedKernel] = field(default_factory=dict)
