"""The source of a function, with everything that it uses of its module, as the text of a separate module."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
import textwrap
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any

from finetooth_hooks.errors import RecipeError

FUTURE = 0x1000000
"""Flag of code that was compiled with `from __future__ import annotations`."""


def source_of(function: Any, setting: str) -> tuple[str, str]:
    """The name of a function, and the text of a module with it and everything that it uses of its own module (imports,
    functions, classes, plain constants).

    Raises:
        RecipeError: the function has no name, reads variables of an enclosing function, has no known source, or uses an
            object without source; one line that names it.
    """
    shown = getattr(function, "__qualname__", None) or repr(function)
    if not isinstance(function, FunctionType):
        raise _not_kept(setting, shown, f"it is a {type(function).__name__}", "wrap it in a function written with def")
    if function.__name__ == "<lambda>":
        line = function.__code__.co_firstlineno
        raise _not_kept(setting, f"the lambda in line {line}", "a lambda has no name", "write it with def")
    text = _Text(setting, shown)
    text.add(function)
    future = "from __future__ import annotations\n\n" if function.__code__.co_flags & FUTURE else ""
    head = f'"""The function `{function.__name__}`, as it was given from Python."""\n\n{future}'
    return function.__name__, head + "\n".join([*text.imports, *text.constants]) + "\n\n\n" + "\n\n\n".join(text.parts)


@dataclass
class _Text:
    """Collects parts of the text, each after the parts that it uses."""

    setting: str
    shown: str
    imports: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)

    def add(self, thing: Any) -> None:
        """Add a function or class, after everything that it uses."""
        name = thing.__name__
        if free := getattr(getattr(thing, "__code__", None), "co_freevars", ()):
            raise self._refused(
                f"{name} reads {', '.join(free)} of the function around it",
                "make it a constant of the module, or an argument with a default",
            )
        try:
            source = textwrap.dedent(inspect.getsource(thing))
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            raise self._refused(f"the source of {name} is not known", "define it in a file or in a cell") from None
        space = thing.__globals__ if isinstance(thing, FunctionType) else vars(sys.modules[thing.__module__])
        self.seen[name] = thing
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for used in sorted(names & space.keys()):
            self._use(used, space[used], thing)
        self.parts.append(source.rstrip())

    def _use(self, name: str, value: Any, by: Any) -> None:
        if name in self.seen:
            if self.seen[name] is not value:
                raise self._refused(f"two things are called {name} in the modules that it uses", "rename one of them")
            return
        self.seen[name] = value
        if isinstance(value, ModuleType):
            self.imports.append(f"import {value.__name__} as {name}")
        elif isinstance(value, re.Pattern):
            self.constants.append(f"{name} = __import__('re').compile({value.pattern!r}, {int(value.flags)})")
        elif isinstance(value, FunctionType | type) and value.__module__ == by.__module__ and value.__name__ == name:
            self.add(value)
        elif (home := _home(value)) is not None:
            self.imports.append(f"from {home} import {value.__name__} as {name}")
        elif _is_plain(value):
            self.constants.append(f"{name} = {value!r}")
        elif not hasattr(builtins, name):
            raise self._refused(
                f"it uses {name}, a {type(value).__name__} that has no source", f"make {name} inside the function"
            )

    def _refused(self, why: str, action: str) -> RecipeError:
        return _not_kept(self.setting, self.shown, why, action)


def _home(value: Any) -> str | None:
    """The module that a function or class can be imported from."""
    home, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not isinstance(home, str) or not isinstance(name, str) or home == "__main__":
        return None
    return home if getattr(sys.modules.get(home), name, None) is value else None


def _is_plain(value: Any) -> bool:
    """Whether its `repr` is a literal that recreates it."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _not_kept(setting: str, shown: str, why: str, action: str) -> RecipeError:
    return RecipeError(setting, f"{shown} cannot be kept with the run: {why}", action=action)
