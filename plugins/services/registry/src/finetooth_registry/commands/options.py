"""What several commands of a registry share: options, and the registry in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from finetooth_registry.registry import Registry

HERE = click.option(
    "--registry", "where", default="registry", envvar="FT_REGISTRY", show_default=True,
    help="The registry: a folder, or the URL of a server; FT_REGISTRY sets it too.",
)  # fmt: skip
KEY = click.option("--key", type=click.Path(path_type=Path), envvar="FT_REGISTRY_KEY", help="Private key to sign with.")


def here(where: str) -> Registry:
    """The registry in a folder.

    Raises:
        UserError: the registry is not in a folder.
    """
    from finetooth_hooks.errors import UserError

    from finetooth_registry.registry import Registry
    from finetooth_registry.remote import open_registry

    if not isinstance(opened := open_registry(where), Registry):
        raise UserError(f"{where}: this is done where the registry lies", action="run the command on that machine")
    return opened
