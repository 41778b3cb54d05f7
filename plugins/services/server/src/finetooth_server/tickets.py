"""Temporary addresses that need no key, each for one file.

A ticket names its maker, and is signed with a secret that the server makes when it starts. It ends with its time, with
the server, and with its maker's key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets

from finetooth_server.faults import Unauthorised
from finetooth_server.keeping.records import now
from finetooth_server.keys import Caller, Keys

LASTS = 3600.0
"""Seconds for which a ticket is good."""


class Tickets:
    """The tickets of one server."""

    def __init__(self, keys: Keys, *, keyless: bool) -> None:
        self._keys, self._keyless, self._secret = keys, keyless, secrets.token_bytes(32)

    def issue(self, caller: Caller, path: str) -> tuple[str, float]:
        """A caller's ticket for a path, and its end, in seconds since 1970."""
        ends = now() + LASTS
        holder = base64.urlsafe_b64encode(json.dumps([caller.tenant, caller.key, ends]).encode()).decode().rstrip("=")
        return f"{holder}.{self._signature(holder, path)}", ends

    def caller(self, ticket: str, path: str) -> Caller:
        """The caller of a ticket, who may only download.

        Raises:
            Unauthorised: it is not this server's, is for another path, has ended, or its key has.
        """
        holder, _, signature = ticket.partition(".")
        if hmac.compare_digest(signature.encode(), self._signature(holder, path).encode()):
            tenant, key, ends = json.loads(base64.urlsafe_b64decode(holder + "=" * (-len(holder) % 4)))
            if now() < ends and self._keys.holds(key, keyless=self._keyless):
                return Caller(tenant, key, frozenset({"download"}))
        raise Unauthorised("no valid API key", action="send one that `ft keys create` made")

    def _signature(self, holder: str, path: str) -> str:
        return hmac.new(self._secret, f"{holder}\n{path}".encode(), hashlib.sha256).hexdigest()
