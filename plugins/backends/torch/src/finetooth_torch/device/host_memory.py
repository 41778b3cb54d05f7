"""Makes malloc keep the memory that host tensors release, for the next step, or give it back.

glibc's malloc maps new pages for every large tensor, and returns a step's memory at its end. The system zeroes each new
page at its first write, which costs a tenth of a step of a small model. Keeping the memory does not raise the peak.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress

from finetooth_kernels.memory import LARGE

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt`."""

_GROWTH = 64 * 2**20
"""Bytes that malloc asks of the system at a time."""


APART = 2**20
"""Bytes from which a tensor gets separate pages if memory counts more than time."""


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Make malloc keep freed memory, for the whole process, after it has returned what is free now; return whether that
    was done.

    Nothing changes if malloc is not glibc's, or if the user has configured it (`MALLOC_...`, `GLIBC_TUNABLES`) or
    preloads another (`LD_PRELOAD`).
    """
    # larger ones still get separate pages, which are returned: kept, they would leave large holes
    return _set_options(environment, {_MMAP_THRESHOLD: LARGE, _TRIM_THRESHOLD: -1, _TOP_PAD: _GROWTH})


def give_back_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Make malloc return freed memory, for runs that keep activations or layers elsewhere: holes between tensors would
    take as much as offloading saves. Return whether that was done; see `keep_freed`."""
    return _set_options(environment, {_MMAP_THRESHOLD: APART, _TRIM_THRESHOLD: APART, _TOP_PAD: 0})


def trim() -> None:
    """Give the memory that malloc holds and nobody uses back to the system; nothing with a C library that cannot."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_options(environment: Mapping[str, str], settings: Mapping[int, int]) -> bool:
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in environment):
        return False
    try:
        process = ctypes.CDLL(None)
        process.gnu_get_libc_version  # noqa: B018 - other libraries have a `mallopt` that does nothing
        tell, trim = process.mallopt, process.malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    accepted = [tell(setting, value) for setting, value in settings.items()]
    return all(accepted)
