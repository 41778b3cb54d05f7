"""What clients of the Tinker wire know and this server does not offer: each is refused by its name and with the reason,
so that nobody looks for a mistake of their own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from finetooth_server.faults import Refused


class NotOffered(Refused):
    """Something of the wire that is not served here."""

    status = 400


@dataclass(frozen=True)
class Refusal:
    """A route that is not offered.

    Attributes:
        path: under `/api/v1`, with the names of its parameters in braces.
        what: what it would be.
        reason: why it is not here.
        action: what to do instead.
    """

    method: str
    path: str
    what: str
    reason: str
    action: str

    @property
    def sentence(self) -> str:
        """What the client reads."""
        return str(self.error())

    def error(self) -> NotOffered:
        """The refusal as an error to raise."""
        return NotOffered(f"{self.what}: not offered, {self.reason}", action=self.action)


REFUSALS = tuple(
    Refusal(**route)
    for route in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["routes"]
)
"""Routes that are not offered."""
