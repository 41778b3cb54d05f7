"""Options of the store `s3`, and its address."""

from __future__ import annotations

import re
from dataclasses import dataclass

from finetooth_hooks import Options, RecipeError
from finetooth_toolbox.files.manifests import is_name
from pydantic import Field

MEBIBYTE = 2**20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ENDPOINT = re.compile(r"https?://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?")


class S3Options(Options):
    """Options of the store `s3`. Credentials come from the environment or from a profile, never from options, as boto3
    finds them."""

    url: str
    """`s3://BUCKET/PREFIX`; each checkpoint is stored under `PREFIX/step-N/`."""
    endpoint: str = ""
    """Address of an S3-compatible server other than AWS, `https://HOST:PORT`. Empty: AWS_ENDPOINT_URL, or AWS."""
    region: str = ""
    """Region of the bucket. Empty: that of the environment or the profile."""
    profile: str = ""
    """Profile of the AWS configuration. Empty: AWS_PROFILE, or the default one."""
    part_bytes: int = Field(16 * MEBIBYTE, ge=1)
    """Larger files are uploaded in parts of this many bytes, and an interrupted upload sends only the missing parts.
    AWS takes no part below 5 MiB except the last."""
    retries: int = Field(6, ge=0)
    """How often a request is retried after a failure that may be temporary."""
    wait: float = Field(0.5, ge=0)
    """Seconds before the first retry; doubles before each further one, up to 30."""
    timeout: float = Field(60.0, gt=0)
    """Seconds without an answer after which a request fails."""
    read_back: bool = False
    """Whether to read every file back after its upload, even from a server that has proved to check checksums
    itself."""


@dataclass(frozen=True)
class Address:
    """Where checkpoints lie.

    Attributes:
        bucket: its name.
        prefix: what the keys begin with: empty, or ending in a slash.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def address(url: str) -> Address:
    """Take an `s3://` address apart.

    Raises:
        RecipeError: it is none; what may be a password in it is not repeated.
    """
    setting = "checkpoint.stores"
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "s3":
        raise RecipeError(setting, "the store s3 needs an address s3://BUCKET/PREFIX", action="correct `url`")
    if "@" in rest.partition("/")[0]:
        raise RecipeError(
            setting,
            "an s3:// address holds a user name or a password",
            action="take it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not _BUCKET.fullmatch(bucket):
        raise RecipeError(
            setting, f"{url}: {bucket!r} cannot be the name of a bucket", action="write s3://BUCKET/PREFIX"
        )
    if prefix and not all(is_name(part) for part in prefix.split("/")):
        raise RecipeError(
            setting,
            f"{url}: {prefix!r} cannot be a prefix here",
            action="use parts of letters, digits and _ . + = @ , - with single slashes between them",
        )
    return Address(bucket, f"{prefix}/" if prefix else "")


def checked_endpoint(endpoint: str) -> str | None:
    """The address of the server, None for the one that boto3 finds.

    Raises:
        RecipeError: it is not a plain http address; what may be a password in it is not repeated.
    """
    if not endpoint:
        return None
    if not _ENDPOINT.fullmatch(endpoint):
        shown = "it holds a user name or a password" if "@" in endpoint else repr(endpoint)
        raise RecipeError(
            "checkpoint.stores",
            f"s3: `endpoint` is not the address of a server: {shown}",
            action="write https://HOST or https://HOST:PORT",
        )
    return endpoint
