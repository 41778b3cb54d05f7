"""A Python file of a user as a module."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def loaded_file(file: Path) -> ModuleType:
    """A file as a module; it can import what lies in its folder.

    Raises:
        ValueError: it is not a Python file.
    """
    if file.suffix != ".py":  # compiled code too would run; consent to a run folder's code looks for .py files
        raise ValueError(f"{file} is not a Python file")
    sys.path.insert(0, str(file.parent))
    spec = spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    module = sys.modules[file.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
