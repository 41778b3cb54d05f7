"""Tracker `wandb`: steps and evaluations in Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `wandb`."""
    yield Tracker(
        name="wandb",
        build="finetooth_wandb.tracker:build",
        summary="steps, evaluations and the recipe in Weights & Biases",
    )
