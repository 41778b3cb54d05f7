"""Tracker `notebook`: losses below the cell of a notebook."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Tracker, hookimpl


@hookimpl
def ft_trackers() -> Iterable[Tracker]:
    """The tracker `notebook`."""
    yield Tracker(
        name="notebook",
        build="finetooth_notebook.curves:build",
        summary="losses drawn below a notebook's cell; a run started in a notebook adds it",
        in_notebooks=True,
    )
