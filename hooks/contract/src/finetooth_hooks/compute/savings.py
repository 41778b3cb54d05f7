"""A backend's options for saving device memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Options of a backend that save device memory and take more time.

    Attributes:
        label: for people, after a comma: `activations in host memory`.
        options: of the backend.
        costs: its price.
    """

    label: str
    options: Mapping[str, Any]
    costs: str
