"""Options that `ft` reads before the command line is parsed, since plugins bring commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetooth_hooks.errors import UserError
from finetooth_toolbox.cli.options import LOG_LEVEL

VARIABLE = "FT_PLUGINS"
"""Environment variable with further plugins, separated by commas or by the system's path separator."""

BLOCK = "no:"


@dataclass(frozen=True)
class StartOptions:
    """What the user said about plugins and errors.

    Attributes:
        plugins: local files, modules or requirements, from `FT_PLUGINS` and then `--plugins`.
        blocked: distributions that must not be imported.
        debug: show tracebacks.
        trusted: Python that run folders name may run, though no run of this machine has named it.
    """

    plugins: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    debug: bool = False
    trusted: bool = False

    @property
    def arguments(self) -> list[str]:
        """These options as they stand before another command."""
        plugins, blocked = [f"--plugins={plugin}" for plugin in self.plugins], [f"-p{BLOCK}{it}" for it in self.blocked]
        return [*plugins, *blocked, *(["--trust-code"] if self.trusted else [])]


def read_start_options(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[StartOptions, list[str]]:
    """Take `--plugins X`, `-p no:DIST`, `--trust-code` and `--debug` out of the arguments before a `--`, and put
    `--log-level X` before the command.

    A `-p` that does not block (`-p no:...`) is left to the command.

    Returns:
        The options, and the arguments that remain.

    Raises:
        UserError: `--plugins` or `-p no:` without a value.
    """
    plugins, blocked, rest = split_plugins(environment.get(VARIABLE, "")), [], []
    debug = trusted = False
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument == "--":
            rest += [argument, *remaining]
            break
        if argument == "--debug":
            debug = True
        elif argument == "--trust-code":
            trusted = True
        elif argument == "--plugins" or argument.startswith("--plugins="):
            value = argument.partition("=")[2] if "=" in argument else remaining.pop(0) if remaining else ""
            if not value or value.startswith("-"):
                raise UserError("--plugins names no plugin", action="write --plugins FILE.py or --plugins MODULE")
            plugins.append(value)
        elif argument.partition("=")[0] == LOG_LEVEL:  # the group's own, which stands before the command
            rest = [argument, *([remaining.pop(0)] if remaining and "=" not in argument else []), *rest]
        elif argument == "-p" and remaining and remaining[0].startswith(BLOCK):
            blocked.append(_blocked(remaining.pop(0)))
        elif argument.startswith(f"-p{BLOCK}"):
            blocked.append(_blocked(argument[2:]))
        else:
            rest.append(argument)
    return StartOptions(tuple(plugins), tuple(blocked), debug, trusted), rest


def split_plugins(text: str) -> list[str]:
    """Split the value of `FT_PLUGINS`; a comma inside a version range (`NAME>=1,<2`) does not separate."""
    parts: list[str] = []
    for part in text.replace(os.pathsep, ",").split(","):
        part = part.strip()
        if part and parts and part[0] in "<>=!~":
            parts[-1] += f",{part}"
        elif part:
            parts.append(part)
    return parts


def _blocked(text: str) -> str:
    name = text.removeprefix(BLOCK)
    if not name:
        raise UserError("-p no: blocks no plugin", action="write -p no:DISTRIBUTION")
    return name
