"""The tree of segments that attention over a stream sees: sequences one behind the other that may share beginnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Looks", "Segment", "check_segments", "longest", "paths"]


@dataclass(frozen=True)
class Segment:
    """A run of rows of the stream.

    Attributes:
        start, stop: its rows.
        below: first row after the last segment below it; `stop` without any. The rows stop..below see all of it.
        given: so many of its first rows are only seen, in a pass without gradients. What attention computes for them is
            not used, and may be anything.
    """

    start: int
    stop: int
    below: int
    given: int = 0


@dataclass(frozen=True)
class Looks:
    """How a layer's attention makes weights of products.

    Attributes:
        scale: factor on the products of queries and keys.
        window: how many positions a position sees, itself included; 0: all before it.
        softcap: scores become `softcap * tanh(score / softcap)`; None: they do not.
        sinks: (heads,) scores that join the softmax of each position, and weigh no value; None: there are none.
    """

    scale: float
    window: int = 0
    softcap: float | None = None
    sinks: Tensor | None = None

    def usual(self, positions: int) -> bool:
        """Whether sequences of so many positions need a causal softmax of scaled products alone."""
        return self.softcap is None and self.sinks is None and not 0 < self.window < positions


def paths(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """For each segment those above it, and itself."""
    above: list[Segment] = []
    for segment in segments:
        while above and above[-1].below <= segment.start:
            above.pop()
        above.append(segment)
        yield list(above)


def longest(segments: Sequence[Segment]) -> int:
    """Positions of the longest sequence, including those that it shares with others."""
    return max((sum(segment.stop - segment.start for segment in path) for path in paths(segments)), default=0)


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
