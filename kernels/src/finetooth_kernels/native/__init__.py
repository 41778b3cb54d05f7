"""C++ kernels for CPUs, compiled once on the machine they run on, by the compiler that is there.

``library_for(*tensors)`` is what they can be called through, or None: tensors they cannot read, no compiler, switched
off by ``FT_NATIVE=0``, or anything else that ``available()`` states. Who calls a kernel has torch operations for
that case, with the same result but for roundings.
"""

from __future__ import annotations

from finetooth_kernels.native.build import available, library, library_for
from finetooth_kernels.native.library import KERNEL_SPAN, Library, readable

__all__ = ["KERNEL_SPAN", "Library", "available", "library", "library_for", "readable"]
