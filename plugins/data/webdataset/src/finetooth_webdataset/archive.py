"""A tar archive read in order, once, and to its end: a cut or damaged one is an error, never a shorter archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from finetooth_hooks import DataError


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    content: bytes


class _Damaged(Exception):
    """A header that cannot be, where the tarfile module would take the archive for ended."""


class _StrictInfo(tarfile.TarInfo):
    """Headers of which only the mark of the end ends the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # a block of zeros, which ends every archive
                raise
            missing = type(error).__name__ in ("EmptyHeaderError", "TruncatedHeaderError")
            raise _Damaged("it has no end (cut off?)" if missing else f"a damaged header ({error})") from error


def members(file: BinaryIO, name: str) -> Iterator[Member]:
    """The files of an archive, in order.

    Raises:
        DataError: it is not an archive, or is empty, cut off or damaged, or holds a link or a device.
    """
    place = 0
    try:
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictInfo) as archive:
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every header
                place = info.offset
                if info.isdir():
                    continue
                if not info.isreg():
                    raise DataError(f"{name}:{info.name}", "it is not a plain file", action="pack files only")
                content = archive.extractfile(info)
                assert content is not None
                data = content.read()
                if len(data) != info.size:
                    raise _Damaged("it ends inside a file (cut off?)")
                yield Member(info.name, data)
    except (tarfile.TarError, _Damaged) as error:
        problem = str(error) if isinstance(error, _Damaged) else f"it is not a tar archive, or cut off ({error})"
        raise DataError(
            name, f"{problem}, after byte {place:,}" if place else problem, action="fetch or write it again"
        ) from error
