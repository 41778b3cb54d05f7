"""Entries as functions, so that notebooks and editors complete the options of a recipe from Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks.context import Catalog
from finetooth_hooks.entries import Entry
from finetooth_hooks.errors import PluginError
from finetooth_hooks.options import Options


class EntryFunctions:
    """The entries of one kind, as functions that return what a recipe says.

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
        if name.startswith("_"):  # what tools ask of any object, a copy's too that is not whole yet
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
            if len(called) == 1 and not functions:  # else the run checks: it knows the framework, and keeps functions
                self._check(made)
            return made

        model = self._options(entry)
        about = [f"    {option}: {field.description}" for option, field in model.model_fields.items()]
        function.__name__, function.__doc__ = name, "\n".join([f"{entry.summary}.", "", "Args:", *about])
        function.__signature__ = inspect.signature(model)  # type: ignore[attr-defined]
        return function


def _values(option: Any) -> list[Any]:
    return [*option] if isinstance(option, list | tuple) else [option]
