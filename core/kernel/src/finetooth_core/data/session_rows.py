"""Rows of a session, rendered as its run renders them, the broken ones among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from finetooth_hooks.data.examples import Example, LeftOut, Row
from finetooth_hooks.data.preparation import PreparedAs
from finetooth_hooks.data.recipe_rows import PreviewRow
from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.protocols import Examples, Tokenizer
from finetooth_hooks.reports import DataReport
from finetooth_rows.every_row import every_row
from finetooth_rows.lazy_examples import read_examples
from finetooth_rows.preview import rendered_rows
from finetooth_rows.read_so_far import Reading
from finetooth_rows.work import first_rows

from finetooth_core.data.dataset import Dataset
from finetooth_core.planning.context import RunContext
from finetooth_core.planning.driven import evaluators_of
from finetooth_core.planning.plan import Job
from finetooth_core.session import Session


class SessionRows:
    """Implements `finetooth_hooks.data.recipe_rows.RecipeRows`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe, checked."""
        return self._session.recipe.as_dict()

    @property
    def context(self) -> RunContext:
        """Of the recipe."""
        return self._session.context

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the recipe's model."""
        return self.context.tokenizer

    @property
    def decided(self) -> Job:
        """The run, decided."""
        return self._session.job

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits whose rows become tokens."""
        return tuple(split for split in ("train", "eval") if self._prepared_as(split) is not None)

    def preview(self, split: str) -> Iterator[PreviewRow]:
        """See `RecipeRows.preview`."""
        if not self.context.data.has(split):
            raise RecipeError(f"data.{split}", "the recipe gives no data for it", action=f"set data.{split}")
        how = self._prepared_as(split)
        if how is None:
            raise RecipeError(f"data.{split}", "no method or evaluator of the recipe turns its rows into tokens")
        return rendered_rows(self.context, self.context.data.rows(split), how)

    def first(self, split: str, count: int) -> Sequence[Row]:
        """See `RecipeRows.first`."""
        return [row for source in self.context.data.sources(split) for row in first_rows(source, count)]

    def read(self, split: str) -> tuple[Sequence[tuple[str, Example]], DataReport]:
        """See `RecipeRows.read`."""
        rows, reading = self.context.data.rows(split), Reading()
        examples = tuple(read_examples(rows, reading))
        reading.left.merge(rows.dropped)
        reading.left.rows = reading.rows
        return examples, reading.left.report(split)

    def remarks(self, split: str) -> Sequence[tuple[str, str]]:
        """See `RecipeRows.remarks`."""
        decisions = (self.context.decisions.get(f"data.{name}") for name in ("format", "renderer"))
        read = [(choice.setting, f"{choice.value} ({choice.reason})") for choice in decisions if choice is not None]
        notes = list(self.context.notes)
        if self._session.decided:  # not where rows are broken
            notes += [note for report in self._session.reports if report.split == split for note in report.notes]
        return [*read, *(("note", note) for note in dict.fromkeys(notes))]

    def _prepared_as(self, split: str) -> PreparedAs | None:
        """How the rows of a split become tokens; None if nothing does. If broken rows stop the session's parts before
        that, they get only the first readable row."""
        session, data = self._session, self.context.data
        if split in data.prepared_as or session.decided or not data.has(split):
            return data.prepared_as.get(split)
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


class _OneRow(Dataset):
    """Data with one row per split, the first readable one."""

    def _read(self, split: str) -> Examples:
        rows = self.rows(split)
        read = (item for item in every_row(rows) if not isinstance(item, DataError))
        good = next(((id_, example) for id_, example in read if not isinstance(example, LeftOut)), None)
        formats = ", ".join(dict.fromkeys(picked.registered.full_name for picked in rows.formats))
        return Examples(split, () if good is None else (good,), formats)


class _OneRowContext(RunContext):
    """A context with such data."""

    @cached_property
    def data(self) -> Dataset:
        return _OneRow(self.data_parts)
