"""The tree of segments that attention over a stream sees: sequences one behind the other that may share beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Segment", "check_segments"]


@dataclass(frozen=True)
class Segment:
    """A run of rows of the stream.

    Attributes:
        start, stop: its rows.
        below: first row after the last segment below it; `stop` without any. The rows stop..below see all of it.
    """

    start: int
    stop: int
    below: int


def check_segments(segments: Sequence[Segment], rows: int) -> None:
    """Raise ValueError unless the segments cover the stream once, in depth-first order."""
    at = 0
    open_until: list[int] = []
    for segment in segments:
        while open_until and open_until[-1] <= segment.start:
            open_until.pop()
        if segment.start != at or segment.stop <= segment.start or segment.below < segment.stop:
            raise ValueError(f"{segment} does not follow row {at}")
        if open_until and segment.below > open_until[-1]:
            raise ValueError(f"{segment} reaches beyond the segment above it, which ends at {open_until[-1]}")
        open_until.append(segment.below)
        at = segment.stop
    if at != rows:
        raise ValueError(f"the segments hold {at} rows, the stream {rows}")
