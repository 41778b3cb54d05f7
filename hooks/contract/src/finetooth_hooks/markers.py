"""The two decorators: `@hookspec` declares a hook of the contract, `@hookimpl` marks a plugin's implementation of one.

They only take notes; core reads them, calls each plugin by itself and stands between the calls (docs/decisions/0027).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar, overload

PROJECT = "finetooth"

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Implementation:
    """What a plugin's author said with `@hookimpl`.

    Attributes:
        specname: the hook that the function implements; empty: the one of the function's own name.
        optionalhook: the installed contract may lack this hook.
        unsupported: options that `hookimpl` does not have, such as pluggy's `tryfirst`; a fault of the plugin.
    """

    specname: str
    optionalhook: bool
    unsupported: Mapping[str, object]


@overload
def hookimpl(function: _Function, /) -> _Function: ...
@overload
def hookimpl(
    *, specname: str = "", optionalhook: bool = False, **unsupported: object
) -> Callable[[_Function], _Function]: ...
def hookimpl(
    function: _Function | None = None, /, *, specname: str = "", optionalhook: bool = False, **unsupported: object
) -> _Function | Callable[[_Function], _Function]:
    """Mark a function of a plugin's module as the implementation of a hook.

    Args:
        specname: the hook, where the function has another name.
        optionalhook: the hook may be one that only a later contract has; the function is then never called.
        unsupported: named as a fault when the plugin is read, with file and line, not in a traceback.

    Example:
        @hookimpl
        def ft_losses():
            yield Loss(name="hinge", build="acme.loss:build")
    """

    def mark(function: _Function) -> _Function:
        setattr(function, f"{PROJECT}_impl", Implementation(specname, optionalhook, unsupported))
        return function

    return mark if function is None else mark(function)


def hookspec(function: _Function) -> _Function:
    """Mark a function of `finetooth_hooks.specs` as a hook of the contract."""
    setattr(function, f"{PROJECT}_spec", True)
    return function


def implementation(value: object) -> Implementation | None:
    """What `@hookimpl` noted about a function; None for a function without it and for anything else."""
    found = getattr(value, f"{PROJECT}_impl", None) if isinstance(value, FunctionType) else None
    return found if isinstance(found, Implementation) else None
