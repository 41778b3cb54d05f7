"""Wrappers that pass on every call, to show that a wrapped object loses no ability."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks import protocols
from finetooth_hooks.bases import BASES

CONTRACTS: Mapping[str, type] = {
    "adapter": protocols.Adapter,
    "engine": protocols.Engine,
    "environment": protocols.Environment,
    "evaluator": protocols.Evaluator,
    "exporter": protocols.Exporter,
    "face": protocols.Face,
    "loader": protocols.Loader,
    "method": protocols.Method,
    "optimizer": protocols.Optimizer,
    "renderer": protocols.Renderer,
    "sampler": protocols.Sampler,
    "source": protocols.Source,
    "tokenizer": protocols.Tokenizer,
    "tracker": protocols.Tracker,
}
"""The protocol of each kind that has a base class."""


def declared(kind: str) -> tuple[str, ...]:
    """The names of every method and property of a contract, what is optional included."""
    return tuple(sorted(name for name in vars(CONTRACTS[kind]) if not name.startswith("_")))


def delegating(kind: str, inner: Any) -> Any:
    """An object of the kind's base class whose every declared method and property is that of `inner`.

    Its members stand in its class, so that they are found without asking the object (`inspect.getattr_static`).
    """
    members: dict[str, Any] = {name: _handed_on(CONTRACTS[kind], name) for name in declared(kind)}
    members["__init__"] = _keep
    made = type(f"Delegating{CONTRACTS[kind].__name__}", (BASES[kind],), members)
    return made(inner)


def _keep(self: Any, inner: Any) -> None:
    self._inner = inner


def _handed_on(contract: type, name: str) -> Any:
    member = inspect.getattr_static(contract, name)
    if isinstance(member, property):
        return property(lambda self: getattr(self._inner, name), doc=member.__doc__)
    return _method(member, name)


def _method(declared_as: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(declared_as)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    return call


__all__ = ["CONTRACTS", "declared", "delegating"]
