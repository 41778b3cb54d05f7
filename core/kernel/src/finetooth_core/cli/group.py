"""The group of commands: the core's and those of plugins, each imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click
from finetooth_hooks.entries import Command
from finetooth_hooks.errors import UserError
from finetooth_toolbox.cli.options import start_options
from finetooth_toolbox.text.nearest import nearest

from finetooth_core.cli.brought import brought_commands, load_command, state_of

if TYPE_CHECKING:
    from finetooth_core.plugins.catalog import Catalog, Registered


class Builtin(NamedTuple):
    """One of the core's commands; `reference` is `"module:attribute"`."""

    name: str
    reference: str
    section: str
    summary: str


OWN = (
    Builtin("run", "finetooth_core.cli.run:command", "Train", "train what a recipe describes"),
    Builtin("resume", "finetooth_core.cli.resume:command", "Train", "continue a run that was interrupted"),
    Builtin("check", "finetooth_core.cli.check:command", "Train", "show the plan, reasons and memory; train nothing"),
    Builtin("plugins", "finetooth_core.cli.plugins:command", "Extend", "list, explain, check and make plugins"),
)

ALSO = {"train": "run"}
"""Further names, not listed."""

ELSEWHERE = {
    "continue": "resume", "dry-run": "check", "finetune": "run", "fine-tune": "run", "fit": "run", "generate": "chat",
    "infer": "chat", "inference": "chat", "plan": "check", "preprocess": "data prepare", "preview": "data preview",
    "tokenize": "data preview", "validate": "check", "webchat": "chat",
}  # fmt: skip
"""Other tools' names of commands, and ours."""

EPILOG = "Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted; a plugin that ends a run sets its own."


class CommandGroup(click.Group):
    """Finds commands by name without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [own.name for own in OWN] + [_called(registered) for registered in brought_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for own in OWN:
            if own.name == ALSO.get(cmd_name, cmd_name):
                state_of(ctx).strict = own.name != "plugins"  # which must look at broken plugins
                module, _, attribute = own.reference.partition(":")
                command: click.Command = getattr(import_module(module), attribute)
                return command
        if ctx.resilient_parsing:  # while a shell completes, an unknown word is not an error
            known = {_called(registered): registered for registered in brought_commands(ctx)}
            return load_command(known[cmd_name]) if cmd_name in known else None
        catalog = state_of(ctx).catalog
        if not any(cmd_name in (registered.entry.name, registered.full_name) for registered in brought_commands(ctx)):
            _refuse_unknown(cmd_name, self.list_commands(ctx), catalog)
        return load_command(catalog.get("command", cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for own in OWN:
            sections.setdefault(own.section, []).append((own.name, own.summary))
        for registered in brought_commands(ctx):
            section = registered.entry.section if isinstance(registered.entry, Command) else ""
            sections.setdefault(section, []).append((_called(registered), registered.entry.summary))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def _refuse_unknown(name: str, known: Sequence[str], catalog: Catalog) -> None:
    """Refuse a command that neither exists nor is in one of our packages.

    Raises:
        UserError: names the nearest command, or all.
    """
    bare = name.rpartition(":")[2]
    broken = any(f"command:{bare}" in fault.offers for fault in catalog.faults)
    if broken or ":" in name or catalog.index.get("command", {}).get(bare):
        return  # the catalog says how to get it
    meant = ELSEWHERE.get(name.replace("_", "-")) or nearest(name, (*known, *ALSO))
    if meant:
        raise UserError(f"no command {name!r}", action=f"did you mean ft {meant}?")
    raise UserError(f"no command {name!r}; there are: {', '.join(known)}", action="see ft --help")


def make_group() -> click.Group:
    """The command `ft` itself."""
    return CommandGroup(
        "ft",
        help="Fine-tune language models. Start with: ft run RECIPE.yaml",
        epilog=EPILOG,
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_version,
                help="Print the versions of ft, of the libraries it uses, and of the plugins.",
            ),
            *start_options(),
        ],
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        from finetooth_core.cli.version_lines import installed_lines

        click.echo(f"ft {version('finetooth-core')} (contract {version('finetooth-hooks')})")
        for line in installed_lines():
            click.echo(line)
        ctx.exit()


def _called(registered: Registered) -> str:
    """The name of a plugin's command: with its distribution if the core has the same name."""
    taken = any(own.name == registered.entry.name for own in OWN)
    return registered.full_name if taken else registered.entry.name
