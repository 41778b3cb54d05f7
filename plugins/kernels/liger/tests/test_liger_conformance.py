"""The conformance kit over the provider `liger`, on a GPU. Without one it skips; `make kernels-test` runs it in a
process whose Triton interprets (`test_liger_interpreter.py`)."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_liger.plugin")
def test_liger(check: Callable[[], None]) -> None:
    check()
