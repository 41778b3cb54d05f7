"""Sums of adapters by their names: what a text says, and what it cannot say."""

from __future__ import annotations

import pytest
from finetooth_hooks import UserError
from finetooth_toolbox.text.stacked_names import is_stack, parts_of

KNOWN = {"a", "b", "a+b", "runs/c*d", "x.y"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", [("a", 1.0)]),
        ("b+a", [("b", 1.0), ("a", 1.0)]),
        ("a+b", [("a+b", 1.0)]),  # the longest name that is known
        ("a+b+b*0.5", [("a+b", 1.0), ("b", 0.5)]),
        ("a * -1 + x.y*2e-1", [("a", -1.0), ("x.y", 0.2)]),
        ("runs/c*d*3+a", [("runs/c*d", 3.0), ("a", 1.0)]),
    ],
)
def test_names_and_weights(text: str, parts: list[tuple[str, float]]) -> None:
    assert parts_of(text, KNOWN.__contains__, setting="model") == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a+", "no adapter has the name ''"),
        ("a+q+b", "no adapter has the name 'q'"),
        ("a*0", "the weight '0' of a must be a number other than 0"),
        ("x.y+a+b*nan", "the weight 'nan' of b must be a number other than 0"),
        ("b+a*2+b", "it names b twice"),
        ("+".join(["a"] * 65), "model: a sum of 65 parts"),
    ],
)
def test_what_cannot_be(text: str, said: str) -> None:
    with pytest.raises(UserError, match="model") as refused:
        parts_of(text, KNOWN.__contains__, setting="model")
    assert said in str(refused.value)


def test_what_may_be_a_stack() -> None:
    assert is_stack("a+b") and is_stack("a*2") and not is_stack("a")
