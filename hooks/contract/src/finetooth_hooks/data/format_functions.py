"""A format in one function of a local file.

    from finetooth_hooks import Conversation, Message, row_format

    @row_format("ask", "reply")
    def tickets(values):
        return Conversation((Message("user", values["ask"]), Message("assistant", values["reply"])))

`ft run recipe.yaml --plugins tickets.py` then reads rows that have both columns with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from finetooth_hooks.data.examples import Example, LeftOut, ReadRow, Row
from finetooth_hooks.entries import Format
from finetooth_hooks.errors import DataError
from finetooth_hooks.markers import hookimpl

if TYPE_CHECKING:
    from finetooth_hooks.options import NoOptions

__all__ = ["row_format"]

Function = TypeVar("Function", bound=Callable[[Mapping[str, Any]], Any])

OPTIONS = f"{import_module.__name__}('finetooth_hooks.options').NoOptions"
"""The annotation by which the options model of a builder is found, evaluated only then: it takes pydantic."""
HOOK = "_row_formats"
"""The global of the decorated function's module that yields its formats."""


def row_format(*columns: str, name: str = "", rank: int = 0) -> Callable[[Function], Function]:
    """Decorator that makes a function from columns to an `Example` (or a list of them) a format with the function's
    name.

    The function itself does not change and can be called in a test. Its module gets a hook that yields the entry;
    several functions of a file may be decorated. Errors of the function name the row.

    Args:
        columns: rows with all of them, none null, are detected as the format. Without any it is used only by name
            (`data.format`).
        name: another name for the format.
        rank: see `Format`; 0 goes before the formats that come with finetooth.
    """
    if not all(isinstance(column, str) for column in columns):
        raise TypeError("row_format takes names of columns: @row_format('ask', 'reply'), or @row_format()")

    def decorate(function: Function) -> Function:
        called, module, builder = name or function.__name__, function.__globals__, f"_build_{function.__name__}"
        doc = function.__doc__ or f"the function {called} of a local file"
        summary = doc.strip().partition("\n")[0].rstrip(".")
        entry = Format(name=called, build=f"{function.__module__}:{builder}", summary=summary, rank=rank)
        module[builder] = _builder(FunctionFormat(called, columns, function))
        if HOOK not in module:
            module[HOOK] = _hook([])
        module[HOOK].entries.append(entry)
        return function

    return decorate


class FunctionFormat:
    """A format made of a function; implements `finetooth_hooks.protocols.Format`."""

    def __init__(self, name: str, columns: tuple[str, ...], function: Callable[[Mapping[str, Any]], Any]) -> None:
        self._name, self._columns, self._function = name, columns, function

    def detect(self, values: Mapping[str, Any]) -> str | None:
        """Why the row is of the format: it has the columns."""
        if not self._columns or any(values.get(column) is None for column in self._columns):
            return None
        return f"has the {'column' if len(self._columns) == 1 else 'columns'} {', '.join(map(repr, self._columns))}"

    def read(self, row: Row) -> ReadRow:
        """The function's result for the row.

        Raises:
            DataError: a column is missing, the function raises, or it does not return examples.
        """
        for column in self._columns:
            if row.values.get(column) is None:
                raise DataError(row.id, f"{column} is missing or null", action="fix the row, or set data.format")
        try:
            example = self._function(row.values)
        except DataError as error:
            raise DataError(row.id, error.problem.removeprefix(f"{row.id}: "), action=error.action) from error
        except Exception as error:
            problem = f"format {self._name} raised {type(error).__name__}: {error}"
            raise DataError(row.id, problem, action="fix its function, or the row") from error
        kinds = (*get_args(Example), LeftOut)
        for result in example if isinstance(example, list | tuple) else (example,):
            if not isinstance(result, kinds):
                names = ", ".join(kind.__name__ for kind in kinds)
                problem = f"format {self._name} returned a {type(result).__name__}"
                raise DataError(row.id, problem, action=f"return one of {names}, or a list of them")
        return cast("ReadRow", example)


def _hook(entries: list[Format]) -> Callable[[], Iterator[Format]]:
    @hookimpl(specname="ft_formats")
    def ft_formats() -> Iterator[Format]:
        yield from entries

    ft_formats.entries = entries  # type: ignore[attr-defined]
    return ft_formats


def _builder(format_: FunctionFormat) -> Callable[..., FunctionFormat]:
    def build(options: NoOptions, context: Any) -> FunctionFormat:  # readers of annotations read all of them
        return format_

    build.__annotations__["options"] = OPTIONS
    return build
