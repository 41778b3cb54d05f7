"""`ft data`: rows as the model will see them, data made ready ahead, and what is kept of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from finetooth_hooks.context import CommandContext
from finetooth_hooks.errors import UserError
from finetooth_toolbox.cli.recipe_arguments import Described, recipe_arguments, with_output
from finetooth_toolbox.text.measures import AGES, SIZES, measured

from finetooth_data.convert import convert
from finetooth_data.draft import draft

if TYPE_CHECKING:
    from finetooth_rows.storage.cache import CacheItem

_ROWS = re.compile(r"data\.(train|eval)(\.\d+)*\.rows")
"""Decisions about which rows are taken."""


@click.group("data")
def command() -> None:
    """Show rows as the model sees them, prepare data ahead of a run, and manage the cache."""


@command.command()
@recipe_arguments
@click.option("--split", type=click.Choice(["train", "eval"]), default="train", help="Split to show; default: train.")
@click.option("--rows", "count", type=click.IntRange(min=1), default=3, help="Number of rows; default: 3.")
@click.option("--row", "wanted", metavar="N|ID", help="Show one row: its number from 1, or its id as in errors.")
@click.option("--longest", "by_length", is_flag=True, help="Show the longest rows instead of the first.")
@click.option("--dropped", is_flag=True, help="Show the rows that are left out, and why.")
@click.option("--targets", is_flag=True, help="Also list the target at each position, and its weight.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.pass_obj
def preview(
    context: CommandContext, recipe: Described, overrides: tuple[str, ...], output: str | None, split: str, count: int,
    wanted: str | None, by_length: bool, dropped: bool, targets: bool, page: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show rows of RECIPE token by token: what trains, what is markup, where messages begin, what is cut or left out.

    Where rows are broken, the others are shown and the broken ones are named (exit code 2). Reads the data and the
    tokenizer; loads no weights and writes nothing but the page that --html asks for.
    """
    from finetooth_hooks.errors import DataError

    from finetooth_data.chosen_rows import Choice, choose, show

    if (wanted is not None) + by_length + dropped > 1:
        raise UserError("--row, --longest and --dropped each choose rows", action="give one of them")
    rows = context.rows(recipe, with_output(overrides, output))
    error: DataError | None = None
    try:
        _ = rows.decided  # reads all rows
    except DataError as broken:  # some rows are broken: the others can be seen
        error = broken
    chosen = choose(rows.preview(split), Choice(count, wanted, by_length, dropped), error)
    show(rows, split, chosen, page=page, as_json=as_json, targets=targets)
    context.said_json = as_json
    if error is not None:
        raise error


@command.command()
@recipe_arguments
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def check(
    context: CommandContext, recipe: Described, overrides: tuple[str, ...], output: str | None, as_json: bool
) -> None:
    """Read all data of RECIPE and describe them: rows that are left out and why, lengths, repeated rows, rows that are
    in both splits, padding, and which roles' words train.

    A broken row is an error that names its file and line (exit code 2). Loads no weights and writes nothing.
    """
    import dataclasses

    from finetooth_hooks.errors import DataError

    from finetooth_data.broken_rows import check_all
    from finetooth_data.expectation import expectation
    from finetooth_data.survey import survey

    rows = context.rows(recipe, with_output(overrides, output))
    try:
        job = rows.decided
    except DataError as error:
        check_all(rows, error)
        raise
    findings = survey(job)
    ahead = expectation(job, next((part for part in findings.surveys if part.split == "train"), None))
    decisions = [decision for decision in job.plan.decisions if decision.setting.startswith("data.")]
    chosen = [decision for decision in decisions if _ROWS.fullmatch(decision.setting)]
    others = [decision for decision in decisions if decision not in chosen]
    if as_json:
        import json

        content = {
            "decisions": [dataclasses.asdict(decision) for decision in others],
            "chosen": [dataclasses.asdict(decision) for decision in chosen],
            "reports": [dataclasses.asdict(report) for report in job.reports],
            "surveys": [dataclasses.asdict(part) for part in findings.surveys],
            "in_both": dataclasses.asdict(findings.in_both),
            "unread": findings.unread,
            "steps": ahead.steps,
            "ahead": dataclasses.asdict(ahead),
            "notes": job.plan.notes,
        }
        click.echo(json.dumps(content, indent=2, default=str))
        return
    from finetooth_rows.choices.ahead import device_of
    from finetooth_rows.report_table import data_table
    from finetooth_toolbox.cli.tables import plain_console, show

    from finetooth_data import survey_text

    console = plain_console()
    show(
        console,
        survey_text.settled(console, others),
        data_table(console, job.reports, job.every_report),
        *([survey_text.choice(chosen)] if chosen else []),
        *(survey_text.render(part) for part in findings.surveys),
        survey_text.verdict(findings, ahead, job.plan.notes, device_of(job)),
    )


@command.command()
@recipe_arguments
@click.pass_obj
def prepare(context: CommandContext, recipe: Described, overrides: tuple[str, ...], output: str | None) -> None:
    """Tokenise RECIPE's data ahead of a run, on all cores, and keep the tokens: the next run starts at once.

    Loads no weights and makes no run folder.
    """
    from finetooth_rows.report_table import data_table
    from finetooth_toolbox.cli.tables import plain_console, show

    job = context.rows(recipe, with_output(overrides, output)).decided
    console = plain_console()
    decisions = [decision for decision in job.plan.decisions if decision.setting.startswith("data.cache.")]
    show(console, data_table(console, job.reports, job.every_report))
    for decision in decisions:
        click.echo(f"{decision.setting}  {decision.value}  {decision.reason}")
    for split, reason in job.not_kept.items():
        click.echo(f"data.{split}: nothing is kept: {reason}")


command.add_command(convert)
command.add_command(draft)


@command.group()
def cache() -> None:
    """List and remove prepared data, and files that were fetched."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON.")
def list_entries(as_json: bool) -> None:
    """List the cache, last used first."""
    from datetime import datetime

    from finetooth_rows.storage.cache import CacheEntry, list_kept
    from finetooth_toolbox.files.cache_folder import cache_folder

    entries = list_kept()
    if as_json:
        import json

        names = ("key", "bytes", "sources", "rows", "made", "used")
        described = [
            {"kind": _kind(entry), **{name: getattr(entry, name, None) for name in names}} for entry in entries
        ]
        click.echo(json.dumps(described, indent=2))
        return
    from finetooth_toolbox.cli.tables import plain_console, table
    from finetooth_toolbox.text.measures import size

    if not entries:
        click.echo(f"nothing is kept in {cache_folder()}")
        return
    console = plain_console()
    rows = [
        (entry.key[:12], _kind(entry), ", ".join(entry.sources), f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
         f"{entry.rows:,}" if isinstance(entry, CacheEntry) else "-", size(entry.bytes))
        for entry in entries
    ]  # fmt: skip
    console.print(table(console, "Kept data", ("key", "what", "sources", "last used", "rows", "size"), rows))
    click.echo(f"{size(sum(entry.bytes for entry in entries))} in {cache_folder()}")


def _kind(entry: CacheItem) -> str:
    """What something is: rows made ready, or a file that a plugin fetched."""
    plugin = getattr(entry, "plugin", "")
    return f"fetched by {plugin}" if plugin else "prepared"


@cache.command()
@click.option("--keep", metavar="SIZE", help="Remove until the rest takes at most SIZE, such as 5GB.")
@click.option("--older-than", metavar="AGE", help="Remove what has not been used for AGE: 12h, 7d, 2w.")
@click.option("--all", "everything", is_flag=True, help="Remove everything.")
def prune(keep: str | None, older_than: str | None, everything: bool) -> None:
    """Remove prepared data and fetched files, the longest unused first. Files that a run uses stay."""
    from finetooth_rows.storage.cache import prune_cache
    from finetooth_toolbox.text.measures import size

    if (keep is not None) + (older_than is not None) + everything != 1:
        raise UserError("one of --keep, --older-than and --all says what is removed", action="give one of them")
    limits: dict[str, Any] = {"all": True}
    if keep is not None:
        limits = {"keep_bytes": int(measured(keep, SIZES, "--keep", "5GB"))}
    elif older_than is not None:
        limits = {"older_than": measured(older_than, AGES, "--older-than", "7d")}
    pruned = prune_cache(**limits)
    removed = size(sum(entry.bytes for entry in pruned.removed))
    click.echo(f"removed {len(pruned.removed)} ({removed}); {size(pruned.bytes)} are left")
    if pruned.in_use:
        click.echo(f"{len(pruned.in_use)} in use by a run were kept")
