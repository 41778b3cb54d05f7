"""Requests to the server: made again where it may help, and told in one line where it does not."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
)
from finetooth_hooks import StoreError

T = TypeVar("T")

LONGEST_WAIT = 30.0
"""Seconds."""

_MAY_PASS = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
"""Codes of refusals that say nothing against the request itself: the body was damaged on the way, or the server is
busy."""

_ACTIONS = {
    "403": "check the credentials, and that they may read and write there",
    "AccessDenied": "give these credentials the right to list, read, write and delete there",
    "EntityTooSmall": "raise `part_bytes` of the store: this server takes no parts so small (AWS: from 5 MiB on)",
    "EntityTooLarge": "lower `part_bytes` of the store",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or the profile",
    "NoSuchBucket": "make the bucket, or correct the address",
    "PermanentRedirect": "set `region` of the store to the bucket's",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY or the profile",
}
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class Damaged(Exception):
    """What arrived is not what was kept; asking again may help."""


def code(error: BaseException) -> str:
    """The server's code of a refusal, `NoSuchKey`; empty if it is none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status(error: BaseException) -> int:
    """The HTTP status of a refusal; 0 if it is none."""
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing(error: BaseException) -> bool:
    """The server says that an object is not there; that a bucket is not there is another thing."""
    return code(error) in ("NoSuchKey", "404", "NotFound")


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        return (status(error) >= 500 and status(error) != 501) or status(error) == 429 or code(error) in _MAY_PASS
    return isinstance(error, HTTPClientError | IncompleteReadError | ResponseStreamingError | Damaged)


def in_words(error: BaseException) -> tuple[str, str]:
    """What went wrong in one line, and what to do about it. Nothing that looks like a password is in it."""
    if isinstance(error, ClientError):
        detail = error.response.get("Error", {})
        text = f"the server answered {status(error)} {code(error)}: {detail.get('Message') or 'no reason given'}"
        return _plain(text), _ACTIONS.get(code(error), "")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "credentials are missing, or only half of them are there", _CREDENTIALS
    if isinstance(error, ProfileNotFound):
        return _plain(str(error)), "correct `profile` of the store, or AWS_PROFILE"
    if isinstance(error, Damaged):
        return str(error), ""
    return _plain(f"{type(error).__name__}: {error}"), "look whether the server can be reached" if may_pass(
        error
    ) else ""


def _plain(text: str) -> str:
    """One line, without what stands before an @ in an address."""
    return re.sub(r"//[^/@\s]+@", "//", " ".join(text.split()))[:400]


@dataclass
class Requests:
    """Makes requests again that failed for a reason that may pass, after a wait that doubles.

    The waits are drawn from a generator of its own: boto3's retries draw from Python's global one, and an upload in the
    background would then change what a user's code draws from it.

    Attributes:
        place: of the store, for messages.
        retries: how often a request is made again.
        wait: seconds before the first retry.
        sleep: waits the seconds it is given.
    """

    place: str
    retries: int
    wait: float
    sleep: Callable[[float], None] = time.sleep
    _random: random.Random = field(default_factory=random.Random)

    def __call__(self, doing: str, request: Callable[..., T], **arguments: Any) -> T:
        """Make a request.

        Args:
            doing: for messages, `sending step-40/state.json`.

        Raises:
            ClientError: the server refuses what was asked for; the caller decides what that means.
            StoreError: it failed as often as it may, or cannot be made.
        """
        for failures in range(1, self.retries + 2):
            try:
                return request(**arguments)
            except (ClientError, BotoCoreError) as error:
                if isinstance(error, ClientError) and not may_pass(error):
                    raise
                self.after(doing, error, failures)
        raise AssertionError("`after` raises at the last failure")

    def after(self, doing: str, error: BaseException, failures: int) -> None:
        """Wait until the next attempt.

        Args:
            failures: so far.

        Raises:
            StoreError: it cannot help, or has failed as often as it may.
        """
        if not may_pass(error) or failures > self.retries:
            raise self.failed(doing, error, failures) from error
        # half of the wait or more, doubled each time
        self.sleep(min(LONGEST_WAIT, self.wait * 2 ** (failures - 1)) * self._random.uniform(0.5, 1.0))

    def failed(self, doing: str, error: BaseException, attempts: int = 1) -> StoreError:
        """The StoreError that tells what went wrong."""
        problem, action = in_words(error)
        often = f", {attempts} times" if attempts > 1 else ""
        return StoreError(self.place, f"{doing} failed{often}: {problem}", action=action)
