"""Keys of axolotl that change nothing here, and keys that nothing here can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_importer import tables

TABLES = tables.of("axolotl")
ATTENTION = TABLES["attention"]
"""Keys that say what computes attention."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])
"""Keys that change nothing here, and why."""

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])
"""Keys that nothing here can do, and what to do."""

PACKING = TABLES["packing"]
"""How `sample_packing` fills its packs."""

UNTAKEN = {"drop_system_message": "system messages are read, too: take them out of the rows"}
"""Notes on settings of a dataset that have no counterpart here."""

COMPARED = frozenset({"llama3", "gemma", "gemma3", "qwen_25"})
"""Templates whose masks were held against the tool's: `tests/parity/axolotl`."""
PLAIN = frozenset(
    {"path", "type", "split", "name", "ds_type", "data_files", "field_messages", "message_property_mappings"}
)
"""Of a source: none of them says which turns train."""


def plain_chat(source: Any) -> bool:
    """Whether rows are conversations, of which the model's own turns train and nothing else is said."""
    return isinstance(source, dict) and source.get("type") == "chat_template" and source.keys() <= PLAIN
