"""Verifiable questions from a seed."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Source, hookimpl


@hookimpl
def ft_sources() -> Iterator[Source]:
    """Offer the source `tasks`."""
    yield Source(
        name="tasks",
        build="finetooth_tasks.source:TasksSource",
        summary="generates verifiable questions (family relationships, arithmetic, sorting, weekdays) from a seed",
        example={"task": "family", "count": 8},
    )
