"""Tracker `mlflow`: steps and evaluations in MLflow."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `mlflow`."""
    yield Tracker(
        name="mlflow",
        build="finetooth_mlflow.tracker:build",
        summary="steps, evaluations and the recipe in MLflow",
    )
