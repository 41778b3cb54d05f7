"""The folder in TMPDIR for layers of roles that lie on the disk, and what killed processes left of theirs."""

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
"""What its name begins with until this process holds it: so a folder under the first name that nobody holds is left."""


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
