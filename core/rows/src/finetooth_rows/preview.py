"""Renders rows one by one, with the treatment of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Example, LeftOut, Rendered
from finetooth_hooks.data.preparation import Limit, PreparedAs
from finetooth_hooks.data.recipe_rows import PreviewRow
from finetooth_hooks.errors import DataError

from finetooth_rows.cutting import TURNS, cut, cut_by_turns
from finetooth_rows.every_row import every_row
from finetooth_rows.groups import usable_group
from finetooth_rows.preparing import load_rendering, render_rows
from finetooth_rows.reading import SplitRows
from finetooth_rows.tally import Tally


def rendered_rows(context: Context, rows: SplitRows, how: PreparedAs) -> Iterator[PreviewRow]:
    """Rows as a run renders them, one after the other, including broken ones.

    Args:
        how: the way from rows to tokens.

    Raises:
        DataError: a source is missing or cannot be read any further.
    """
    render = load_rendering(how.rendering, context)
    for number, item in enumerate(every_row(rows), start=1):
        if isinstance(item, DataError):
            yield replace(_broken(number, item.where, item), read=False)
            continue
        id_, example = item
        if isinstance(example, LeftOut):
            yield PreviewRow(number, id_, Rendered((), ()), 0, f"left out: {example.reason}", used=False)
            continue
        try:
            rendered = render(example)
        except DataError as error:
            yield _broken(number, id_, error)
            continue
        if rendered.others:
            yield from _together(number, id_, example, rendered, how.limit)
        else:
            yield _row(number, id_, example, rendered, how.limit)


def _row(number: int, id_: str, example: Example, rendered: Rendered, limit: Limit | None) -> PreviewRow:
    portion, tally = render_rows([(id_, example)], partial(_same, rendered), limit)
    whole = tally.split or not len(portion)
    length = len(rendered.tokens) if whole else int(portion.starts[1])
    refused = next(iter((*tally.refused.first, *tally.unusable.first)), None)
    fate = _fate(tally, length) if refused is None else _refusal(id_, refused)
    if tally.truncated and limit is not None and limit.excess_length == TURNS:
        rendered = cut(rendered, cut_by_turns(rendered, limit.max_length))
    return PreviewRow(number, id_, rendered, length, fate, used=tally.used > 0, error=refused)


def _broken(number: int, id_: str, error: DataError) -> PreviewRow:
    return PreviewRow(number, id_, Rendered((), ()), 0, _refusal(id_, error), used=False, error=error)


def _refusal(id_: str, error: DataError) -> str:
    """The error without the row's id, which another column shows."""
    return f"refused: {error.problem.removeprefix(f'{id_}: ')}"


def _together(number: int, id_: str, example: Example, rendered: Rendered, limit: Limit | None) -> Iterator[PreviewRow]:
    """The sequences of one row, which are kept or left out together, one after the other."""
    portion, tally = render_rows([(id_, example)], partial(_same, rendered), limit)
    refused = next(iter((*tally.refused.first, *tally.unusable.first)), None)
    parts = [rendered, *rendered.others]
    if tally.truncated and limit is not None and limit.excess_length == TURNS:
        parts = usable_group(id_, rendered, limit, Tally())
    for place, part in enumerate(parts):
        length = int(portion.starts[place + 1] - portion.starts[place]) if len(portion) else len(part.tokens)
        fate = _fate(tally, length) if refused is None else _refusal(id_, refused)
        name = f"{id_}#{part.part}"
        yield PreviewRow(number, name, part, length, fate, used=tally.used > 0, error=refused)


def _same(rendered: Rendered, example: Example) -> Rendered:
    return rendered


def _fate(tally: Tally, length: int) -> str:
    if tally.split:
        return f"split into {tally.used} rows"
    if tally.dropped:
        return f"left out: {next(iter(tally.dropped))}"
    return f"cut to {length - 1} tokens" if tally.truncated else "used"
