"""Several sequences of one row, such as the two answers of a pair: kept or left out together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.errors import DataError

from finetooth_rows.cutting import TURNS, Range, cut, cuts_medium, share
from finetooth_rows.tally import LENGTH_SETTINGS, NOTHING_TRAINED, TOO_LONG, Tally

if TYPE_CHECKING:
    from finetooth_hooks.data.preparation import Limit

PROMPT_TOO_LONG = "its prompt alone is longer than train.max_length"
MEDIUM_CUT = "an image, sound or video would be cut at train.max_length"
ONE_SIDED = "one answer would be truncated and the other not"


def usable_group(id_: str, rendered: Rendered, limit: Limit | None, tally: Tally) -> list[Rendered]:
    """The remaining sequences of a row, empty if the row is left out; counts both.

    A cut sequence cannot be compared with a whole one: `truncate` keeps a row only if it cuts all of them.
    `truncate_answers` cuts each sequence that is too long, and counts rows in which another one stays whole.
    `truncate_turns` also cuts the prompt, by the longest answer.

    Args:
        limit: None keeps every row whole.
    """
    parts = (rendered, *rendered.others)
    untrained = [part for part in parts if not any(part.weights[1:])]
    if untrained:
        problem = f"{NOTHING_TRAINED} in its {untrained[0].part} answer"
        tally.unusable.add(DataError(id_, problem, action="remove the row"))
        return []
    positions = [len(part.tokens) - 1 for part in parts]
    if limit is None or max(positions) < limit.max_length + (limit.excess_length != TURNS):
        return [*parts]
    if limit.excess_length == "raise":
        worst = parts[positions.index(max(positions))].part
        tally.refused.add(
            DataError(
                id_,
                f"its {worst} answer ends at {max(positions)} tokens, more than train.max_length={limit.max_length}",
                action="raise train.max_length, or set train.excess_length to drop, truncate, truncate_answers "
                "or truncate_turns",
            )
        )
        return []
    if limit.excess_length == "split":
        tally.refused.add(
            DataError(
                id_,
                f"its longest answer ends at {max(positions)} tokens, and answers that are compared cannot be split",
                action="set train.excess_length to drop, truncate, truncate_answers, truncate_turns or raise",
            )
        )
        return []
    first = min(next(i for i, weight in enumerate(part.weights) if i and weight) for part in parts)
    ranges: list[Range] = [(0, limit.max_length + 1)]
    if limit.excess_length == TURNS:
        prompt, answer = share(first, max(positions) + 1 - first, limit.max_length)
        ranges = [(0, prompt), (first, first + answer)]
    cut_parts = [cut(part, [(start, min(stop, len(part.tokens))) for start, stop in ranges]) for part in parts]
    reason = _reason(parts, cut_parts, ranges, limit)
    if reason:
        tally.drop(reason, id_, LENGTH_SETTINGS)
        tally.shortest = min(tally.shortest or max(positions), max(positions))
        return []
    tally.truncated += 1
    tally.one_sided += min(positions) < ranges[-1][1] <= max(positions)
    return cut_parts


def _reason(parts: Sequence[Rendered], cut_parts: Sequence[Rendered], ranges: Sequence[Range], limit: Limit) -> str:
    """The reason for leaving out a row with a sequence that is too long; empty if it is cut."""
    if not all(any(part.weights[1:]) for part in cut_parts):
        return PROMPT_TOO_LONG
    if limit.excess_length == "drop":
        return TOO_LONG
    if any(cuts_medium(part, ranges) for part in parts):
        return MEDIUM_CUT
    whole = any(len(part.tokens) <= ranges[-1][1] for part in parts)
    return ONE_SIDED if limit.excess_length == "truncate" and whole else ""
