"""Rows as they come: read portion by portion and rendered one by one, nothing is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetooth_hooks.errors import DataError, RecipeError
from finetooth_hooks.examples import Rendered

from finetooth_core.data.reading import Reading, SplitRows, broken_rows_first

if TYPE_CHECKING:
    from finetooth_hooks.preparation import Render, Rendering

    from finetooth_core.context import RunContext


def stream(
    context: RunContext, split: str, rendering: Rendering, skip: int
) -> Iterator[tuple[str, Rendered | DataError]]:
    """See `Context.stream`.

    Raises:
        RecipeError: which rows are taken is only known when all are read.
    """
    rows = context.rows(split)
    if rows.selection is not None:
        raise RecipeError(
            f"data.{split}",
            "the rows are to be trained as they come, and choosing among them (shares, weights, held-out or repeated "
            "rows) takes reading all of them first",
            action="leave the choice out, or do not stream",
        )
    return _rendered(rows, rendering.load(context), skip)


def _rendered(rows: SplitRows, render: Render, skip: int) -> Iterator[tuple[str, Rendered | DataError]]:
    passed = 0
    for work in rows.work():
        reading = Reading()  # of this portion alone, so that nothing grows
        with broken_rows_first(rows.sources, reading):
            for id_, example in rows.read(work, reading):
                passed += 1
                if passed <= skip:
                    continue
                try:
                    yield id_, render(example)
                except DataError as error:
                    yield id_, DataError(id_, error.problem, action=error.action)
        rows.check(reading)
