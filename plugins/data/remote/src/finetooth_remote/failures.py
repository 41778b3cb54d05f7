"""Explains the exceptions of store libraries, and tells whether a retry may help."""

from __future__ import annotations

import errno
from collections.abc import Iterator

STATUSES = {
    400: ("the server refuses the request (400)", "check the address and its region"),
    401: ("access is denied (401)", "give credentials in the environment"),
    403: ("access is denied (403)", "check the credentials in the environment, and the address"),
    404: ("the server has no such file (404)", "check the address"),
    410: ("the file is gone (410)", "check the address"),
}
PASSING = frozenset({408, 425, 429})
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
UNTRUSTED = frozenset({"SSLCertVerificationError", "ClientConnectorCertificateError"})
UNREACHED = frozenset(
    {"ClientConnectorError", "ConnectionTimeoutError", "EndpointConnectionError", "ConnectTimeoutError", "gaierror"}
)
RETRY = "try again later"
REACH = "check the address and the network; without one, name a local file"
TRUST = "check the address; a certificate of your own is named by SSL_CERT_FILE"


class Failure(Exception):
    """A fetch that did not work.

    Attributes:
        final: trying again would not help.
        unreached: no server was there to answer, so that waiting long would help little.
        action: what to do.
    """

    def __init__(self, problem: str, action: str = RETRY, *, final: bool = False, unreached: bool = False) -> None:
        super().__init__(problem)
        self.action, self.final, self.unreached = action, final, unreached


def failure_of(error: BaseException) -> Failure | None:
    """The meaning of an error; None if it is not a download error."""
    chain = list(_causes(error))
    own = next((cause for cause in chain if isinstance(cause, Failure)), None)
    if own is not None:
        return own
    full = next((cause for cause in chain if isinstance(cause, OSError) and cause.errno in DISK), None)
    if full is not None:
        action = "make room, or set FT_CACHE to a folder on another disk"
        return Failure(f"it cannot be kept here: {full.strerror}", action, final=True)
    names = {cls.__name__ for cause in chain for cls in type(cause).__mro__}
    if "NoCredentialsError" in names:
        return Failure("credentials are missing", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", final=True)
    status = next((code for cause in chain if (code := _status(cause)) is not None), None)
    if status is None and "FileNotFoundError" in names and len(chain) == 1:
        status = 404
    if status is None and "PermissionError" in names:
        status = 403
    if status is not None:
        problem, action = STATUSES.get(status, (f"the server answers {status}", RETRY))
        return Failure(problem, action, final=status < 500 and status not in PASSING)
    if names & UNTRUSTED:
        return Failure(f"the server's certificate is not trusted ({_error_text(chain[-1])})", TRUST, final=True)
    if names & UNREACHED:
        return Failure(f"the server cannot be reached ({_error_text(chain[-1])})", REACH, unreached=True)
    if names & {"OSError", "ClientError", "TimeoutError", "BotoCoreError", "HTTPClientError"}:
        return Failure(f"the server cannot be reached or the connection broke ({_error_text(chain[-1])})")
    return None


def _error_text(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer that an error holds."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 100:
        return status
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code if isinstance(code, int) else None
    return None
