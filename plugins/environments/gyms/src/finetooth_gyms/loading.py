"""What a recipe names in Python: `package.module:name`, or `./file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from finetooth_hooks import RecipeError, install_command


def load(reference: str, setting: str) -> Any:
    """The object of that name.

    Raises:
        RecipeError: it is not there, or importing it fails.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise RecipeError(setting, f"{reference!r} names nothing", action="write package.module:name or ./file.py:name")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
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


def _file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
