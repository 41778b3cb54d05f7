"""Files to objects: in parts where they are large, only what is not there yet, and verified where they lie."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import BotoCoreError, ClientError
from finetooth_hooks import StoreError

from finetooth_objects.bucket import Bucket
from finetooth_objects.checksums import Digests, encoded
from finetooth_objects.download import digest_of
from finetooth_objects.requests import code, status

Trust = Literal["checks", "ignores", "refuses"]
"""What a server does with the checksum of what it is sent: compares it, takes no notice, or takes no such header."""

_GONE = "NoSuchUpload"
_MISMATCH = {"BadDigest", "XAmzContentChecksumMismatch"}
_REFUSED = _MISMATCH | {"InvalidArgument", "InvalidDigest", "InvalidRequest", "NotImplemented"}
_TEST = b"finetooth"


class Uploader:
    """Sends files to one bucket.

    Args:
        bucket: where to.
        retries: how often a file is sent again that did not arrive as it was.
        read_back: read everything back, whatever the server says.
    """

    def __init__(self, bucket: Bucket, *, retries: int, read_back: bool) -> None:
        self._bucket = bucket
        self._retries = retries
        self._read_back = read_back
        self._trust: Trust | None = None

    @property
    def trust(self) -> Trust:
        """What the server does with checksums; found out once, by sending one that is false.

        Some S3-compatible servers store the checksum they are given and give it back without having computed it. What
        such a server says proves nothing, so from it every file is read back.
        """
        if self._trust is None:
            self._trust = self._find_out()
        return self._trust

    def put(self, key: str, path: Path, file: Digests) -> None:
        """Have an object of this content; when it returns, the object has been compared with it.

        Raises:
            StoreError: it does not arrive, or not as it was sent.
        """
        damaged: set[str] = set()
        for _ in range(self._retries + 2):
            if self._is_there(key, file):
                if len(file.parts) > 1:
                    self._abort_others(key)
                return
            try:
                self._send(key, path, file, damaged)
            except ClientError as error:
                # gone: completed by a request whose answer was lost, or aborted by somebody; the next look tells
                if code(error) != _GONE:
                    raise self._bucket.requests.failed(f"sending {key}", error) from error
        raise StoreError(
            str(self._bucket.address),
            f"{key} is not there as it was sent, after {self._retries + 1} uploads",
            action="look at the server, and at what lies between it and here",
        )

    def put_small(self, key: str, content: bytes, sha256: bytes) -> None:
        """Send what fits into one request, with its checksum.

        Raises:
            ClientError, StoreError: as `Bucket.ask`.
        """
        self._bucket.ask(f"sending {key}", "put_object", Key=key, Body=content, **self._checksum(sha256))

    def _is_there(self, key: str, file: Digests) -> bool:
        head = self._bucket.head(key)
        if head is None or head["ContentLength"] != file.size:
            return False
        checksum = head.get("ChecksumSHA256", "")
        # of several parts it is a checksum of theirs, which some servers give without their number
        true = (file.whole, file.composite, file.composite.partition("-")[0])
        if checksum in true and self.trust == "checks" and not self._read_back:
            return True
        # not to be believed, damaged, or sent in other parts by somebody: its content tells
        return digest_of(self._bucket, key, file.size) == file.sha256

    def _send(self, key: str, path: Path, file: Digests, damaged: set[str]) -> None:
        if len(file.parts) == 1:
            self.put_small(key, path.read_bytes(), file.sha256)
            return
        begun = self._unfinished_upload(key, damaged)
        have = {part["PartNumber"]: part for part in self._bucket.parts(key, begun)} if begun else {}
        upload = begun or self._begin(key)
        damaged.add(upload)  # if what comes of it is not the file, its parts are not to be used again
        done: list[dict[str, Any]] = []
        with path.open("rb") as stream:
            for index, sha256 in enumerate(file.parts):
                number = index + 1
                known = have.get(number)
                etag = known["ETag"] if known and _is_same(known, file, index) else None
                if etag is None:
                    stream.seek(index * file.part)
                    etag = self._send_part(key, upload, number, stream.read(file.length(index)), sha256)
                done.append({"PartNumber": number, "ETag": etag, **self._checksum(sha256, name_it=False)})
        self._bucket.ask(
            f"completing {key}",
            "complete_multipart_upload",
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": done},
        )

    def _send_part(self, key: str, upload: str, number: int, content: bytes, sha256: bytes) -> str:
        answer = self._bucket.ask(
            f"sending part {number} of {key}",
            "upload_part",
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=content,
            **self._checksum(sha256),
        )
        return str(answer["ETag"])

    def _begin(self, key: str) -> str:
        checksum = {} if self.trust == "refuses" else {"ChecksumAlgorithm": "SHA256"}
        answer = self._bucket.ask(f"beginning to send {key}", "create_multipart_upload", Key=key, **checksum)
        return str(answer["UploadId"])

    def _unfinished_upload(self, key: str, damaged: set[str]) -> str | None:
        """The newest upload of this object that was begun and not completed, by this process or another one."""
        wanted = (None, "") if self.trust == "refuses" else ("SHA256",)
        for upload in reversed(self._bucket.uploads(key)):
            if upload["Key"] == key and upload.get("ChecksumAlgorithm") in wanted and upload["UploadId"] not in damaged:
                return str(upload["UploadId"])
        return None

    def _abort_others(self, key: str) -> None:
        for upload in self._bucket.uploads(key):
            if upload["Key"] == key:
                abort(self._bucket, key, upload["UploadId"])

    def _checksum(self, sha256: bytes, *, name_it: bool = True) -> dict[str, str]:
        if self.trust == "refuses":
            return {}
        return {"ChecksumSHA256": encoded(sha256), **({"ChecksumAlgorithm": "SHA256"} if name_it else {})}

    def _find_out(self) -> Trust:
        key = f"{self._bucket.address.prefix}.checksum-test-{secrets.token_hex(8)}"
        refused = self._try(key, bytes(32))  # a false one
        if refused in _MISMATCH:
            return "checks"
        if refused and self._try(key, hashlib.sha256(_TEST).digest()):
            return "refuses"  # a true one as well
        self._bucket.tell("removing a test", "delete_object", Key=key)
        return "checks" if refused else "ignores"

    def _try(self, key: str, sha256: bytes) -> str:
        """Send a few bytes with a checksum; the code with which the server refuses it, empty if it takes it.

        Raises:
            StoreError: it refuses for another reason, or does not answer.
        """
        doing = "asking whether the server checks what it is sent"
        for failures in range(1, self._retries + 2):
            try:
                self._bucket.once(
                    "put_object", Key=key, Body=_TEST, ChecksumSHA256=encoded(sha256), ChecksumAlgorithm="SHA256"
                )
                return ""
            except (ClientError, BotoCoreError) as error:
                # a mismatch is an answer here; elsewhere it is damage on the way
                if status(error) == 501 or (status(error) == 400 and code(error) in _REFUSED):
                    return code(error)
                self._bucket.requests.after(doing, error, failures)
        raise AssertionError("`after` raises at the last failure")


def abort(bucket: Bucket, key: str, upload: str) -> None:
    """Let the server drop an upload that was begun.

    Raises:
        StoreError: it does not.
    """
    try:
        bucket.ask(f"dropping an unfinished upload of {key}", "abort_multipart_upload", Key=key, UploadId=upload)
    except ClientError as error:
        if code(error) != _GONE:
            raise bucket.requests.failed(f"dropping an unfinished upload of {key}", error) from error


def _is_same(part: Any, file: Digests, index: int) -> bool:
    """Whether the server has this part already: by its SHA-256 where it says one, else by its MD5."""
    if part.get("Size") != file.length(index):
        return False
    if part.get("ChecksumSHA256"):
        return bool(part["ChecksumSHA256"] == encoded(file.parts[index]))
    return bool(part["ETag"].strip('"').lower() == file.md5(index))
