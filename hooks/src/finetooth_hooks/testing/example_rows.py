"""Small rows of each kind, for checks that must find one which a plugin takes."""

from __future__ import annotations

from collections.abc import Callable

from finetooth_hooks.examples import Message, Pair, Stepwise, Text
from finetooth_hooks.protocols import Examples
from finetooth_hooks.testing.fake_context import conversations


def texts(split: str) -> Examples:
    rows = tuple((f"{split}:{i}", Text(f"Document {i} says {i * i}. " * (i + 1))) for i in range(10))
    return Examples(split, rows, format="made by the kit", source="made by the kit")


def pairs(split: str) -> Examples:
    rows = tuple(
        (f"{split}:{i}", Pair(_said("user", f"{i}+1?"), _said("assistant", f"{i + 1}"), _said("assistant", "no idea")))
        for i in range(10)
    )
    return Examples(split, rows, format="made by the kit", source="made by the kit")


def steps(split: str) -> Examples:
    rows = tuple(
        (
            f"{split}:{i}",
            Stepwise(_said("user", f"{i}+2?"), (f"{i}+1={i + 1}", f"so {i + 2 + i % 2}"), (True, i % 2 == 0)),
        )
        for i in range(10)
    )
    return Examples(split, rows, format="made by the kit", source="made by the kit")


def _said(role: str, text: str) -> tuple[Message, ...]:
    return (Message(role, text),)


KINDS: tuple[Callable[[str], Examples], ...] = (conversations, texts, pairs, steps)
"""Functions that make rows of a split, each of one kind."""
