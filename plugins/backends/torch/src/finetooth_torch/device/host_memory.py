"""Keeps the memory that tensors on the host release, for the tensors of the next step; or gives it back.

glibc's malloc asks the system for pages of its own for every large tensor, and gives a step's memory back at its end.
Each new page is zeroed when it is first written to, which costs a tenth of a step of a small model. What is kept was in
use at once before, so the peak stays as it is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

from finetooth_kernels.memory import LARGE

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""What `mallopt` calls them."""

_GROWTH = 64 * 2**20
"""Asked of the system at a time."""


APART = 2**20
"""Bytes of a tensor that gets pages of its own where memory counts more than time."""


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell malloc, for the whole process, after it has given back what is free by now; whether that was done.

    Not where malloc is another than glibc's, nor where the user has told it something (`MALLOC_...`, `GLIBC_TUNABLES`)
    or put another in front (`LD_PRELOAD`).
    """
    # larger ones still get pages of their own, and are given back: kept, they would leave large holes
    return _set_options(environment, {_MMAP_THRESHOLD: LARGE, _TRIM_THRESHOLD: -1, _TOP_PAD: _GROWTH})


def give_back_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """The other way round, for runs that keep activations or layers elsewhere: tensors that come and go would leave
    holes that take as much as what was put away. Whether it was done; see `keep_freed`."""
    return _set_options(environment, {_MMAP_THRESHOLD: APART, _TRIM_THRESHOLD: APART, _TOP_PAD: 0})


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
