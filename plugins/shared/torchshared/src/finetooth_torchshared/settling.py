"""A caller takes each module of a model as soon as it is read, while the next ones wait in their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

Settle = Callable[[str, nn.Module], None]
"""Called with a module's path in its model and the module, whose own tensors are there."""

_settles: ContextVar[Settle | None] = ContextVar("settles", default=None)


@contextmanager
def settling(settle: Settle) -> Iterator[None]:
    """While entered, models that are put together module by module give each to `settle`."""
    token = _settles.set(settle)
    try:
        yield
    finally:
        _settles.reset(token)


def settled(path: str, module: nn.Module) -> None:
    """A module has been read, and stored if it is stored in fewer bits."""
    if (settle := _settles.get()) is not None:
        settle(path, module)
