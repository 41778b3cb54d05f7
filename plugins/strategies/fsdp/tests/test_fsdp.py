"""The strategy by itself; that ranks train as one process does is in tests/scale."""

from __future__ import annotations

from typing import Any

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_fsdp.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()
