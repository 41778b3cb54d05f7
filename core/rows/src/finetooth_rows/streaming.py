"""Streams rows: reads them portion by portion and renders them one by one, without holding them.

The rows as a whole are unknown, so a row that is not of the format does not end the run, as it would before training:
it is an error in its place, which the method counts."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Example, LeftOut, Rendered
from finetooth_hooks.data.preparation import Render, Rendering
from finetooth_hooks.errors import DataError, RecipeError

from finetooth_rows import openings
from finetooth_rows.preparing import load_rendering
from finetooth_rows.read_so_far import Reading
from finetooth_rows.reading import SplitRows
from finetooth_rows.work import broken_rows_first


def stream(
    context: Context, rows: SplitRows, rendering: Rendering, skip: int
) -> Iterator[tuple[str, Rendered | DataError]]:
    """See `Context.stream`.

    Raises:
        RecipeError: the choice of rows needs a reading of all rows.
    """
    if rows.selection is not None:
        raise RecipeError(
            f"data.{rows.split}",
            "streamed rows cannot be selected (shares, weights, held-out or repeated rows): that would mean to "
            "read all of them first",
            action="remove the selection, or turn streaming off",
        )
    return _rendered(context, rows, load_rendering(rendering, context), skip)


def _rendered(
    context: Context, rows: SplitRows, render: Render, skip: int
) -> Iterator[tuple[str, Rendered | DataError]]:
    passed = 0
    for work in rows.work():
        reading = Reading()  # only of this portion, so that memory does not grow
        with broken_rows_first(rows.sources, reading):
            for id_, row in rows.outcomes(work, reading):
                passed += 1
                if passed > skip:
                    made = _named_error(id_, row) if isinstance(row, DataError | LeftOut) else _tokens(id_, row, render)
                    for notice in () if isinstance(made, DataError) else made.notices:
                        context.note(f"{id_}, and maybe other rows: {notice}", topic=f"{rows.split}: {notice}")
                    yield id_, made
        rows.check(reading)
        openings.merge(rows.openings, reading.left.openings)
        if unread := rows.unread(reading):
            context.note(unread, topic=f"{rows.split}: columns not read")


def _tokens(id_: str, example: Example, render: Render) -> Rendered | DataError:
    try:
        return render(example)
    except DataError as error:
        return _named_error(id_, error)


def _named_error(id_: str, outcome: DataError | LeftOut) -> DataError:
    """The reason why a row gives no tokens, as an error with its id."""
    if isinstance(outcome, LeftOut):
        return DataError(id_, outcome.reason, action="remove the row")
    problem = outcome.problem.removeprefix(f"{outcome.where}: ") if outcome.where == id_ else outcome.problem
    return DataError(id_, problem, action=outcome.action)
