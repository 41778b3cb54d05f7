"""New paths of the bases of runs, from the command line, for the duration of a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetooth_hooks.errors import UserError

_OVERRIDES: dict[Path, tuple[str, ...]] = {}
"""Overrides by the folder of the run."""


@contextmanager
def base_moved(folder: Path, settings: Sequence[str]) -> Iterator[None]:
    """Read the recipe of a run with another path of its base, for `click.Context.with_resource`. The files there are
    compared with those of the training, as always.

    Args:
        folder: of the run.
        settings: `model=NEW`.

    Raises:
        UserError: a setting other than `model` is given.
    """
    for setting in settings:
        if not setting.startswith("model="):
            raise UserError(
                f"{setting!r}: of a run that was trained, only the place of its base can be set",
                action="write model=NEW, the folder or the name of the same model",
            )
    _OVERRIDES[folder.resolve()] = tuple(settings)
    try:
        yield
    finally:
        del _OVERRIDES[folder.resolve()]


def overrides_of(recipe: Path) -> tuple[str, ...]:
    """The overrides of a run's recipe."""
    return _OVERRIDES.get(recipe.resolve().parent, ()) if _OVERRIDES else ()
