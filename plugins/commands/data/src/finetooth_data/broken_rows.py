"""All rows because of which a run cannot begin, whatever is wrong with each.

A run ends at the first kind of fault: files that cannot be read, then rows that are not of the format, then rows that
no renderer can write. Who mends a file wants to know all of them.
"""

from __future__ import annotations

from finetooth_hooks.data.problems import Problems, raise_together
from finetooth_hooks.data.recipe_rows import RecipeRows
from finetooth_hooks.errors import DataError, UserError


def check_all(recipe_rows: RecipeRows, error: DataError) -> None:
    """Raise what is wrong with all rows of all splits.

    Args:
        error: with which a run would end; raised as it is where it tells all.

    Raises:
        DataError: always.
    """
    errors: list[DataError] = []
    more = False
    for split in recipe_rows.splits:
        try:
            problems, stages, rows = _broken(recipe_rows, split)
        except UserError:  # a source cannot be read to its end
            raise error from None
        problem = problems.error(rows)
        if problem is not None:
            more = more or stages > 1 or bool(errors)
            errors.append(problem)
    if not more:
        raise error
    raise_together(errors)


def _broken(recipe_rows: RecipeRows, split: str) -> tuple[Problems, int, int]:
    """The broken rows of a split, at how many stages they break, and how many rows there are."""
    problems, stages, rows = Problems(), set[bool](), 0
    for row in recipe_rows.preview(split):
        rows += 1
        if row.error is None:
            continue
        stages.add(row.read)
        problem = row.error.problem.removeprefix(f"{row.error.where}: " if row.error.where else "")
        problems.add(DataError(row.id, problem, action=row.error.action, shape=row.error.shape))
    return problems, len(stages), rows
