"""The builder of the family `auto`, apart from what it builds: a reader of its options imports no torch."""

from __future__ import annotations

from finetooth_hooks.protocols import Family


def build() -> Family:
    """Builder of the family `auto`."""
    from finetooth_auto.family import Auto

    return Auto()
