"""From an entry to its builder, options model and instance, as the core does it."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from finetooth_hooks.entries import Entry
from finetooth_hooks.errors import PluginError, RecipeError
from finetooth_hooks.options import NoOptions, Options
from pydantic import ValidationError

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def builder(entry: Entry) -> Callable[..., Any]:
    """The class, function or command that `entry.build` names.

    Raises:
        PluginError: the reference is not `package.module:name`, its module cannot be imported, or lacks the name.
    """
    if not REFERENCE.fullmatch(entry.build):
        raise PluginError("", f"{entry.kind} {entry.name!r}: build={entry.build!r} is not 'package.module:name'")
    module_name, _, attribute = entry.build.partition(":")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise PluginError("", f"{entry.kind} {entry.name!r}: importing {module_name} failed: {error}") from error
    if not hasattr(module, attribute):
        raise PluginError("", f"{entry.kind} {entry.name!r}: {module_name} has no {attribute!r}")
    return typing.cast(Callable[..., Any], getattr(module, attribute))


def options_model(entry: Entry) -> type[Options]:
    """The annotation of the builder's parameter `options`; `NoOptions` for a builder without this parameter.

    Raises:
        PluginError: it is not a subclass of `Options`.
    """
    function = builder(entry)
    if "options" not in inspect.signature(function).parameters:
        return NoOptions
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    model = hints.get("options")
    if not (isinstance(model, type) and issubclass(model, Options)):
        raise PluginError(
            "",
            f"{entry.kind} {entry.name!r}: the parameter `options` of {entry.build} is annotated {model!r}",
            action="annotate it with a subclass of finetooth_hooks.Options, or with NoOptions",
        )
    return model


def filled(example: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Example options with `{folder}` replaced in every string."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{folder}", str(folder))
        if isinstance(value, Mapping):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [fill(item) for item in value]
        return value

    return {key: fill(value) for key, value in example.items()}


def build(entry: Entry, options: Mapping[str, Any], context: Any) -> Any:
    """Validate options and call the builder with those of `options` and `context` that it has parameters for.

    Raises:
        RecipeError: the options are wrong.
    """
    try:
        validated = options_model(entry).model_validate(dict(options))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"{entry.kind} {entry.name}", problems) from error
    function = builder(entry)
    wanted = inspect.signature(function).parameters
    given = {"options": validated, "context": context}
    return function(**{name: value for name, value in given.items() if name in wanted})
