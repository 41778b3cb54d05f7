"""The contract, with values and gradients against the float64 reference where this machine can compute it."""

from __future__ import annotations

from typing import Any

from finetooth_kit import parametrize_with_checks


@parametrize_with_checks("finetooth_flex.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()
