"""Numbers with units on the command line, and hashes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetooth_hooks.errors import UserError

SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30}
AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


def number_with_unit(text: str, units: Mapping[str, int]) -> float | None:
    """The number times its unit, in upper or lower case; None if the text is not such a number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    return None if match is None or match[2].lower() not in units else float(match[1]) * units[match[2].lower()]


def measured(text: str, units: Mapping[str, int], option: str, example: str) -> float:
    """Read a number with a unit.

    Raises:
        UserError: the text is not a number with a unit.
    """
    number = number_with_unit(text, units)
    if number is None:
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{option}={text!r} is not a number with a unit ({known})", action=f"write it as {example}")
    return number


def memory_of(text: str, option: str) -> int:
    """Bytes of a size of memory such as `24GB`.

    Raises:
        UserError: the text is not a size, or so small that its unit is probably missing.
    """
    size = number_with_unit(text, SIZES)
    if size is None:
        raise UserError(f"{option}: {text!r} is not a size", action="write it as 24GB")
    if size < SIZES["mb"]:
        what = f"{int(size):,} bytes"
        raise UserError(
            f"{option}: {text!r} is {what}, too small for a model", action=f"name the unit: {text.strip()}GB"
        )
    return int(size)


def short_hashes(text: str) -> str:
    """The text with each SHA-256 shortened to its first twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def size(taken: float) -> str:
    """A number of bytes as text, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if taken < 1000:
            return f"{taken:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{taken:.2f} {unit}"
        taken /= 1000
    return f"{taken:.2f} TB"
