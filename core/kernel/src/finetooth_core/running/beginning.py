"""The beginning of a run: its folder, and how it is left if the run cannot begin."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetooth_saving.run_folder import PLAN, RECIPE, RUN
from finetooth_toolbox.files.locks import FILE as LOCK


def make_folder(folder: Path) -> Sequence[Path]:
    """Make the folder of a run, if it is not there; returns what was made, the innermost first.

    Raises:
        OSError: it cannot be made.
    """
    whole = folder.absolute()
    missing = [path for path in (whole, *whole.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def withdraw(folder: Path, made: Sequence[Path]) -> None:
    """Take back what a run wrote that was refused before it could train. A process that is killed takes nothing back:
    what it wrote is there to be resumed.

    Args:
        made: folders that were made for it, the innermost first; one that holds anything else stays.
    """
    for name in (RECIPE, PLAN, RUN, LOCK):
        with suppress(OSError):
            (folder / name).unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()
