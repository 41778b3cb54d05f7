"""Names of other tools: the corresponding settings, and the entries that no package has.

Distributions offer them in the entry point group `finetooth.elsewhere`, as modules with two mappings: `SETTINGS`, from
a name to (corresponding setting, advice), and `ABSENT`, by kind, from a name to the reason why no package has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetooth_toolbox.text.nearest import form, nearest_slip

SLIP = 0.88
"""Smallest similarity to a name of another tool: a letter may be missing, doubled or swapped."""


@dataclass(frozen=True)
class Meaning:
    """The meaning of another tool's name.

    Attributes:
        setting: path of the corresponding setting; empty without one.
        advice: what to do, if naming the setting is not enough.
    """

    setting: str
    advice: str = ""

    @property
    def action(self) -> str:
        """The next action for a user who wrote the name."""
        return self.advice or f"did you mean {self.setting}?"


def meaning_of(key: str) -> Meaning | None:
    """The meaning of a key that no section has; None if unknown."""
    return _by_form().get(form(key))


def almost(key: str) -> Meaning | None:
    """The meaning of a key that is a misspelt known name."""
    close = nearest_slip(form(key), _by_form(), SLIP)
    return None if close is None else _by_form()[close]


def option_meant(option: str, parameters: Collection[str | None], leaves: Mapping[str, str]) -> str:
    """The message for a setting that a user gave as an option of a command; empty if the option is not a setting.

    Args:
        parameters: the command's; `overrides` are settings.
        leaves: settings of the sections, by their last key, with their path.
    """
    name = option.lstrip("-").replace("-", "_")
    known = meaning_of(name)
    setting = (known.setting if known else "") or leaves.get(name) or (name if "." in name else "")
    if "overrides" not in parameters or not setting:
        return ""
    return f"No such option '{option}' (settings are written {setting}=VALUE)"


def absent(kind: str, name: str) -> str:
    """The reason why no package has an entry of this name; empty if unknown."""
    reasons = (module.ABSENT.get(kind, {}).get(name.lower().replace("-", "_"), "") for module in _modules())
    return next(filter(None, reasons), "")


@cache
def _by_form() -> Mapping[str, Meaning]:
    return {form(name): Meaning(*meaning) for module in _modules() for name, meaning in module.SETTINGS.items()}


@cache
def _modules() -> tuple[Any, ...]:
    from importlib.metadata import entry_points  # imported here: only errors need it

    return tuple(entry.load() for entry in sorted(entry_points(group="finetooth.elsewhere"), key=lambda e: e.value))
