"""Which rows `ft data preview` shows, and where."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import click
from finetooth_hooks.data.recipe_rows import PreviewRow, RecipeRows
from finetooth_hooks.errors import DataError, UserError
from finetooth_toolbox.cli.streams import json_text
from finetooth_toolbox.text.controls import escape_controls

from finetooth_data.views import RowView, view

NAMED = 50
"""Broken rows that are named; the others are counted."""


@dataclass(frozen=True)
class Choice:
    """What the command line asks for.

    Attributes:
        count: how many rows.
        wanted: one row, by number or id.
        by_length: the longest.
        dropped: those that are left out.
    """

    count: int
    wanted: str | None = None
    by_length: bool = False
    dropped: bool = False


@dataclass
class Chosen:
    """Rows to be shown.

    Attributes:
        rows: in the order in which they are shown.
        broken: rows because of which a run ends with an error, at most `NAMED`; only where it does.
        count: how many there are.
    """

    rows: list[PreviewRow] = field(default_factory=list)
    broken: list[PreviewRow] = field(default_factory=list)
    count: int = 0


def choose(rows: Iterator[PreviewRow], choice: Choice, error: DataError | None) -> Chosen:
    """The rows that are asked for.

    Args:
        error: the run ends with it; then all rows are looked at, to find the broken ones.

    Raises:
        DataError: a source cannot be read.
        UserError: no row has the wanted number or id.
    """
    chosen = Chosen()
    seen = _heard(rows, chosen) if error is not None else rows
    try:
        chosen.rows = _wanted_rows(seen, choice, skip_broken=error is not None)
        if error is not None:
            for _ in seen:
                pass
    except DataError:
        if error is None or not (chosen.rows or chosen.broken):
            raise
    return chosen


def _heard(rows: Iterator[PreviewRow], chosen: Chosen) -> Iterator[PreviewRow]:
    for row in rows:
        if row.broken:
            chosen.count += 1
            chosen.broken += [row] if len(chosen.broken) < NAMED else []
        yield row


def _wanted_rows(rows: Iterator[PreviewRow], choice: Choice, *, skip_broken: bool) -> list[PreviewRow]:
    if choice.wanted is not None:
        match = next((row for row in rows if choice.wanted in (row.id, str(row.number))), None)
        if match is None:
            raise UserError(
                f"no row is {choice.wanted!r}",
                action="give a number from 1, or an id as `ft data preview` shows it",
            )
        return [match]
    if choice.by_length:
        return heapq.nlargest(choice.count, rows, key=lambda row: len(row.rendered.tokens))
    wanted = (row for row in rows if not (choice.dropped and row.used) and not (skip_broken and row.broken))
    return list(islice(wanted, choice.count))


def show(
    rows: RecipeRows,
    split: str,
    chosen: Chosen,
    *,
    page: Path | None = None,
    as_json: bool = False,
    targets: bool = False,
) -> None:
    """Show rows on a page, as JSON, or in the terminal.

    Args:
        targets: list what is predicted at each position too; the page always does.
    """
    tokenizer = rows.tokenizer
    views = [view(row, tokenizer) for row in chosen.rows]
    if page is not None or as_json:
        named = {shown.id for shown in views}
        views += [view(row, tokenizer) for row in chosen.broken if row.id not in named]
    remarks = rows.remarks(split)
    if page is not None:
        from finetooth_data import row_page

        model = rows.recipe["model"]  # as the user wrote it: a name, or a section with one
        name = str(model if isinstance(model, str) else model["name"])
        page.write_text(row_page.render(views, split, name, remarks), encoding="utf-8")
        click.echo(f"{len(views)} row{'s' * (len(views) != 1)}: {page}")
    elif as_json:
        contents = [dataclasses.asdict(shown) for shown in views]
        if targets:
            for shown, content in zip(views, contents, strict=True):
                content["targets"] = [dataclasses.asdict(target) for target in shown.targets]
        click.echo(json_text(contents))
    else:
        _print(views, chosen, remarks, targets=targets)


def _print(views: Sequence[RowView], chosen: Chosen, remarks: Sequence[tuple[str, str]], *, targets: bool) -> None:
    from finetooth_toolbox.cli.tables import coloured, plain_console

    from finetooth_data import row_text

    console = plain_console()
    color = coloured(console)
    for topic, text in remarks:
        console.print(f"{topic}: {escape_controls(text)}", markup=False, soft_wrap=not console.is_terminal)
    console.print()
    if not views and not chosen.broken:
        console.print("no such rows")
    for row in views:
        console.print(row_text.render(row, color=color), soft_wrap=not console.is_terminal)
        if targets and row.pieces:
            console.print(row_text.targets(console, row), soft_wrap=not console.is_terminal)
            console.print()
    if any(row.pieces for row in views):
        console.print(row_text.legend(color=color), soft_wrap=not console.is_terminal)
    if chosen.broken:
        console.print(row_text.broken(chosen.broken, chosen.count), soft_wrap=not console.is_terminal)
