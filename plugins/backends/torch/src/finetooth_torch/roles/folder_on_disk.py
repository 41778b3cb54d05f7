"""Makes the folder in TMPDIR for roles' layers on disk, and removes those of killed processes."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from finetooth_toolbox.files.locks import FolderHeldError, lock_folder

NAME = "finetooth-role-"
UNHELD = "finetooth-new-role-"
"""Prefix of its name until this process holds its lock: a folder with the other prefix and no lock belongs to a killed
process."""


def folder_for(owner: Any) -> Path:
    """A new folder, which is removed with its owner. Those of processes that were killed are removed first.

    Raises:
        OSError: TMPDIR cannot be written.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{NAME}*") if os.name == "posix" else ():
        with suppress(FolderHeldError, OSError), lock_folder(left):
            shutil.rmtree(left, ignore_errors=True)
    made, kept = Path(tempfile.mkdtemp(prefix=UNHELD)), ExitStack()
    kept.enter_context(lock_folder(made))
    folder = made.rename(made.with_name(made.name.replace(UNHELD, NAME)))
    kept.callback(shutil.rmtree, folder, ignore_errors=True)
    weakref.finalize(owner, kept.close)
    return folder
