"""Tinker routes that this server does not offer: each is refused by name and with the reason, so that users do not look
for their own mistake."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from finetooth_server.faults import Refused


class NotOffered(Refused):
    """The error for an unsupported part of the protocol."""

    status = 400


@dataclass(frozen=True)
class Refusal:
    """A route that is not offered.

    Attributes:
        path: under `/api/v1`, with the names of its parameters in braces.
        what: its purpose.
        reason: why it is missing.
        action: what to do instead.
    """

    method: str
    path: str
    what: str
    reason: str
    action: str

    @property
    def sentence(self) -> str:
        """The text for the client."""
        return str(self.error())

    def error(self) -> NotOffered:
        """The refusal as an error to raise."""
        return NotOffered(f"{self.what}: not offered, {self.reason}", action=self.action)


REFUSALS = tuple(
    Refusal(**route)
    for route in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["routes"]
)
"""Routes that are not offered."""
