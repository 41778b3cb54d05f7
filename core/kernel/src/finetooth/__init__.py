"""finetooth: fine-tune language models.

`finetooth.run(recipe)` trains, `finetooth.resume(run)` continues a run that was interrupted, and
`finetooth.engine(recipe)` returns the engine to drive step by step. `finetooth.session(recipe)` does the same for a
whole run: its plan, its method and its engine. `finetooth.quantize(model, "int4")` and
`finetooth.dequantize(model)` change a transformers model without a recipe; `finetooth.offload(optimizer)` keeps a torch
optimizer's state elsewhere.

`finetooth.Recipe`, with sections such as `finetooth.Train` and entries such as `finetooth.adapter.lora(rank=8)`, is a
recipe whose settings editors and notebooks complete.

Importing this package is cheap: frameworks are imported when a recipe needs them.

Other distributions may add names by an entry point in the group `finetooth.names`; each is imported on first use.
A function with an argument `build` gets `finetooth_core.api.build_entry` there.
"""

from __future__ import annotations

from typing import Any

from finetooth_core.api import build_entry, engine, entry_functions, resume, run, section_function, session
from finetooth_core.session import Session

__all__ = ["Checkpoint", "Data", "Evaluate", "Model", "Profile", "Recipe", "Scale", "Session", "Train"]
__all__ += ["engine", "resume", "run", "session"]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # what tools ask of any module; to ask every distribution takes 20 ms
        raise AttributeError(f"module 'finetooth' has no attribute {name!r}")

    from functools import partial
    from importlib.metadata import entry_points
    from inspect import signature

    from finetooth_hooks.entries import ENTRY_TYPES

    if name in ENTRY_TYPES:
        return globals().setdefault(name, entry_functions(name))  # plugins are looked for once
    if name in __all__:
        return globals().setdefault(name, section_function(name))
    entries = sorted(entry_points(group="finetooth.names", name=name), key=lambda entry: entry.value)
    if not entries:
        raise AttributeError(f"module 'finetooth' has no attribute {name!r}, and no installed package adds one")
    if len(entries) > 1:
        owners = ", ".join(entry.value for entry in entries)
        raise AttributeError(f"finetooth.{name} is offered by several packages: {owners}")
    offered = entries[0].load()
    if callable(offered) and "build" in signature(offered).parameters:
        offered = partial(offered, build=build_entry)
    globals()[name] = offered
    return globals()[name]


def __dir__() -> list[str]:
    from finetooth_hooks.entries import ENTRY_TYPES

    return [*__all__, *ENTRY_TYPES]
