"""The record of a plugin in use."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_core.plugins.catalog import Registered


@dataclass(frozen=True)
class Loaded:
    """A plugin in use.

    Attributes:
        distribution: its name, or the local file or module as the user named it.
        version: of the distribution; empty for a local file.
        module: name of its module.
        file: of the module.
        entries: its entries.
        sha256: of a local file's content; empty otherwise.
        named_by_user: the user named it, in addition to installing it.
    """

    distribution: str
    version: str
    module: str
    file: str
    entries: tuple[Registered, ...]
    sha256: str = ""
    named_by_user: bool = False
