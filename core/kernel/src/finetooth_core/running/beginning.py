"""Makes a run's folder, and cleans up if the run cannot begin."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetooth_saving.run_folder import PLAN, RECIPE, RUN
from finetooth_toolbox.files.locks import FILE as LOCK


def make_folder(folder: Path) -> Sequence[Path]:
    """Make the folder of a run, if it is missing; return the made folders, the innermost first.

    Raises:
        OSError: it cannot be made.
    """
    whole = folder.absolute()
    missing = [path for path in (whole, *whole.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def withdraw(folder: Path, made: Sequence[Path]) -> None:
    """Remove the files of a run that was refused before it could train. A killed process leaves its files, to be
    resumed.

    Args:
        made: its folders, the innermost first; one with other content stays.
    """
    for name in (RECIPE, PLAN, RUN, LOCK):
        with suppress(OSError):
            (folder / name).unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()
