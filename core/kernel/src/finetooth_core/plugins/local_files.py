"""Local `.py` files as plugins."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

PREFIX = "finetooth_local_"


@dataclass(frozen=True)
class LocalFile:
    """A plugin file and its content.

    Attributes:
        path: resolved.
        content: read once, so that the executed code is the hashed one.
    """

    path: Path
    content: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the content, for manifests."""
        return _sha256(self.content)


def is_file_reference(text: str) -> bool:
    """Whether a plugin reference is a file, not a distribution or a module."""
    return text.endswith(".py") or "/" in text or os.sep in text


def display_name(reference: str, base: Path) -> str:
    """The name of a file's plugin: its path relative to `base`, with `/`; an absolute path outside `base` stays as it
    is."""
    path, base = _resolved(reference, base), base.resolve()
    if Path(reference).is_absolute() and not path.is_relative_to(base):
        return path.as_posix()
    return Path(os.path.relpath(path, base)).as_posix()


def _resolved(reference: str, base: Path) -> Path:
    return (base / Path(reference).expanduser()).resolve()


def read(reference: str, base: Path) -> LocalFile:
    """The file that `reference` names, relative to `base`.

    Raises:
        OSError: the file is missing, or cannot be read.
    """
    path = _resolved(reference, base)
    return LocalFile(path, path.read_bytes())


def load(file: LocalFile) -> ModuleType:
    """Run the file as a module. It is registered in `sys.modules`, which dataclasses with postponed annotations and
    references to builders (`f"{__name__}:build"`) need. Its name depends on path and content, so a changed file is
    loaded again, and an unchanged one runs only once.
    """
    digest = _sha256(str(file.path).encode() + b"\0" + file.content)[:12]
    stem = "".join(c if c.isalnum() else "_" for c in file.path.stem)
    name = f"{PREFIX}{stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file.path)
    module.__spec__ = ModuleSpec(name, loader=None, origin=str(file.path))
    code = compile(file.content, str(file.path), "exec", dont_inherit=True)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _sha256(content: bytes) -> str:
    import hashlib  # imported here: most starts load no file

    return hashlib.sha256(content).hexdigest()
