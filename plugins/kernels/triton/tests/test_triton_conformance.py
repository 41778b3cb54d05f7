"""The conformance kit over the Triton kernels, on a GPU. Without one it skips, but for `make kernels-test`, which runs
it in a process whose Triton interprets (`test_triton_interpreter.py`)."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_triton.plugin")
def test_triton(check: Callable[[], None]) -> None:
    check()
