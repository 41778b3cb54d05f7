"""Commands of plugins, each imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from finetooth_guards.arguments import guarded
from finetooth_hooks.errors import PluginError

from finetooth_core.cli.state import State

if TYPE_CHECKING:
    from finetooth_core.plugins.catalog import Registered

PLUGINS = "plugins-"
"""Prefix of commands that are called `ft plugins NAME`."""


def state_of(ctx: click.Context) -> State:
    """The object for commands."""
    state = ctx.find_root().obj
    assert isinstance(state, State)
    return state


def brought_commands(ctx: click.Context, prefix: str = "") -> tuple[Registered, ...]:
    """Command entries of plugins.

    Args:
        prefix: `PLUGINS` for those of `ft plugins`; empty: all others.
    """
    return tuple(
        registered
        for registered in state_of(ctx).catalog.all("command")
        if registered.entry.name.startswith(PLUGINS) == bool(prefix)
    )


def load_command(registered: Registered) -> click.Command:
    """Import a command.

    Raises:
        PluginError: the entry's reference cannot be imported, or is not a click command.
    """
    from finetooth_core.plugins.builders import load_builder

    command = load_builder(registered.entry, registered.distribution)
    if not isinstance(command, click.Command):
        problem = f"command {registered.entry.name!r} names {registered.entry.build!r}, which is not a click command"
        raise PluginError(registered.distribution, problem, action="report it to the plugin's author")
    return guarded(command)
