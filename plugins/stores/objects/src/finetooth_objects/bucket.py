"""A bucket as the store needs it: a few requests, with retries, over boto3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from finetooth_hooks import StoreError

from finetooth_objects.options import Address, S3Options, checked_endpoint
from finetooth_objects.requests import Requests, in_words, is_missing


class Bucket:
    """Requests to one bucket. Nothing is asked before the first call.

    Args:
        address: bucket and prefix.
        options: of the store.

    Raises:
        RecipeError: the endpoint is not an address.
        StoreError: boto3 makes no client of these options: a profile that is not there.
    """

    def __init__(self, address: Address, options: S3Options) -> None:
        self.address = address
        self.requests = Requests(str(address), options.retries, options.wait)
        endpoint = checked_endpoint(options.endpoint)
        settings = Config(
            connect_timeout=options.timeout,
            read_timeout=options.timeout,
            retries={"total_max_attempts": 1},  # our own: see Requests
            # only the checksums that are asked for: older servers refuse what boto3 would add
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint else None,
            tcp_keepalive=True,
        )
        try:
            session = boto3.session.Session(profile_name=options.profile or None, region_name=options.region or None)
            # without a region AWS answers with the bucket's own; other servers take any
            region = None if session.region_name else "us-east-1"
            self._client: Any = session.client("s3", endpoint_url=endpoint, region_name=region, config=settings)
        except (BotoCoreError, ValueError) as error:
            problem, action = in_words(error)
            raise StoreError(str(address), problem, action=action) from error

    def ask(self, doing: str, operation: str, **arguments: Any) -> Any:
        """One request by its boto3 name, `put_object`; made again where that may help.

        Raises:
            ClientError: it is refused.
            StoreError: it failed.
        """
        return self.requests(doing, getattr(self._client, operation), Bucket=self.address.bucket, **arguments)

    def once(self, operation: str, **arguments: Any) -> Any:
        """One request, made once.

        Raises:
            ClientError, BotoCoreError: as boto3 raises them.
        """
        return getattr(self._client, operation)(Bucket=self.address.bucket, **arguments)

    def tell(self, doing: str, operation: str, **arguments: Any) -> Any:
        """As `ask`, where a refusal is a failure.

        Raises:
            StoreError: it is refused, or failed.
        """
        try:
            return self.ask(doing, operation, **arguments)
        except ClientError as error:
            raise self.requests.failed(doing, error) from error

    def head(self, key: str) -> Any:
        """What the server says of an object, with its checksum; None if there is none.

        Raises:
            StoreError: the server does not say.
        """
        doing = f"looking for {key}"
        try:
            return self.ask(doing, "head_object", Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if is_missing(error):
                return None
            raise self.requests.failed(doing, error) from error

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys of all objects that begin with `prefix`."""
        for page in self._pages("list_objects_v2", {"ContinuationToken": "NextContinuationToken"}, Prefix=prefix):
            yield from (entry["Key"] for entry in page.get("Contents", ()))

    def folders(self, prefix: str) -> Iterator[str]:
        """What stands between `prefix` and the next slash, in all keys that begin with it."""
        tokens = {"ContinuationToken": "NextContinuationToken"}
        for page in self._pages("list_objects_v2", tokens, Prefix=prefix, Delimiter="/"):
            yield from (entry["Prefix"][len(prefix) : -1] for entry in page.get("CommonPrefixes", ()))

    def uploads(self, prefix: str) -> list[Any]:
        """Uploads in parts under `prefix` that were begun and not completed, oldest first."""
        tokens = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages("list_multipart_uploads", tokens, Prefix=prefix)
        begun = [upload for page in pages for upload in page.get("Uploads", ())]
        # some servers list by another rule than the one asked for
        return sorted((u for u in begun if u["Key"].startswith(prefix)), key=lambda u: str(u.get("Initiated", "")))

    def parts(self, key: str, upload: str) -> Iterator[Any]:
        """Parts of an upload that the server has."""
        pages = self._pages("list_parts", {"PartNumberMarker": "NextPartNumberMarker"}, Key=key, UploadId=upload)
        for page in pages:
            yield from page.get("Parts", ())

    def _pages(self, operation: str, tokens: dict[str, str], **arguments: Any) -> Iterator[Any]:
        """Pages of a list.

        Args:
            tokens: arguments of the next request by where the answer says them.
        """
        doing = f"listing {arguments.get('Prefix') or arguments.get('Key') or 'the bucket'}"
        more: dict[str, Any] = {}
        while True:
            page = self.tell(doing, operation, **arguments, **more)
            yield page
            following = {name: page[field] for name, field in tokens.items() if page.get(field)}
            if not page.get("IsTruncated") or not following or following == more:
                return
            more = following
