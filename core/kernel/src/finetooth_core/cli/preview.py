"""Which rows `ft data preview` shows, and where."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click
from finetooth_hooks.errors import DataError, UserError
from finetooth_toolbox.cli.streams import json_text
from finetooth_toolbox.text.controls import escape_controls

from finetooth_core.data.preview import RenderedRow, RowView

if TYPE_CHECKING:
    from finetooth_core.session import Session

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

    rows: list[RenderedRow] = field(default_factory=list)
    broken: list[RenderedRow] = field(default_factory=list)
    count: int = 0


def choose(rows: Iterator[RenderedRow], choice: Choice, error: DataError | None) -> Chosen:
    """The rows that are asked for.

    Args:
        error: the run ends with it; then all rows are looked at, to find the broken ones.

    Raises:
        DataError: a source cannot be read.
        UserError: there is no such row.
    """
    chosen = Chosen()
    seen = _heard(rows, chosen) if error is not None else rows
    try:
        chosen.rows = _asked(seen, choice, skip_broken=error is not None)
        if error is not None:
            for _ in seen:
                pass
    except DataError:
        if error is None or not (chosen.rows or chosen.broken):
            raise
    return chosen


def _heard(rows: Iterator[RenderedRow], chosen: Chosen) -> Iterator[RenderedRow]:
    for row in rows:
        if row.broken:
            chosen.count += 1
            chosen.broken += [row] if len(chosen.broken) < NAMED else []
        yield row


def _asked(rows: Iterator[RenderedRow], choice: Choice, *, skip_broken: bool) -> list[RenderedRow]:
    if choice.wanted is not None:
        found = next((row for row in rows if choice.wanted in (row.id, str(row.number))), None)
        if found is None:
            raise UserError(
                f"there is no row {choice.wanted!r}",
                action="give a number from 1, or an id as `ft data preview` shows it",
            )
        return [found]
    if choice.by_length:
        return heapq.nlargest(choice.count, rows, key=lambda row: len(row.rendered.tokens))
    wanted = (row for row in rows if not (choice.dropped and row.used) and not (skip_broken and row.broken))
    return list(islice(wanted, choice.count))


def show(
    session: Session,
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
    tokenizer = session.context.tokenizer
    views = [row.view(tokenizer) for row in chosen.rows]
    if page is not None or as_json:
        named = {view.id for view in views}
        views += [row.view(tokenizer) for row in chosen.broken if row.id not in named]
    told = _told(session, split)
    if page is not None:
        from finetooth_core.cli import row_page

        page.write_text(row_page.render(views, split, session.recipe.model.name, told), encoding="utf-8")
        click.echo(f"{len(views)} rows: {page}")
    elif as_json:
        found = [dataclasses.asdict(view) for view in views]
        if targets:
            for view, content in zip(views, found, strict=True):
                content["targets"] = [dataclasses.asdict(target) for target in view.targets]
        click.echo(json_text(found))
    else:
        _print(views, chosen, told, targets=targets)


def _print(views: Sequence[RowView], chosen: Chosen, told: Sequence[tuple[str, str]], *, targets: bool) -> None:
    from rich.console import Console

    from finetooth_core.cli import row_text
    from finetooth_core.cli.render import coloured

    console = Console(highlight=False)
    color = coloured(console)
    for topic, text in told:
        console.print(f"{topic}: {escape_controls(text)}", markup=False, soft_wrap=not console.is_terminal)
    console.print()
    if not views and not chosen.broken:
        console.print("no such rows")
    for view in views:
        console.print(row_text.render(view, color=color), soft_wrap=not console.is_terminal)
        if targets and view.pieces:
            console.print(row_text.targets(console, view), soft_wrap=not console.is_terminal)
            console.print()
    if any(view.pieces for view in views):
        console.print(row_text.legend(color=color), soft_wrap=not console.is_terminal)
    if chosen.broken:
        console.print(row_text.broken(chosen.broken, chosen.count), soft_wrap=not console.is_terminal)


def _told(session: Session, split: str) -> list[tuple[str, str]]:
    """How the rows are read, and what else is to be said of them."""
    context = session.context
    decisions = (context.decisions.get(f"data.{name}") for name in ("format", "renderer"))
    told = [(one.setting, f"{one.value} ({one.reason})") for one in decisions if one is not None]
    notes = list(context.notes)
    if session.decided:  # not where rows are broken
        notes += [note for report in session.reports if report.split == split for note in report.notes]
    return [*told, *(("note", note) for note in dict.fromkeys(notes))]
