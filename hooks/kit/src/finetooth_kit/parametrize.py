"""The kit under pytest: one named test for each check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetooth_kit.checks import Check, CheckSkipped
from finetooth_kit.collection import Subject, collect


def parametrize(checks: Iterable[Check]) -> Any:
    """A decorator that gives a test function the argument `check`, once for each check."""
    import pytest

    def bind(check: Check) -> Callable[[], None]:
        def run() -> None:
            try:
                check()
            except CheckSkipped as skipped:
                pytest.skip(str(skipped))

        return run

    parameters = [
        pytest.param(
            bind(check),
            id=check.id,
            marks=[pytest.mark.xfail(reason=check.expected_failure, strict=True)] if check.expected_failure else [],
        )
        for check in checks
    ]
    return pytest.mark.parametrize("check", parameters)


def parametrize_with_checks(
    *subjects: Subject, expected_failures: Mapping[str, str] | None = None, installed: bool = False
) -> Any:
    """Run the conformance kit over plugin modules or entries.

        @parametrize_with_checks("acme.plugin")
        def test_plugin(check):
            check()

    Args:
        subjects: plugin modules, by name or as modules, or entries.
        expected_failures: reason by check, `{"gradient_is_the_slope": "stops the gradient of its baseline"}`; the key
            is the check's name, or its id `loss:dpo-gradient_is_the_slope` for one entry.
        installed: builders may pick entries of other installed plugins.
    """
    return parametrize(collect(*subjects, expected_failures=expected_failures, installed=installed))
