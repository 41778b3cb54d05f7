"""Finds tensors in mapped files, and releases their memory without losing them."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

MAPS = Path("/proc/self/smaps")
ALIGNED = 64


@dataclass(frozen=True)
class Mapping:
    """A range of the process's addresses.

    Attributes:
        start, stop: of its bytes.
        clean: a file has the same bytes, so the memory can be released and read again.
    """

    start: int
    stop: int
    clean: bool


def mappings() -> list[Mapping]:
    """The ranges of this process, by address; empty if the system does not tell."""
    areas: list[Mapping] = []
    start = stop = inode = 0
    dirty = 0
    lines = MAPS.read_text(encoding="utf-8").splitlines() if MAPS.exists() else []
    for line in [*lines, "0-0 ---p 0 00:00 0"]:
        first, _, rest = line.partition(" ")
        if first.endswith(":"):
            if first == "Anonymous:":  # pages that were written to no longer equal the file
                dirty += int(rest.split()[0])
            continue
        if stop:
            areas.append(Mapping(start, stop, bool(inode) and not dirty))
        low, high = first.split("-")
        start, stop, dirty, inode = int(low, 16), int(high, 16), 0, int(line.split()[4])
    return areas


def is_clean(tensor: Tensor, known: Sequence[Mapping]) -> bool:
    """Whether a tensor's memory can be released, because its mapped file has the same bytes."""
    first = tensor.data_ptr()
    return any(area.clean and area.start <= first and first + tensor.nbytes <= area.stop for area in known)


def forget(tensor: Tensor) -> None:
    """Release the memory of a tensor in a mapped file, which is read again on use. Pages shared with its neighbours
    stay."""
    _advise(tensor, mmap.MADV_DONTNEED, whole=True)


def expect(tensor: Tensor) -> None:
    """Ask the system to begin reading a tensor in a mapped file."""
    _advise(tensor, mmap.MADV_WILLNEED, whole=False)


def _advise(tensor: Tensor, advice: int, *, whole: bool) -> None:
    """
    Args:
        whole: only pages without other data.
    """
    page, first = mmap.PAGESIZE, tensor.data_ptr()
    last = first + tensor.nbytes
    start = -(-first // page) * page if whole else first // page * page
    stop = last // page * page if whole else -(-last // page) * page
    if stop > start:
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), advice)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def in_one_file(tensors: Sequence[Tensor], folder: Path) -> list[Tensor]:
    """Contiguous copies of tensors in one mapped, unnamed file, so that their memory can be released.

    Raises:
        OSError: the disk is full, or fails.
    """
    if not tensors:
        return []
    places: list[int] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for tensor in tensors:
            file.write(b"\0" * (-file.tell() % ALIGNED))
            places.append(file.tell())
            file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), max(1, os.fstat(file.fileno()).st_size))
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    return [
        whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(places, tensors, strict=True)
    ]
