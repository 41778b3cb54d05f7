"""Whose turn it is: A B A B, so that a machine that gets slower slows everybody."""

from __future__ import annotations

from collections.abc import Iterator

from harness.workload import Contender, Form, Workload


def turns(workload: Workload, form: Form, rounds: int | None = None) -> Iterator[tuple[int, Contender]]:
    """(round, contender) in the order in which they run.

    A contender that takes fewer rounds takes the first ones, so that a pair of contenders shares as many as it can.

    Args:
        rounds: at most so many for each.
    """
    counts = {c.name: c.count(form) if rounds is None else min(rounds, c.count(form)) for c in workload.contenders}
    for index in range(max(counts.values(), default=0)):
        for contender in workload.contenders:
            if index < counts[contender.name]:
                yield index, contender
