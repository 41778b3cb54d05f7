"""Values of the environment in options: `${NAME}` stands for one, so that a recipe, a plan and a log never hold it."""

from __future__ import annotations

import os
import re

from finetooth_hooks.errors import RecipeError

_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WORTH_HIDING = 4
"""Characters from which on a value is hidden; a shorter one would be found in every other word."""


def expand(text: str, setting: str) -> str:
    """A text with the values that it names.

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
    """Whether a text is exactly one variable."""
    return _NAMED.fullmatch(text) is not None


def hide(message: str, text: str) -> str:
    """A message in which the values that `text` names are its `${NAME}` again."""
    for name in set(_NAMED.findall(text)):
        value = os.environ.get(name, "")
        if len(value) >= _WORTH_HIDING:
            message = message.replace(value, f"${{{name}}}")
    return message
