"""Names of stacks of adapters: `first+second*0.5` is the first and half of the second."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetooth_hooks.errors import UserError

from finetooth_toolbox.text.column_names import repeated

MOST = 64
"""Largest number of pieces between `+`: each is tried with all later ones, so the work grows with the square."""


def is_stack(text: str) -> bool:
    """Whether a name may be a stack, or one adapter with a weight."""
    return "+" in text or "*" in text


def parts_of(text: str, known: Callable[[str], bool], *, setting: str) -> list[tuple[str, float]]:
    """The names and weights in a text, in order; the default weight is 1.

    A name may contain `+` or `*`: the longest known name is taken.

    Args:
        known: whether an adapter has this name.
        setting: the setting of the text, for the error.

    Raises:
        UserError: a name is unknown, a weight is not a number, two parts have the same name, or the text has too many
            parts.
    """
    parts: list[tuple[str, float]] = []
    pieces = text.split("+")
    if len(pieces) > MOST:
        raise UserError(f"{setting}: a sum of {len(pieces):,} parts", action=f"name at most {MOST}")
    while pieces:
        for length in range(len(pieces), 0, -1):
            part = _part("+".join(pieces[:length]), known)
            if part is not None:
                break
        else:
            for length in range(len(pieces), 0, -1):
                name, star, weight = "+".join(pieces[:length]).rpartition("*")
                if star and known(name.strip()):
                    raise UserError(
                        f"{setting} {text}: the weight {weight.strip()!r} of {name.strip()} must be a number other "
                        "than 0",
                        action="write it as in first+second*0.5",
                    )
            raise UserError(
                f"{setting} {text}: no adapter has the name {pieces[0].strip()!r}",
                action="name adapters that exist, with + between them and * before a weight",
            )
        parts.append(part)
        pieces = pieces[length:]
    twice = repeated(name for name, _ in parts)
    if twice is not None:
        raise UserError(f"{setting} {text}: it names {twice} twice", action=f"give it one weight: {twice}*2")
    return parts


def _part(piece: str, known: Callable[[str], bool]) -> tuple[str, float] | None:
    """A name with its weight; None if the piece is not one."""
    whole = piece.strip()
    if whole and known(whole):
        return whole, 1.0
    name, star, text = whole.rpartition("*")
    name = name.strip()
    if not star or not name or not known(name):
        return None
    try:
        weight = float(text)
    except ValueError:
        return None
    return (name, weight) if math.isfinite(weight) and weight else None
