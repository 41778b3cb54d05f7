"""Tracker `console`: a live line while training, the loss curve at the end."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `console`."""
    yield Tracker(
        name="console",
        build="finetooth_console.tracker:build",
        summary="a progress line during training, and the loss curve at its end",
        default=True,
    )
