"""What other tools call things: settings of axolotl, TRL, LLaMA-Factory and their like, and the setting that is meant
here; and methods, adapters, optimizers of the field that nothing here brings.

The core reads this module through the entry point group `finetooth.elsewhere`, to say what to write in place of such a
name; nothing is read under these names. A name means the same at the top of a recipe and inside a section. The names
are in `tables/their_names.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from finetooth_importer import tables


class Meaning(NamedTuple):
    """What a name from elsewhere stands for.

    Attributes:
        setting: path of the setting that is meant; empty if there is none.
        advice: what to do, where naming the setting is not enough.
    """

    setting: str
    advice: str = ""


_TABLES = tables.of("their_names")

SETTINGS: Mapping[str, Meaning] = {
    name: Meaning(group["setting"], group.get("advice", "")) for group in _TABLES["settings"] for name in group["names"]
}
"""Settings as other tools call them."""

ABSENT: Mapping[str, Mapping[str, str]] = {kind: tables.notes(groups) for kind, groups in _TABLES["absent"].items()}
"""Names of the field that no package here brings, by kind, and why: they are spelled right."""
