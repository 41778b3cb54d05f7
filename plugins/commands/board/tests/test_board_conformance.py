"""The conformance kit over this plugin."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_board.plugin")
def test_conforms(check: Callable[[], None]) -> None:
    check()
