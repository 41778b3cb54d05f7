"""`ft plugins`: list and show; further ones come from plugins, as `plugins-NAME`."""

from __future__ import annotations

import click

from finetooth_core.cli.brought import PLUGINS, brought_commands, load_command
from finetooth_core.cli.state import State


class PluginsGroup(click.Group):
    """Own commands, and those of plugins whose name begins with `plugins-`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        brought = [registered.entry.name.removeprefix(PLUGINS) for registered in brought_commands(ctx, PLUGINS)]
        return [*super().list_commands(ctx), *brought]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = {registered.entry.name: registered for registered in brought_commands(ctx, PLUGINS)}
        own = super().get_command(ctx, cmd_name)
        return load_command(known[PLUGINS + cmd_name]) if own is None and PLUGINS + cmd_name in known else own


@click.group("plugins", cls=PluginsGroup)
def command() -> None:
    """List the installed plugins, check them, and write new ones."""


@command.command("list")
@click.option("--kind", help="Only plugins with entries of this kind.")
@click.pass_obj
def list_(state: State, kind: str | None) -> None:
    """List plugins: distribution, version, entries, and faults."""
    from finetooth_core.plugins.plugin_tables import list_lines

    for line in list_lines(state.plugins, kind):
        click.echo(line)


@command.command()
@click.argument("plugin")
@click.pass_obj
def show(state: State, plugin: str) -> None:
    """Show one PLUGIN: its location, what it needs, its entries and its hooks."""
    from finetooth_core.plugins.plugin_tables import show_lines

    for line in show_lines(state.plugins, plugin):
        click.echo(line)
