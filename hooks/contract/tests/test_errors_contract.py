"""Errors are one line that names the place and the next action, and know their exit code."""

from __future__ import annotations

import pytest
from finetooth_hooks import (
    DataError,
    EngineError,
    FinetoothError,
    PlanError,
    PluginError,
    RecipeError,
    StopRun,
    UpstreamError,
    UserError,
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RecipeError("train.seed", "is -1", action="use 0 or more"), "train.seed: is -1 (use 0 or more)"),
        (RecipeError("", "is empty"), "is empty"),
        (DataError("a.jsonl:17", "no JSON"), "a.jsonl:17: no JSON"),
        (PluginError("acme", "needs hooks 2"), "acme: needs hooks 2"),
        (PlanError("lomo cannot accumulate", action="raise train.micro_batch_tokens"), None),
        (UserError("nothing there"), "nothing there"),
    ],
)
def test_user_errors_exit_with_two(error: UserError, text: str | None) -> None:
    assert isinstance(error, UserError) and error.exit_code == 2
    assert str(error) == text if text else error.action in str(error)
    assert "\n" not in str(error)


def test_the_tree() -> None:
    for cls in (RecipeError, DataError, PluginError, PlanError):
        assert issubclass(cls, UserError) and issubclass(cls, FinetoothError)
    assert EngineError("nan").exit_code == 1
    assert not issubclass(EngineError, UserError)
    assert issubclass(UpstreamError, EngineError) and not UpstreamError("gone").late
    assert UpstreamError("silent", late=True).late
    assert not issubclass(StopRun, FinetoothError)
    stop = StopRun("enough", exit_code=4)
    assert (str(stop), stop.reason, stop.exit_code) == ("enough", "enough", 4)


def test_places_are_kept() -> None:
    assert RecipeError("a.b", "x").setting == "a.b"
    assert DataError("a:1", "x").where == "a:1"
    assert PluginError("acme", "x").plugin == "acme"
