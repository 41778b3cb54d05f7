"""Objects to files: streamed, continued where a transfer broke off, compared with what was expected."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError
from finetooth_hooks import StoreError

from finetooth_objects.bucket import Bucket
from finetooth_objects.requests import Damaged, status

_CHUNK = 2**16  # what is read at once, and lost when a transfer is cut within it
_PROGRESS = 2**20  # bytes after which failures are forgotten: it makes progress, so it may be cut any number of times
_WRITTEN_ANEW = 412  # If-Match: the object is another one than at the beginning


class _Sink:
    """Takes the bytes of an object in order, to hash and perhaps to keep them."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """From the first byte."""
        self.have, self._hash = 0, hashlib.sha256()
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.have += len(chunk)
        if self._file is not None:
            self._file.write(chunk)

    def digest(self) -> bytes:
        return self._hash.digest()


def digest_of(bucket: Bucket, key: str, size: int) -> bytes:
    """SHA-256 of an object, read as a whole.

    Args:
        size: bytes it has.

    Raises:
        StoreError: it cannot be read.
    """
    sink = _Sink(None)
    _Transfer(bucket, key, size, size).run(sink)
    return sink.digest()


def read(bucket: Bucket, key: str, largest: int) -> bytes:
    """The content of a small object.

    Args:
        largest: bytes it may have.

    Raises:
        StoreError: it is not there, larger, or cannot be read.
    """
    content = BytesIO()
    _Transfer(bucket, key, None, largest).run(_Sink(content))
    return content.getvalue()


def download(bucket: Bucket, key: str, path: Path, *, sha256: str, size: int | None, largest: int) -> None:
    """Write an object into a new file; one that arrives damaged is asked for again.

    Args:
        sha256: hexadecimal, of what is expected.
        size: bytes that are expected; None if that is not known.
        largest: bytes it may have.

    Raises:
        StoreError: it is not there, or does not arrive whole.
        OSError: the file cannot be written.
    """
    with path.open("xb") as file:
        sink = _Sink(file)
        transfer = _Transfer(bucket, key, size, largest)
        while True:
            transfer.run(sink)
            if sink.digest().hex() == sha256:
                return
            transfer.fail(Damaged("what arrived differs from its SHA-256 in the manifest"))
            sink.restart()


class _Transfer:
    """One object on its way.

    Args:
        size: bytes that are expected, None if not known.
        largest: more is refused.
    """

    def __init__(self, bucket: Bucket, key: str, size: int | None, largest: int) -> None:
        self._bucket, self._key, self._size, self._largest = bucket, key, size, largest
        self._etag = ""
        self._failures = 0

    def run(self, sink: _Sink) -> None:
        """Until all of it has arrived."""
        furthest = 0
        while True:
            try:
                if self._read(sink):
                    return
                self.fail(Damaged("the answer was shorter than it said"))
            except (ClientError, BotoCoreError, Damaged) as error:
                if status(error) == _WRITTEN_ANEW:
                    self._etag = ""
                    sink.restart()
                if sink.have > furthest + _PROGRESS:
                    furthest, self._failures = sink.have, 0
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Count a failure and wait.

        Raises:
            StoreError: it is final, or one too many.
        """
        self._failures += 1
        if status(error) == _WRITTEN_ANEW:
            error = Damaged("the object was replaced while it was read")
        self._bucket.requests.after(f"reading {self._key}", error, self._failures)

    def _read(self, sink: _Sink) -> bool:
        wanted: dict[str, Any] = {}
        if sink.have:
            wanted["Range"] = f"bytes={sink.have}-"
        if self._etag:
            wanted["IfMatch"] = self._etag
        answer = self._bucket.once("get_object", Key=self._key, **wanted)
        total = self._total(answer, sink)
        most = self._largest if self._size is None else self._size
        if total > most:
            problem = f"{self._key} has {total} bytes, and {most} at most were expected"
            raise StoreError(str(self._bucket.address), problem, action="use another checkpoint")
        if self._size is not None and total < self._size:
            raise Damaged(f"it has {total} bytes instead of {self._size}")
        self._etag = str(answer.get("ETag", ""))
        body = answer["Body"]
        try:
            while chunk := body.read(_CHUNK):
                if sink.have + len(chunk) > total:
                    raise Damaged("the answer was longer than it said")
                sink.write(chunk)
        finally:
            body.close()
        return sink.have == total

    def _total(self, answer: Any, sink: _Sink) -> int:
        """Bytes of the whole object; a server that answers with all of it makes the sink start over."""
        length = int(answer["ContentLength"])
        served = str(answer.get("ContentRange", ""))
        if sink.have and served.startswith(f"bytes {sink.have}-"):
            return sink.have + length
        if sink.have:
            sink.restart()
            if served:
                raise Damaged(f"the answer was for other bytes: {served}")
        return length
