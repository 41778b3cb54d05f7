"""What a recipe names in Python: `package.module:name`, or `./file.py:name`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from finetooth_hooks import RecipeError, install_command
from finetooth_workers.modules import loaded_file


def load(reference: str, setting: str) -> Any:
    """The object of that name.

    Raises:
        RecipeError: it is not there, or importing it fails.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise RecipeError(setting, f"{reference!r} names nothing", action="write package.module:name or ./file.py:name")
    try:
        module = loaded_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, name)
    except ModuleNotFoundError as error:
        raise RecipeError(
            setting,
            f"{place} needs {error.name}, which is not installed",
            action=f"install what brings it: {install_command('PACKAGE')}",
        ) from error
    except AttributeError as error:
        raise RecipeError(setting, f"{place} has no {name}", action="correct the name") from error
    except Exception as error:
        raise RecipeError(setting, f"{place} cannot be imported: {type(error).__name__}: {error}") from error
