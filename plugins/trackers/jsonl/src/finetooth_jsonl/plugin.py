"""Tracker `jsonl`: metrics.jsonl in the run folder."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `jsonl`."""
    yield Tracker(
        name="jsonl",
        build="finetooth_jsonl.tracker:JsonlTracker",
        summary="metrics.jsonl in the run folder",
        default=True,
    )
