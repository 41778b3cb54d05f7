"""Errors of a request in OpenAI's format."""

from __future__ import annotations

from typing import Any

from finetooth_hooks import UserError
from finetooth_wire.bounds import brief

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
"""The error's `type` by HTTP status; of other statuses, `invalid_request_error` or `server_error`."""


class Fault(UserError):
    """The error for a request that this face refuses.

    Attributes:
        status: HTTP's.
        param: the wrong field.
        code: OpenAI's error code.
    """

    def __init__(
        self, message: str, *, action: str = "", status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, action=action)
        self.status, self.param, self.code = status, param, code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal.

    Args:
        message: one line; long quotes of the request in it are cut, and so is `param`.
    """
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": brief(message), "type": kind, "param": brief(param) if param else None, "code": code}}
