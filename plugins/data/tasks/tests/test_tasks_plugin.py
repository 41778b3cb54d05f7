"""The tasks plugin passes the conformance kit."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_tasks.plugin")
def test_plugin(check: Callable[[], None]) -> None:
    check()
