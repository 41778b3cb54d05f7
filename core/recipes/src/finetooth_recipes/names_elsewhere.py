"""Names that other tools use: what is meant here by a setting of theirs, and what nothing here brings.

Distributions offer them in the entry point group `finetooth.elsewhere`, as modules with two mappings: `SETTINGS`, from
a name to (setting that is meant, advice), and `ABSENT`, by kind, from a name to the reason why no package brings it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetooth_toolbox.text.nearest import form, nearest_slip

SLIP = 0.88
"""Likeness from which on a name that belongs elsewhere is meant: a letter that is missing, doubled or swapped."""


@dataclass(frozen=True)
class Meaning:
    """What a name from elsewhere stands for.

    Attributes:
        setting: path of the setting that is meant; empty if there is none.
        advice: what to do, where naming the setting is not enough.
    """

    setting: str
    advice: str = ""

    @property
    def action(self) -> str:
        """What to tell the user who wrote the name."""
        return self.advice or f"did you mean {self.setting}?"


def meaning_of(key: str) -> Meaning | None:
    """What a key stands for that no section has; None if it is not known."""
    return _by_form().get(form(key))


def almost(key: str) -> Meaning | None:
    """What a key stands for that is a known name with a slip of the pen."""
    close = nearest_slip(form(key), _by_form(), SLIP)
    return None if close is None else _by_form()[close]


def option_meant(option: str, parameters: Iterable[str | None]) -> str:
    """The setting that somebody gave as an option of a command; empty if it is none.

    Args:
        parameters: the command's; `overrides` are settings.
    """
    if "overrides" not in parameters:
        return ""
    name = option.lstrip("-").replace("-", "_")
    return known.setting if (known := meaning_of(name)) else name if "." in name else ""


def absent(kind: str, name: str) -> str:
    """Why no package brings an entry of this name; empty if that is not known."""
    reasons = (module.ABSENT.get(kind, {}).get(name.lower().replace("-", "_"), "") for module in _modules())
    return next(filter(None, reasons), "")


@cache
def _by_form() -> Mapping[str, Meaning]:
    return {form(name): Meaning(*meaning) for module in _modules() for name, meaning in module.SETTINGS.items()}


@cache
def _modules() -> tuple[Any, ...]:
    from importlib.metadata import entry_points  # here: errors alone need it

    return tuple(entry.load() for entry in sorted(entry_points(group="finetooth.elsewhere"), key=lambda e: e.value))
