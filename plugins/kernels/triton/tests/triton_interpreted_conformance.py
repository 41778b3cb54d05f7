"""The conformance kit over interpreted Triton kernels, with small tiles.

Not collected by itself: TRITON_INTERPRET=1 must be set before Triton is imported. test_triton_interpreter.py runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from finetooth_kit import collect
from finetooth_kit.parametrize import parametrize
from finetooth_triton import gpu, launch, logits

assert os.environ.get("TRITON_INTERPRET") == "1", "run by test_triton_interpreter.py"


@pytest.fixture(autouse=True, scope="module")
def small_tiles() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.Tiles(16, 16, 16, 4, 2, group=2))
    for module in (launch, logits):
        patch.setattr(module, "ROW_COLUMNS", 16)
    patch.setattr(logits, "has_kernels", lambda device, dtype: True)
    yield
    patch.undo()


@parametrize(one for one in collect("finetooth_triton.plugin") if one.subject.startswith("kernel"))
def test_triton(check: Callable[[], None]) -> None:
    check()
