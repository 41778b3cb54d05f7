"""Picks: the choice of an entry in a section of a recipe, with checks and marks of such fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from finetooth_hooks.errors import UserError
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from finetooth_recipes.problems import INVALID

AUTO = "auto"
"""The value that leaves a choice to the plan."""


@contextmanager
def pinned(setting: str, pick: Any) -> Iterator[None]:
    """Inside the `with` block, a user's error also says that the recipe picks an entry, since this entry may be
    unsuitable."""
    try:
        yield
    except UserError as error:
        name = pick.get("name") if isinstance(pick, dict) else pick
        if name != AUTO:
            error.action += f"; or, if it is not for {setting} {name}, which the recipe picks: {setting}={AUTO}"
        raise


def checked_pick(pick: Any) -> Any:
    """A pick whose name is a text; `auto` may have options."""
    name = pick.get("name") if isinstance(pick, dict) else pick
    if not isinstance(name, str):
        raise PydanticCustomError(
            INVALID, "the mapping has no 'name' that picks an entry", {"action": "add name: NAME"}
        )
    if not name.strip():
        raise PydanticCustomError(INVALID, "the name is empty", {"action": "write a name"})
    return pick


def checked_named_pick(pick: Any) -> Any:
    """A pick whose name is a text; `auto` may not have options."""
    if isinstance(pick, dict) and pick.get("name") == AUTO and len(pick) > 1:
        raise PydanticCustomError(
            INVALID, "options need a pick by name here, not 'auto'", {"action": "write name: NAME"}
        )
    return checked_pick(pick)


def picks(kind: str, *, auto: bool = True, also: str = "") -> WithJsonSchema:
    """Marks a field as a pick of `kind`; `finetooth_core.settings.schema` replaces the mark by the installed entries.

    Args:
        also: name of a further allowed shape of the field.
    """
    return WithJsonSchema({"pick": kind, "auto": auto, **({"also": also} if also else {})})


Checked = AfterValidator(checked_named_pick)
CheckedOrAuto = AfterValidator(checked_pick)
PickMapping = dict[str, Any]
SourceItem = Annotated[str | PickMapping, Checked, picks("source", auto=False)]
"""One source: a reference (a path, a hub id), or a mapping that picks a source by name."""
