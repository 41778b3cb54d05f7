"""Tracker `trackio`: steps and evaluations in Trackio."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `trackio`."""
    yield Tracker(
        name="trackio",
        build="finetooth_trackio.tracker:build",
        summary="steps, evaluations and the recipe in Trackio",
    )
