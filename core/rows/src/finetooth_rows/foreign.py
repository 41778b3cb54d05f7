"""Files that need a third-party library, which only users of such files install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from finetooth_hooks import DataError, RecipeError, install_command
from finetooth_toolbox.files.missing import MissingFile

LARGEST = 1 << 30
"""Largest total size of a file's unpacked parts, in bytes: the libraries hold all of them in memory."""


@contextmanager
def read_with(module: str, package: str, path: Path, otherwise: str) -> Iterator[Any]:
    """The module that reads a file; any exception inside the context becomes an error about the file.

    Args:
        package: its name for pip.
        otherwise: the alternative without the library.

    Raises:
        DataError: the file is missing, or the library cannot read it.
        RecipeError: the library is not installed.
    """
    name, ending = path.as_posix(), path.suffix.lower()
    if not path.is_file():
        raise MissingFile(path)
    try:
        library = import_module(module)
    except ImportError as error:
        action = f"{install_command(package)}, or {otherwise}"
        raise RecipeError("data", f"{name}: {ending} files need the package {package}", action=action) from error
    try:
        check_unpacked(path)
        yield library
    except DataError:
        raise
    except Exception as error:  # these libraries pass on any exception of their parsers
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            name, f"it cannot be read as {ending}: {problem}", action=f"save it again, or {otherwise}"
        ) from error


def check_unpacked(path: Path, largest: int = LARGEST) -> None:
    """Check that the unpacked size of an archive fits the bound for memory.

    Raises:
        DataError: the file is an archive whose parts have a declared total size above `largest`.
    """
    try:
        with ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except BadZipFile:
        return  # not an archive: its reader checks the file
    if size > largest:
        raise DataError(
            path.as_posix(),
            f"it unfolds from {path.stat().st_size:,} bytes to {size:,}, and {largest:,} may be held",
            action="split it into several files, or save it as CSV",
        )
