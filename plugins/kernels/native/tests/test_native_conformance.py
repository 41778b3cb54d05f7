"""The conformance kit over the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_native.plugin")
def test_native(check: Callable[[], None]) -> None:
    check()
