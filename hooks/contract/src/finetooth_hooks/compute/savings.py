"""What a backend can do to take less of its device's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Options of a backend with which a run takes less of its device's memory, and more time.

    Attributes:
        label: what a person calls it, behind a comma: `activations in host memory`.
        options: of the backend.
        costs: what is given up for it.
    """

    label: str
    options: Mapping[str, Any]
    costs: str
