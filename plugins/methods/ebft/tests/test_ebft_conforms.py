"""The method against the conformance kit."""

from __future__ import annotations

from typing import Any

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_ebft.plugin", installed=True)
def test_conforms(check: Any) -> None:
    check()
