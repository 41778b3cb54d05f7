"""Tracker `csv`: steps and evaluations as tables."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `csv`."""
    yield Tracker(
        name="csv",
        build="finetooth_contrib_csv.tracker:CsvTracker",
        summary="metrics.csv and evaluations.csv in the run folder",
    )
