"""Errors of clients, with their HTTP status."""

from __future__ import annotations

from finetooth_hooks import UserError


class Refused(UserError):
    """A refused request.

    Attributes:
        status: HTTP's.
    """

    status = 400


class Unauthorised(Refused):
    """No valid key."""

    status = 401


class Forbidden(Refused):
    """The key lacks the scope."""

    status = 403


class Unknown(Refused):
    """It does not exist or is another tenant's: the answer is the same."""

    status = 404


class Conflict(Refused):
    """Something else has this name or this place in the sequence."""

    status = 409


class TooMuch(Refused):
    """A limit is reached; later there may be room.

    Args:
        after: seconds to wait before the next attempt.
    """

    status = 429

    def __init__(self, problem: str, *, action: str = "", after: int = 1) -> None:
        super().__init__(problem, action=action)
        self.after = max(1, after)


class Busy(Refused):
    """The whole server is busy; later there may be room."""

    status = 503


class DiskFull(Busy):
    """The disk of the server's folder has no room for a record."""

    def __init__(self) -> None:
        super().__init__("the server's disk is full", action="try again later; the operator must make room")
