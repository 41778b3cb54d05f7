"""Tracker `tensorboard`: scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `tensorboard`."""
    yield Tracker(
        name="tensorboard",
        build="finetooth_tensorboard.tracker:TensorboardTracker",
        summary="scalars for TensorBoard",
    )
