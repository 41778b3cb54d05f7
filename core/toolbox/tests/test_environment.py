"""Values of the environment come into a text, and out of a message again."""

from __future__ import annotations

import pytest
from finetooth_hooks import RecipeError
from finetooth_toolbox.text.environment import expand, hide, names_variable


def test_values_come_in_and_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_TEST_ONE", "s3cret${FT_TEST_TWO}")
    monkeypatch.setenv("FT_TEST_TWO", "ab")
    text = "x://${FT_TEST_ONE}@host/${FT_TEST_TWO}$HOME{}"
    full = expand(text, "url")
    assert full == "x://s3cret${FT_TEST_TWO}@host/ab$HOME{}"  # a value is not looked into
    assert hide(f"no route to {full}: s3cret${{FT_TEST_TWO}}", text) == (
        "no route to x://${FT_TEST_ONE}@host/ab$HOME{}: ${FT_TEST_ONE}"
    )


def test_a_variable_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (None, ""):
        monkeypatch.delenv("FT_TEST_NONE", raising=False)
        if given is not None:
            monkeypatch.setenv("FT_TEST_NONE", given)
        with pytest.raises(RecipeError, match="url: the environment has no FT_TEST_NONE"):
            expand("${FT_TEST_NONE}", "url")


def test_exactly_one_variable() -> None:
    assert names_variable("${A_1}") and not names_variable("x${A}") and not names_variable("$A")
