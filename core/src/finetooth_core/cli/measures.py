"""Numbers with units on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetooth_hooks.errors import UserError

SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30}
AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


def measured(text: str, units: Mapping[str, int], option: str, example: str) -> float:
    """A number with a unit.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if found is None or found[2].lower() not in units:
        known = ", ".join(unit for unit in units if unit)
        raise UserError(f"{option}={text!r} is no number with a unit ({known})", action=f"write it as {example}")
    return float(found[1]) * units[found[2].lower()]
