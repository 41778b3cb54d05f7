"""Rows one after the other, among them the broken ones, with the first of which a run would end, and those that their
format leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from finetooth_hooks.errors import DataError
from finetooth_hooks.examples import Example, LeftOut
from finetooth_hooks.problems import Problems
from finetooth_hooks.protocols import Examples
from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows

from finetooth_core.context import RunContext
from finetooth_core.data.dataset import Dataset

if TYPE_CHECKING:
    from finetooth_rows.prepared_as import PreparedAs

    from finetooth_core.session import Session


@dataclass
class _Heard(Problems):
    """Hands on each error when its row is passed, instead of counting it."""

    waiting: list[DataError] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        self.waiting.append(error)

    def taken(self) -> Iterator[DataError]:
        """Those not yet taken."""
        yield from self.waiting
        self.waiting.clear()


def every_row(rows: SplitRows) -> Iterator[tuple[str, Example | LeftOut] | DataError]:
    """Ids and examples in order, or why the format leaves one out; and an error in place of each row that cannot be
    read or is not of the format.

    Raises:
        DataError: a source is missing, or cannot be read any further.
    """
    for work in rows.work():
        heard = _Heard()
        for id_, found in rows.outcomes(work, Reading(broken={work.source: heard})):
            yield from heard.taken()
            yield found if isinstance(found, DataError) else (id_, found)
        yield from heard.taken()


class _OneRow(Dataset):
    """Data of which every split has one row, the first that can be read."""

    def _read(self, split: str) -> Examples:
        rows = self.rows(split)
        read = (item for item in every_row(rows) if not isinstance(item, DataError))
        good = next(((id_, found) for id_, found in read if not isinstance(found, LeftOut)), None)
        formats = ", ".join(dict.fromkeys(picked.registered.full_name for picked in rows.formats))
        return Examples(split, () if good is None else (good,), formats)


class _OneRowContext(RunContext):
    """A context with such data."""

    @cached_property
    def data(self) -> Dataset:
        return _OneRow(self.data_parts)


def prepared_as(session: Session, split: str) -> PreparedAs | None:
    """How the rows of a split become tokens, found out by one that can be read; None if nothing makes tokens of them.
    For a session whose rows are broken: then its parts may end before they say it."""
    from finetooth_core.driven import evaluators_of

    known = session.context.data.prepared_as.get(split)
    if known is not None or not session.context.data.has(split):
        return known
    context = _OneRowContext(session.recipe, session.plugins.catalog, session.folder, session.plugins)
    if split == "train":
        parts = [context.builder.section("method", session.recipe.method, "method").part]
    else:
        parts = [built.part for built in evaluators_of(context)]
    for part in parts:
        with suppress(DataError):
            part.prepare()
        if split in context.data.prepared_as:
            break
    return context.data.prepared_as.get(split)
