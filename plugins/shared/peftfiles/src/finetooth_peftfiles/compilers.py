"""Undoes peft's changes to the process's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("CC", "CXX")


@contextmanager
def compilers_restored() -> Iterator[None]:
    """Inside the `with` block, peft may name compilers; afterwards `CC` and `CXX` are what they were.

    peft's BOFT names gcc for both while it tries to compile for CUDA, and where that fails leaves them so, for whatever
    this process compiles later. gcc links no C++ library: kernels made with it would not load.
    """
    before = {name: os.environ.get(name) for name in NAMES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
