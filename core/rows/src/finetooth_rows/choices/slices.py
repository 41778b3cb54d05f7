"""A part of a source's rows, as a recipe writes it: `[:10%]`, `[:500]`, `[100:200]`, `[-50:]`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from finetooth_hooks.errors import RecipeError

_BOUND = r"\s*(-?\d+)\s*(%)?\s*"
_SLICE = re.compile(rf"\[(?:{_BOUND})?\s*:\s*(?:{_BOUND})?\]")
_BEHIND = re.compile(r"(?P<reference>.+?)(?P<slice>\[[^\[\]]*\])", re.DOTALL)

Bound = tuple[int, bool] | None
"""A number of rows or, if the flag is set, a percentage; negative: counted from the end."""


@dataclass(frozen=True)
class Slice:
    """A half-open range of rows.

    Attributes:
        text: as it was written.
        start, stop: None is the beginning and the end.
    """

    text: str
    start: Bound
    stop: Bound

    @classmethod
    def parse(cls, text: str, setting: str) -> Slice:
        """Read a slice such as `[:500]`.

        Raises:
            RecipeError: the text is not a slice.
        """
        match = _SLICE.fullmatch(text.strip())
        if match is None:
            raise RecipeError(
                setting, f"{text!r} is not a slice of rows", action="write [:500], [100:200], [-50:] or [:10%]"
            )
        bounds: list[Bound] = [
            None if number is None else (int(number), percent is not None)
            for number, percent in (match.group(1, 2), match.group(3, 4))
        ]
        if any(bound is not None and bound[1] and abs(bound[0]) > 100 for bound in bounds):
            raise RecipeError(setting, f"{text!r} asks for more than 100 % of the rows", action="write at most 100%")
        return cls(text.strip(), bounds[0], bounds[1])

    @property
    def is_empty(self) -> bool:
        """Whether it contains no row for any number of rows."""
        if self.stop is None:
            return False
        start = self.start or (0, False)
        comparable = start[1] == self.stop[1] and (start[0] < 0) == (self.stop[0] < 0)
        return self.stop[0] == 0 or (comparable and self.stop[0] <= start[0])

    @property
    def needs_size(self) -> bool:
        """Whether the slice depends on the number of rows."""
        return any(bound is not None and (bound[1] or bound[0] < 0) for bound in (self.start, self.stop))

    def of(self, size: int | None) -> range:
        """Places of the rows.

        Args:
            size: number of rows; None if it is not needed. Then the range may exceed them.
        """
        start = 0 if self.start is None else _place(self.start, size)
        if self.stop is None:
            return range(start, _ENDLESS if size is None else size)
        return range(start, max(start, _place(self.stop, size)))


_ENDLESS = 2**62


def _place(bound: tuple[int, bool], size: int | None) -> int:
    number, percent = bound
    if size is None:
        return number
    rows = math.floor(abs(number) * size / 100 + 0.5) if percent else abs(number)
    return min(rows, size) if number >= 0 else max(0, size - rows)


def split_reference(reference: str) -> tuple[str, str]:
    """A reference and the slice after it (empty without one). If a file with the full name exists, it is a file without
    a slice."""
    match = _BEHIND.fullmatch(reference)
    if match is None or ":" not in match["slice"] or _is_file(reference):
        return reference, ""
    return match["reference"], match["slice"]


def _is_file(reference: str) -> bool:
    try:
        return Path(reference).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # an impossible file name
        return False
