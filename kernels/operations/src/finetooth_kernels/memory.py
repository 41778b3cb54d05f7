"""Memory of tensors on the host, used again without going through malloc.

What layers compute comes in a few sizes, again and again. malloc takes a little off each hole that a freed tensor
leaves, for some small object, and the next tensor of the size no longer fits: its memory grows by what a pass computes
in between, on top of what is alive at once. And each page that a process has not written to before costs it a fault.
So large tensors get blocks of pages of their own, which are used again as soon as no tensor lies in them. Tensors that
released together, as what a forward pass keeps for its backward pass, are cut from a block one behind the other.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["BLOCKS", "Arena", "Blocks", "cut", "lasting", "new_empty", "new_lasting", "placed", "private"]

ARENA_BYTES = 2**28
"""A block that tensors are cut from. Pages that nothing was written to take no memory."""

ALONE_BYTES = 2**25
"""A block for one tensor, at least: one size for most, so that a block fits the next tensor too."""

SMALLEST = 2**16
"""Smaller tensors are left to malloc."""

LARGE = 2**26
"""Tensors from this size on malloc has no room to keep for: it asks the system for new pages each time."""

_ALIGNED = 64
"""Tensors are cut at multiples of this: a cache line, and the widest vector."""

_SHIFT, _SHIFTS = 65 * _ALIGNED, 61
"""A block begins so many bytes later than the one before, up to so many times: what begins at the same multiple of a
page's size falls into the same sets of a cache."""


@dataclass
class _Block:
    """Pages, with their last allocation."""

    pages: memoryview
    given: weakref.ref[memoryview]


class Blocks:
    """Blocks of memory; threads may share them.

    A block is in use while anything refers to the view of it that was given out, as each tensor in it does.

    Args:
        large_pages: the system is asked for pages of 2 MiB, where it has them: what is read from end to end, again and
            again, comes a sixth faster.
    """

    def __init__(self, *, large_pages: bool = False) -> None:
        self._large = large_pages
        self._lock = threading.Lock()
        self._blocks: dict[int, list[_Block]] = {}
        self.refused = False
        """Whether the system once gave none."""

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))

    def take(self, size: int) -> memoryview | None:
        """A block of `size` bytes, rounded up to a power of two, with anything in it: the first that is not in use,
        else a new one; None where the system gives none."""
        size = 1 << (size - 1).bit_length()
        with self._lock:
            blocks = self._blocks.setdefault(size, [])
            for block in blocks:
                if block.given() is None:
                    view = block.pages[:]
                    block.given = weakref.ref(view)
                    return view
            try:
                mapped = _mapped(size + _SHIFT * _SHIFTS)
            except OSError:
                self.refused = True
                return None  # malloc is used instead: it may have suitable holes, and its error names the size
            if self._large:
                _ask_for_large_pages(mapped)
            start = _SHIFT * (len(blocks) % _SHIFTS)
            pages = memoryview(mapped)[start : start + size]
            view = pages[:]
            blocks.append(_Block(pages, weakref.ref(view)))
            return view

    def forget(self) -> None:
        """Give the blocks back that are not in use."""
        with self._lock:
            for size, blocks in self._blocks.items():
                self._blocks[size] = [block for block in blocks if block.given() is not None]


BLOCKS = Blocks()
"""Of the process: models that take turns need them once."""


class _OfThread(threading.local):
    """Where a thread's tensors lie."""

    blocks: Blocks | None = None
    arena: Arena | None = None


_OF_THREAD = _OfThread()


@contextmanager
def _meanwhile(name: str, place: Blocks | Arena) -> Iterator[None]:
    before = getattr(_OF_THREAD, name)
    setattr(_OF_THREAD, name, place)
    try:
        yield
    finally:
        setattr(_OF_THREAD, name, before)


def private(blocks: Blocks) -> AbstractContextManager[None]:
    """Tensors of any size that this thread makes with `new_empty` are in these blocks."""
    return _meanwhile("blocks", blocks)


def lasting(arena: Arena) -> AbstractContextManager[None]:
    """Tensors that this thread makes with `new_lasting` are cut from this arena."""
    return _meanwhile("arena", arena)


def _mapped(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _ask_for_large_pages(mapped: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


def _tensor(view: memoryview, start: int, shape: Sequence[int], count: int, dtype: torch.dtype) -> Tensor:
    # resized, not viewed: autograd assumes that a view may change with its base
    return torch.frombuffer(view, dtype=dtype, count=count, offset=start).resize_(tuple(shape))


class Arena:
    """Cuts tensors from blocks one behind the other, for one pass; each has a new one."""

    def __init__(self, blocks: Blocks = BLOCKS) -> None:
        self._blocks = blocks
        self._view: memoryview | None = None
        self._at = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of that shape, with anything in it."""
        count = prod(shape)
        size = count * dtype.itemsize
        if size and (self._view is None or self._at + size > len(self._view)):
            self._view, self._at = self._blocks.take(max(size, ARENA_BYTES)), 0
        if size == 0 or self._view is None:
            return torch.empty(*shape, dtype=dtype)
        made = _tensor(self._view, self._at, shape, count, dtype)
        self._at += -(-size // _ALIGNED) * _ALIGNED
        return made


def cut(arena: Arena | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """A tensor from the arena, for an operation to write to; None without one: then the operation makes its own."""
    return None if arena is None else arena.empty(shape, dtype)


def new_empty(
    like: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None, arena: Arena | None = None
) -> Tensor:
    """A contiguous tensor on the device of `like`, of its shape and dtype if none is given, with anything in it.

    Without an arena to cut it from, a large one on the host has a block for itself.
    """
    shape, dtype = like.shape if shape is None else shape, dtype or like.dtype
    if arena is not None:
        return arena.empty(shape, dtype)
    count = prod(shape)
    size, blocks = count * dtype.itemsize, _OF_THREAD.blocks
    if blocks is not None and like.is_cpu and size:
        view = blocks.take(size)
        if view is not None:
            with _disable_current_modes():  # watchers see tensors that others make
                return _tensor(view, 0, shape, count, dtype)
    elif like.is_cpu and size >= SMALLEST:
        view = BLOCKS.take(max(size, ALONE_BYTES))
        if view is not None:
            return _tensor(view, 0, shape, count, dtype)
    return like.new_empty(shape, dtype=dtype)


def new_lasting(like: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous tensor on the device of `like`, of its dtype, with anything in it, for what lives long and is read
    often, as packed weights are. On the host a large one is none of malloc's: it lies in the arena that `lasting` gave,
    else in pages of its own, and goes back to the system whole, leaving no hole that something small may hold open."""
    count = prod(shape)
    size = count * like.element_size()
    if not like.is_cpu or size < SMALLEST:
        return like.new_empty(shape)
    if _OF_THREAD.arena is not None:
        return _OF_THREAD.arena.empty(shape, like.dtype)
    try:
        return _tensor(memoryview(_mapped(size)), 0, shape, count, like.dtype)
    except OSError:
        return like.new_empty(shape)  # malloc's error names the size


def placed(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on a device; a GPU is not waited for: it copies from pages that stay where they are.

    Args:
        dtype: of the result; None: its own.
    """
    if device.type != "cuda" or not x.is_cpu:
        return x.to(device=device, dtype=dtype)
    return x.pin_memory().to(device=device, dtype=dtype, non_blocking=True)
