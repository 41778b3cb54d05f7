"""Blobs of a registry in S3-compatible object storage.

Each is read back after the upload and its hash is checked, since not all servers check uploads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from finetooth_hooks.errors import UserError, install_command
from finetooth_toolbox.files.manifests import sha256_of

from finetooth_registry import schema
from finetooth_registry.blobs import RESTORE, Blobs, is_blob

if TYPE_CHECKING:
    from finetooth_registry.blobs import Reader

ADDRESS = "blobs.url"
"""The file with the address of the bucket of a registry's blobs."""
FORM = "use s3://BUCKET/PREFIX, and ?endpoint=https://HOST for a server that is not AWS"
_ADDRESS = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_][A-Za-z0-9_.-]*)*/?(\?[^@\s]+)?")
_ENDPOINT = re.compile(r"https?://[^/@\s]+/?")
_SETTINGS = ("endpoint", "region", "profile")
_TRIES = 6
"""Attempts of a request that fails for a temporary reason."""


def open_blobs(folder: Path) -> Blobs:
    """The blobs of the registry in a folder, from the folder or a bucket.

    Raises:
        UserError: the address of the bucket cannot be used, or a package is missing.
    """
    whole = schema.shared(folder)
    file = (whole or folder) / ADDRESS
    if not file.is_file():
        return Blobs(folder / "blobs")
    inside = f"{schema.TENANTS}/{folder.name}/" if whole else ""
    return BucketBlobs(folder / "blobs", file.read_text(encoding="utf-8").strip(), inside)


class BucketBlobs(Blobs):
    """Blobs in a bucket; parts are joined in a folder first.

    Args:
        folder: for parts.
        address: `s3://BUCKET/PREFIX`, with `?endpoint=`, `&region=` and `&profile=` unless the environment has them.
            Credentials come from the environment.
        inside: path after the prefix.

    Raises:
        UserError: the address is not one, or a package is missing.
    """

    def __init__(self, folder: Path, address: str, inside: str = "") -> None:
        super().__init__(folder)
        parts, settings = urlsplit(address), dict(parse_qsl(urlsplit(address).query))
        if (
            not _ADDRESS.fullmatch(address)
            or not settings.keys() <= set(_SETTINGS)
            or ("endpoint" in settings and not _ENDPOINT.fullmatch(settings["endpoint"]))
        ):
            raise UserError("blobs: not the address of a bucket", action=FORM)  # it may hold a password
        self._bucket, self._prefix = parts.netloc, "/".join(filter(None, (parts.path.strip("/"), inside)))
        if self._prefix and not self._prefix.endswith("/"):
            self._prefix += "/"
        self._place = f"s3://{self._bucket}/{self._prefix}"
        try:
            import boto3
            from boto3.exceptions import Boto3Error
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise UserError(f"{self._place}: {error}", action=install_command("finetooth-registry[s3]")) from error
        self._errors = (Boto3Error, BotoCoreError, ClientError)
        with self._asked():
            session = boto3.Session(profile_name=settings.get("profile"), region_name=settings.get("region"))
            config = Config(
                retries={"mode": "standard", "total_max_attempts": _TRIES},
                request_checksum_calculation="when_required",  # older servers refuse boto3's checksums
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"} if "endpoint" in settings else None,
            )
            self._client: Any = session.client("s3", endpoint_url=settings.get("endpoint"), config=config)

    def check_unused(self) -> None:
        """Check that the prefix is empty.

        Raises:
            UserError: the prefix is not empty, or the bucket cannot be listed.
        """
        if next(self._listed(), None):
            raise UserError(f"{self._place} is not empty", action="take another prefix; no two registries share one")

    def size(self, sha256: str) -> int | None:
        try:
            return int(self._client.head_object(**self._object(sha256))["ContentLength"])
        except self._errors as error:
            if _is_missing(error):
                return None
            raise self._refusal(error) from error

    def put(self, source: Path) -> str:
        sha256 = sha256_of(source)
        self._take(source, sha256)
        return sha256

    def _take(self, file: Path, sha256: str) -> None:
        if self.size(sha256) is not None:
            return
        where = self._object(sha256)
        with self._asked():
            self._client.upload_file(str(file), where["Bucket"], where["Key"])
        try:
            self.check(sha256)
        except UserError:
            self._delete(sha256)
            raise

    def _stored(self) -> Iterator[tuple[str, int]]:
        return ((name, size) for name, size in self._listed() if is_blob(name))

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of every object under the prefix, without those of tenants."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._asked():
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, Delimiter="/"):
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix), entry["Size"]

    def _delete(self, sha256: str) -> None:
        with self._asked():
            self._client.delete_object(**self._object(sha256))

    @contextmanager
    def _opened(self, sha256: str) -> Iterator[Reader]:
        try:
            body = self._client.get_object(**self._object(sha256))["Body"]
        except self._errors as error:
            if _is_missing(error):
                raise UserError(f"blob {sha256} is missing", action=RESTORE) from error
            raise self._refusal(error) from error
        with body, self._asked():
            yield body

    def _object(self, sha256: str) -> dict[str, str]:
        """
        Raises:
            UserError: the text is not a SHA-256.
        """
        return {"Bucket": self._bucket, "Key": self._prefix + self.path(sha256).name}

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """The server's error in one line."""
        try:
            yield
        except self._errors as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> UserError:
        said = " ".join(str(error).split())[:300]
        return UserError(f"{self._place}: {said}", action="check the bucket, its server and the credentials")


def _is_missing(error: Exception) -> bool:
    return getattr(error, "response", {}).get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound")
