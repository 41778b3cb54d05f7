"""A record of every call that cannot be changed unseen: who, what, which model, sizes, outcome; no content.

A line of JSON each. `hash` is SHA-256 over the line before it and its own content, so whoever changes, removes or moves
a line breaks every hash from there on. Cutting off the end leaves a whole chain: the number of lines and the last hash
stand in a second file, and `ft audit verify --head` compares with a head that was noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError

from finetooth_server.records import now

FIRST = "0" * 64


@dataclass(frozen=True)
class Verified:
    """A chain that holds.

    Attributes:
        head: hash of the last line.
    """

    lines: int
    head: str


class Audit:
    """The record of one server, which alone writes it.

    Args:
        path: of the record; goes on where it ended.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._lines, self._head = _end(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(
        self,
        event: str,
        *,
        tenant: str,
        key: str = "",
        model: str = "",
        seq: int | None = None,
        sent: int = 0,
        received: int = 0,
        outcome: str,
    ) -> None:
        """Append one line.

        Args:
            event: what was called.
            sent, received: bytes of the answer and of the request.
            outcome: HTTP status, or `done` or `failed` of a call.
        """
        content: dict[str, Any] = {
            "at": round(now(), 3),
            "event": event,
            "tenant": tenant,
            "key": key,
            "model": model,
            "seq": seq,
            "received": received,
            "sent": sent,
            "outcome": outcome,
        }
        with self._lock:
            content["number"] = self._lines + 1
            hash_ = _hash(self._head, content)
            os.write(self._file, (_text({**content, "hash": hash_}) + "\n").encode())
            self._lines, self._head = self._lines + 1, hash_

    def close(self) -> None:
        """Note the head and let go of the file."""
        with self._lock:
            os.fsync(self._file)
            os.close(self._file)
            head = self._path.with_suffix(".head")
            head.write_text(_text({"lines": self._lines, "head": self._head}) + "\n", encoding="utf-8")


def verify(path: Path, *, head: str = "") -> Verified:
    """Check every line of a record.

    Args:
        head: a hash that was noted earlier and must be among its lines; empty for none.

    Raises:
        UserError: it was changed; names the first line that does not fit.
    """
    last, number, seen = FIRST, 0, not head
    try:
        lines = path.open(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", action="name the audit record of a server") from error
    with lines:
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                claimed = content.pop("hash")
            except (ValueError, KeyError, AttributeError) as error:
                raise _changed(path, number, "it is no line of a record") from error
            if content.get("number") != number:
                raise _changed(path, number, f"it says that it is number {content.get('number')}")
            if _hash(last, content) != claimed:
                raise _changed(path, number, "its hash does not fit")
            last, seen = claimed, seen or claimed == head
    noted = path.with_suffix(".head")
    if noted.is_file():
        end = json.loads(noted.read_text(encoding="utf-8"))
        if end["lines"] > number:
            raise UserError(f"{path}: {number} lines, {end['lines']} were noted: its end is missing", action=_ACTION)
    if not seen:
        raise UserError(f"{path}: no line has the hash {head}: its end is missing or was rewritten", action=_ACTION)
    return Verified(number, last)


_ACTION = "compare with a copy kept elsewhere"


def _changed(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}:{number}: {what}: the record was changed here or before", action=_ACTION)


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _hash(last: str, content: dict[str, Any]) -> str:
    return hashlib.sha256((last + _text(content)).encode()).hexdigest()


def _cut_torn_line(path: Path) -> None:
    """A crash may have left half a line, which was never acknowledged."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _end(path: Path) -> tuple[int, str]:
    if not path.exists():
        return 0, FIRST
    last = None
    with path.open(encoding="utf-8") as lines:
        for last in lines:  # noqa: B007
            pass
    if last is None:
        return 0, FIRST
    content = json.loads(last)
    return content["number"], content["hash"]
