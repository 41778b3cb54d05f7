"""Sections and entries as functions, so that notebooks and editors complete the settings of a recipe from Python."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks.context import Catalog
from finetooth_hooks.entries import Entry
from finetooth_hooks.errors import PluginError
from finetooth_hooks.options import Options

from finetooth_recipes.problems import plain_data, validate

ROWS = (("data", "train"), ("data", "eval"))
"""Settings that may hold rows in memory."""


class EntryFunctions:
    """The entries of one kind, as functions that return picks for a recipe.

    Example:
        >>> finetooth.adapter.lora(rank=8)  # doctest: +SKIP
        {'name': 'lora', 'rank': 8}

    Args:
        kind: of the entries, `adapter`.
        catalog: all entries.
        options: the class of an entry's options.
        check: refuses a mapping with a name and options.
    """

    def __init__(
        self,
        kind: str,
        catalog: Catalog,
        options: Callable[[Entry], type[Options]],
        check: Callable[[Mapping[str, Any]], object],
    ) -> None:
        self._kind, self._catalog, self._options, self._check = kind, catalog, options, check

    def __dir__(self) -> list[str]:
        return sorted({registered.entry.name for registered in self._catalog.all(self._kind)})

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        """A function with the options of the entry as its arguments.

        Raises:
            AttributeError: no entry has this name.
        """
        if name.startswith("_"):  # tools read such names of any object, even of an incomplete copy
            raise AttributeError(name)
        called = [registered.entry for registered in self._catalog.all(self._kind) if registered.entry.name == name]
        if not called:
            try:
                self._catalog.get(self._kind, name)
            except PluginError as error:
                raise AttributeError(str(error)) from None
        entry = called[0]

        def function(**options: Any) -> dict[str, Any]:
            made = {"name": name, **options}
            functions = any(callable(value) for option in options.values() for value in _values(option))
            if len(called) == 1 and not functions:  # else the run checks: it knows the framework and saves functions
                self._check(made)
            return made

        return _documented(function, name, f"{entry.summary}.", self._options(entry))


def section_function(
    name: str, recipe: type[Options], load: Callable[[Mapping[str, Any]], Options], elsewhere: Mapping[str, str]
) -> Callable[..., Options]:
    """A recipe, or a section of it, as a function with its settings as arguments. Rows in memory and functions stay
    unchanged; a run checks them when it saves them.

    Args:
        name: `Recipe`, `Train`.
        recipe: the model whose fields hold the sections.
        load: checks a whole recipe.
        elsewhere: settings of all sections with their paths, for the nearest name.
    """
    place = () if name == "Recipe" else (name.lower(),)
    model: type[Options] = recipe.model_fields[name.lower()].annotation if place else recipe  # type: ignore[assignment]

    def function(**settings: Any) -> Options:
        set_here = {setting: _as_set(value) for setting, value in settings.items()}
        plain = plain_data(_without_objects(set_here, place), place)
        made = validate(model, plain, prefix=place, elsewhere=elsewhere) if place else load(plain)
        return made.model_copy(
            update={name: settings[name] for name, value in set_here.items() if _has_objects(value, (*place, name))}
        )

    return _documented(function, name, model.__doc__ or "", model)


def _documented(function: Callable[..., Any], name: str, summary: str, model: type[Options]) -> Callable[..., Any]:
    """The function with the fields of a model as its arguments, and their documentation."""
    fields = model.model_fields
    about = [f"    {option}: {field.description}" for option, field in fields.items()]
    function.__name__ = function.__qualname__ = name
    function.__doc__ = "\n".join([summary, "", "Args:", *about])
    signature = inspect.signature(model)
    bare = [part.replace(annotation=fields[part.name].annotation) for part in signature.parameters.values()]
    function.__signature__ = signature.replace(parameters=bare)  # type: ignore[attr-defined]
    return function


def _as_set(value: Any) -> Any:
    """The set fields of a section from such a function; other values unchanged."""
    return value.model_dump(exclude_unset=True, warnings=False) if isinstance(value, Options) else value


def _is_section(value: Any) -> bool:
    """Whether a value is a mapping, and not the splits of a data set."""
    return isinstance(value, Mapping) and not hasattr(value, "column_names")


def _has_objects(value: Any, place: tuple[str, ...]) -> bool:
    """Whether a value holds rows in memory or functions, which pydantic models do not accept."""
    if _is_section(value):
        return any(_has_objects(item, (*place, name)) for name, item in value.items())
    return any(callable(item) or (place in ROWS and not _is_named(item)) for item in _values(value))


def _is_named(item: Any) -> bool:
    """Whether an item is a reference to rows, or cannot hold rows."""
    named = isinstance(item, Mapping) and "name" in item
    return named or item is None or isinstance(item, str | int | float | os.PathLike)


def _without_objects(settings: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: _without_objects(value, (*place, name)) if _is_section(value) else value
        for name, value in settings.items()
        if _is_section(value) or not _has_objects(value, (*place, name))
    }


def _values(option: Any) -> list[Any]:
    return [*option] if isinstance(option, list | tuple) else [option]
