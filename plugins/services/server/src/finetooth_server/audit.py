"""A tamper-evident record of every call: who, what, which model, sizes, outcome; no content.

One line of JSON per call. `hash` is SHA-256 over the line before it and its own content, so changing, removing or
moving a line breaks every hash from there on. A second file, the head, holds the number of lines and the last hash,
written with every line and signed by HMAC-SHA256 (RFC 2104). So a removed end is found, also after a crash, and
rewriting the whole record needs the key, which may be kept elsewhere (`ft serve --audit-key`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError
from finetooth_toolbox import blame

from finetooth_server.keeping.records import now

FIRST = "0" * 64


@dataclass(frozen=True)
class Verified:
    """The result of checking a valid chain.

    Attributes:
        head: hash of the last line.
    """

    lines: int
    head: str


class Audit:
    """The record of one server, its only writer.

    Args:
        path: of the record; a server appends to an existing one.
        key: signs the head.
        say: called with a report of missing lines.
        unsigned: the record may come from a server that did not sign its head.
    """

    def __init__(
        self, path: Path, key: bytes, say: Callable[[str], None] = lambda line: None, *, unsigned: bool = False
    ) -> None:
        self._path, self._key, self._say, self._lock = path, key, say, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _set_torn_line_aside(path)
        self._lines, self._last = _end(path)
        missing = self._missing(unsigned)
        self._unwritten: deque[dict[str, Any]] = deque()  # while the disk is full
        self._signs = False  # the head lacks the last line
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._head = os.open(_head_of(path), os.O_RDWR | os.O_CREAT, 0o600)
        if torn:
            self.add(TORN, tenant="", outcome=f"{torn} bytes")
        if missing:
            say(f"{path}: {missing}: it was cut or rewritten while no server wrote it; `ft audit verify` shows where")
            self.add(BROKEN, tenant="", outcome=missing[:160])

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
        """Append one line and update the head. If the disk is full, the line waits in memory and is written before
        every later one, see `behind`.

        Args:
            event: the call.
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
            self._unwritten.append(content)
            self._catch_up()

    @property
    def behind(self) -> int:
        """The number of unwritten lines, after another attempt."""
        with self._lock:
            self._catch_up()
            return len(self._unwritten) + self._signs

    def _catch_up(self) -> None:
        """Write waiting lines, whole and in order, as far as there is room. The head is at most one line behind, which
        a start treats as a crash between the two writes."""
        try:
            while self._signs or self._unwritten:
                if not self._signs:
                    content = {**self._unwritten[0], "number": self._lines + 1}
                    hash_ = _hash(self._last, content)
                    _append(self._file, (_text({**content, "hash": hash_}) + "\n").encode())
                    self._lines, self._last, self._signs = self._lines + 1, hash_, True
                    self._unwritten.popleft()
                head = _signed(self._key, self._lines, self._last).encode()
                if os.pwrite(self._head, head, 0) != len(head):
                    return
                self._signs = False
        except OSError as error:
            if not blame.is_of_the_disk(error):
                raise

    def close(self) -> None:
        """Write waiting lines and close the files."""
        with self._lock:
            self._catch_up()
            if self._unwritten:
                self._say(f"{self._path}: the disk is full: {len(self._unwritten)} lines were not written")
            for file in (self._file, self._head):
                os.fsync(file)
                os.close(file)

    def _missing(self, unsigned: bool) -> str:
        """What the record lacks according to the head; empty if nothing."""
        head = _noted(self._path)
        if unsigned and (head is None or not head.mac):  # written at the server's end, if possible
            return f"{self._lines} lines, {head.lines} were noted" if head and head.lines > self._lines else ""
        if head is None:
            return f"{self._lines} lines without a head" if self._lines else ""
        # a crash between the two writes leaves the head one line behind
        if head.lines > self._lines or head.lines + 1 < self._lines:
            return f"{self._lines} lines, {head.lines} were noted"
        if head.mac != _mac(self._key, head.lines, head.last):
            return "the head is not signed with this key"
        same = head.last in (self._last, _before(self._path)) if self._lines else head.lines == 0
        return "" if same else f"its last line is not the one that was noted as number {head.lines}"


TORN = "record: half a line was set aside"
"""Event of a start after a crash in the middle of a line, whose client got no answer."""

BROKEN = "record: lines are missing before this one"
"""Event of a start with a changed record."""


def has_key(folder: Path) -> bool:
    """Whether a server signed a record in this folder before, with a key in the folder or elsewhere."""
    head = _noted(folder / "audit.jsonl")
    return (folder / "audit.key").exists() or bool(head and head.mac)


def audit_key(folder: Path, file: Path | None = None) -> bytes:
    """The key that signs the head: from a file, by default `audit.key` in the server's folder, which is made if
    missing.

    Args:
        file: of 64 hexadecimal digits, kept outside the reach of the server's folder.

    Raises:
        UserError: the file is missing, or holds no key.
    """
    path = file or folder / "audit.key"
    if file is None and not path.exists():
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "w", encoding="ascii") as target:
            target.write(secrets.token_hex(32) + "\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no key of an audit record: {error}", action="write 64 hexadecimal digits") from error
    if len(key) != 32:
        raise UserError(f"{path}: a key of {len(key)} bytes", action="write 64 hexadecimal digits")
    return key


def verify(path: Path, *, head: str = "", key: bytes | None = None) -> Verified:
    """Check every line of a record, and its end against its head.

    Args:
        key: of the head's signature; None: the signature is not checked.
        head: a hash noted earlier, which must be among its lines; empty for none.

    Raises:
        UserError: it was changed; names the first wrong line.
    """
    before, last, number, seen = FIRST, FIRST, 0, not head
    try:
        lines = path.open(encoding="utf-8", errors="backslashreplace")  # such a line is not JSON
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", action="name the audit record of a server") from error
    with lines:
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                claimed = content.pop("hash")
            except (ValueError, KeyError, AttributeError) as error:
                raise _changed(path, number, "the line does not belong to a record") from error
            if content.get("number") != number:
                raise _changed(path, number, f"it says that it is number {content.get('number')}")
            if _hash(last, content) != claimed:
                raise _changed(path, number, "its hash does not fit")
            if content.get("event") == BROKEN:
                gap = f"{path}:{number}: lines before this one are missing or rewritten: {content.get('outcome')}"
                raise UserError(gap, action=_ACTION)
            before, last, seen = last, claimed, seen or claimed == head
    noted = _noted(path)
    if noted is not None:
        if noted.lines > number:
            raise UserError(f"{path}: {number} lines, {noted.lines} were noted: its end is missing", action=_ACTION)
        if noted.lines in (number, number - 1) and noted.last not in (last, before):
            raise UserError(f"{path}: it does not end as its head says: it was rewritten", action=_ACTION)
        if key is not None and noted.mac != _mac(key, noted.lines, noted.last):
            raise UserError(f"{_head_of(path)}: it is not signed with this key", action=_ACTION)
    elif number and key is not None:
        raise UserError(f"{path}: its head is missing", action=_ACTION)
    if not seen:
        raise UserError(f"{path}: no line has the hash {head}: its end is missing or was rewritten", action=_ACTION)
    return Verified(number, last)


_ACTION = "compare with a copy kept elsewhere"


def _changed(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}:{number}: {what}: the record was changed here or before", action=_ACTION)


def _append(file: int, line: bytes) -> None:
    """Append a whole line, or nothing.

    Raises:
        OSError: the disk is full.
    """
    before = os.fstat(file).st_size
    try:
        written = 0
        while written < len(line):  # a short count is not an error: the next write raises it
            written += os.write(file, line[written:])
    except OSError:
        os.ftruncate(file, before)
        raise


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _hash(last: str, content: dict[str, Any]) -> str:
    return hashlib.sha256((last + _text(content)).encode()).hexdigest()


@dataclass(frozen=True)
class _Head:
    """The end of a record."""

    lines: int
    last: str
    mac: str


def _head_of(path: Path) -> Path:
    return path.with_suffix(".head")


def _noted(path: Path) -> _Head | None:
    """The head of a record; None without one.

    Raises:
        UserError: the file holds something else.
    """
    try:
        text = _head_of(path).read_text(encoding="utf-8")
        if not text.strip():
            return None
        head = json.loads(text)
        return _Head(int(head["lines"]), str(head["head"]), str(head.get("mac", "")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_head_of(path)}: it does not hold the head of a record", action=_ACTION) from error


def _signed(key: bytes, lines: int, last: str) -> str:
    """The text of a head. Its length never decreases, so overwriting leaves no rest of the previous one."""
    return _text({"lines": lines, "head": last, "mac": _mac(key, lines, last)}) + "\n"


def _mac(key: bytes, lines: int, last: str) -> str:
    return hmac.new(key, f"{lines} {last}".encode(), hashlib.sha256).hexdigest()


def _before(path: Path) -> str:
    """The hash of the last line but one; of an empty record, the start of the chain."""
    lines = path.read_bytes().splitlines()[-2:]
    return str(json.loads(lines[0])["hash"]) if len(lines) == 2 else FIRST


def _set_torn_line_aside(path: Path) -> int:
    """Move an incomplete line, left by a crash and never acknowledged, into a file next to the record; return its
    bytes."""
    if not path.exists() or not path.stat().st_size:
        return 0
    with path.open("r+b") as file:
        content = file.read()
        if content.endswith(b"\n"):
            return 0
        whole = content.rfind(b"\n") + 1
        with path.with_suffix(".torn").open("ab") as aside:
            aside.write(content[whole:] + b"\n")
        file.truncate(whole)
        return len(content) - whole


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
