"""Options of a plugin as a whole: its `plugin_options` model and the user's values in `plugins:`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from finetooth_hooks import Options, PluginError
from finetooth_recipes import problems
from finetooth_recipes.problems import plain_data

ATTRIBUTE = "plugin_options"


def model(name: str, module: ModuleType) -> type[Options] | None:
    """The plugin's options model; the attribute `plugin_options` is the class, or a reference `package.module:Class`.

    Raises:
        PluginError: the attribute is neither, or cannot be imported.
    """
    declared = getattr(module, ATTRIBUTE, None)
    if isinstance(declared, str):
        place, _, attribute = declared.partition(":")
        try:
            declared = getattr(import_module(place or module.__name__), attribute, declared)
        except ImportError as error:
            raise PluginError(name, f"its {ATTRIBUTE} {declared!r} cannot be imported: {error}") from error
    if declared is None:
        return None
    if not (isinstance(declared, type) and issubclass(declared, Options)):
        raise PluginError(
            name,
            f"its {ATTRIBUTE} is {declared!r}, which is not an options model",
            action="make it a subclass of finetooth_hooks.Options, or its reference 'package.module:Class'",
        )
    return declared


def validate(name: str, module: ModuleType, options: Mapping[str, Any] | None) -> Options | None:
    """The plugin's options, defaults filled in; None if it declares no model.

    Raises:
        PluginError: options are given and no model is declared.
        RecipeError: options are wrong; one line each.
    """
    declared = model(name, module)
    if declared is None:
        if options is not None:
            raise PluginError(
                name,
                f"it takes no options, and {', '.join(map(str, options)) or 'an empty mapping'} is given",
                action=f"remove the options, or set {ATTRIBUTE} in {module.__file__}",
            )
        return None
    setting = ("plugins", name, "options")
    return problems.validate(declared, plain_data(options or {}, setting), prefix=setting, noun="option")
