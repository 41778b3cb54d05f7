"""Architectures that transformers does not know: a family makes them known before a config is read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from finetooth_hooks import Family, PluginError
from finetooth_hooks.context import Catalog, Registered
from finetooth_toolbox import blame

_done: set[str] = set()
"""The functions already called, one table per process like transformers' own."""


def register(catalog: Catalog, model_type: Callable[[], str]) -> None:
    """Call a family's `registers` function, once per process.

    Args:
        model_type: of the config that will be read; not asked where no family registers anything.

    Raises:
        PluginError: it cannot be imported, is not a function, or raised something.
    """
    registering = [r for r in catalog.all("family") if isinstance(r.entry, Family) and r.entry.registers]
    if not registering:
        return
    kind = model_type()
    for registered in registering:
        entry = registered.entry
        assert isinstance(entry, Family)
        if kind in entry.model_types and entry.registers not in _done:
            _call(registered, entry.registers)
            _done.add(entry.registers)


def _call(registered: Registered, reference: str) -> None:
    module, _, name = reference.partition(":")
    called = f"family {registered.entry.name!r}: registers {reference!r}"
    try:
        function = getattr(import_module(module), name, None)
        if not callable(function):
            raise PluginError(
                registered.distribution,
                f"{called}, which does not exist",
                action="write package.module:function",
            )
        function()
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(
            registered.distribution, f"{called} raised {blame.error_line(error, importing=True)}", action=blame.MEND
        ) from error
