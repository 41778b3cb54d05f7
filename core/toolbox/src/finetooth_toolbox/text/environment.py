"""Environment variables in options: a recipe, a plan and a log hold `${NAME}`, never the value."""

from __future__ import annotations

import os
import re

from finetooth_hooks.errors import RecipeError

_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WORTH_HIDING = 4
"""Smallest length of a hidden value, in characters; a shorter one would occur in many words."""


def expand(text: str, setting: str) -> str:
    """A text with the values of its variables.

    Args:
        setting: for messages.

    Raises:
        RecipeError: the environment has no such variable.
    """

    def value(match: re.Match[str]) -> str:
        variable = os.environ.get(match[1])
        if not variable:
            raise RecipeError(setting, f"the environment has no {match[1]}", action=f"export {match[1]}=...")
        return variable

    return _NAMED.sub(value, text)


def names_variable(text: str) -> bool:
    """Whether a text is exactly one variable, `${NAME}`."""
    return _NAMED.fullmatch(text) is not None


def hide(message: str, text: str) -> str:
    """A message with `${NAME}` instead of the values of the variables in `text`."""
    for name in set(_NAMED.findall(text)):
        value = os.environ.get(name, "")
        if len(value) >= _WORTH_HIDING:
            message = message.replace(value, f"${{{name}}}")
    return message
