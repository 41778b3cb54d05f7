"""Whether the library is there, asked before anything is loaded or written for it."""

from __future__ import annotations

import importlib.util

from finetooth_hooks import UserError, install_command


def check_installed() -> None:
    """Says what to install where torchao is absent.

    Raises:
        UserError: torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UserError("torchao is not installed", action=install_command("finetooth[torchao]"))
