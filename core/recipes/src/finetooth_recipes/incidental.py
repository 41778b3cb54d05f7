"""Settings without effect on numbers: a run's folder, its trackers, the speed of data preparation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class _Mark:
    """See `Incidental`."""


Incidental = Annotated[T, _Mark()]
"""The type of a recipe's field without effect on numbers, which is not part of a plan's hash."""


def incidental_settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of such fields, those of sections among them."""
    for name, field in model.model_fields.items():
        if any(isinstance(mark, _Mark) for mark in field.metadata):
            yield f"{prefix}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from incidental_settings(field.annotation, f"{prefix}{name}.")


def without(recipe: Mapping[str, Any], settings: frozenset[str], prefix: str = "") -> dict[str, Any]:
    """A recipe as the user gave it, without these settings."""
    return {
        name: without(value, settings, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        for name, value in recipe.items()
        if f"{prefix}{name}" not in settings
    }


def is_among(setting: str, settings: frozenset[str]) -> bool:
    """Whether a decision is about one of the settings, or a part of it."""
    return any(setting == other or setting.startswith(f"{other}.") for other in settings)
