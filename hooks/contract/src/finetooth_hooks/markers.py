"""Two decorators of pluggy: `@hookspec` declares a hook of the contract, `@hookimpl` marks an implementation.

The core registers plugins with pluggy and calls them one by one (docs/decisions/0027), so of the options of `hookimpl`
only `specname` and `optionalhook` have a meaning; the others are a fault of the plugin.
"""

from __future__ import annotations

from types import FunctionType

import pluggy

PROJECT = "finetooth"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def implementation(value: object) -> pluggy.HookimplOpts | None:
    """The options of `@hookimpl` on a function; None for a function without it and for anything else."""
    marked: pluggy.HookimplOpts | None = (
        getattr(value, f"{PROJECT}_impl", None) if isinstance(value, FunctionType) else None
    )
    return marked
