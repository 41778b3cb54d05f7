"""Checks of what is given to a command on the command line, the same for all of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import click
from finetooth_hooks.errors import UserError


def guarded(command: click.Command) -> click.Command:
    """The command, whose parameters and those of its subcommands refuse text that is not UTF-8, empty paths and names,
    and numbers that are not finite."""
    for parameter in command.params:
        if "type_cast_value" not in vars(parameter):  # a module's command is loaded once, and called more often
            _guard(parameter)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            guarded(inner)
    return command


def _guard(parameter: click.Parameter) -> None:
    cast = parameter.type_cast_value
    filled = parameter.required or isinstance(parameter.type, click.Path | click.File)

    def checked(ctx: click.Context, value: Any) -> Any:
        given = list(_texts(value))
        for text in given:
            name = _name(parameter, text)
            if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(f"{name}: {text!r} is not {sys.getfilesystemencoding()} text", action=_remedy(text))
            if filled and not text.strip():
                raise UserError(f"{name}: must not be empty", action="write a name or a path")
        made = cast(ctx, value)
        for number in made if isinstance(made, tuple) else (made,):
            if given and isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{_name(parameter)}: {number} is not finite", action="write a finite number")
        return made

    parameter.type_cast_value = checked  # type: ignore[method-assign]


def _texts(value: Any) -> Iterator[str]:
    """What was written; a default may be anything."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _texts(part)


def _remedy(text: str) -> str:
    """What to do about bytes that Python could not read as text: it may expect another encoding."""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return "write it in UTF-8"
    return "set PYTHONUTF8=1"


def _name(parameter: click.Parameter, text: str = "") -> str:
    """The option, the setting of `KEY=VALUE`, or what the usage calls the argument."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    key, equals, _ = text.partition("=")
    return key if equals and key.isprintable() else parameter.human_readable_name
