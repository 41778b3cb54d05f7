"""Names that must differ, such as those of a table's columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetooth_hooks.errors import DataError


def repeated(names: Iterable[str]) -> str | None:
    """The first name that has come before; None if all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def check_columns(names: Sequence[str], where: str, action: str = "rename one") -> None:
    """Refuse columns of which one would hide another.

    Args:
        where: the file and line that name them.

    Raises:
        DataError: two columns have one name.
    """
    twice = repeated(names)
    if twice is not None:
        raise DataError(where, f"two columns are named {twice!r}", action=action)
