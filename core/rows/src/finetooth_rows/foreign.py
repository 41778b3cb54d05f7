"""Files that a library of others reads, which is installed by who has such files."""

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
"""Bytes that the parts of a file may have together once unpacked: the libraries hold all of them in memory."""


@contextmanager
def read_with(module: str, package: str, path: Path, otherwise: str) -> Iterator[Any]:
    """The module that reads a file; whatever it raises inside is an error of the file.

    Args:
        package: what pip installs it as.
        otherwise: what can be done without it.

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
    except Exception as error:  # these libraries raise whatever their parsers do
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            name, f"it cannot be read as {ending}: {problem}", action=f"save it again, or {otherwise}"
        ) from error


def check_unpacked(path: Path, largest: int = LARGEST) -> None:
    """Checks that an archive does not unpack to more than may be held in memory.

    Raises:
        DataError: the file is an archive whose parts say that they are larger together than `largest`.
    """
    try:
        with ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except BadZipFile:
        return  # what reads it knows what it should be
    if size > largest:
        raise DataError(
            path.as_posix(),
            f"it unfolds from {path.stat().st_size:,} bytes to {size:,}, and {largest:,} may be held",
            action="split it into several files, or save it as CSV",
        )
