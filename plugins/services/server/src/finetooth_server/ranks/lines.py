"""The two ends of the line between a server and a rank: requests, messages and replies, one JSON value per line."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from finetooth_wire import json_parts

STOP = b'"stop"'
"""The line that asks a rank to stop its computation; ignored if too late."""

BEAT = 1.0
"""Seconds between two signs of life of a rank that computes: empty lines."""


class RankLine:
    """The server's end.

    Attributes:
        heard: time of the last message or request, by a monotonic clock.
        started: whether any message came.
        reply: to the last request; None so far.
    """

    def __init__(self, line: socket.socket) -> None:
        line.setblocking(False)
        self._line, self._unsent, self._came = line, bytearray(), bytearray()
        self.heard, self.started = time.monotonic(), False
        self.reply: dict[str, Any] | None = None

    def fileno(self) -> int:
        """For a selector."""
        return self._line.fileno()

    @property
    def sends(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._unsent)

    def ask(self, text: bytes) -> None:
        """Queue a request, whose reply follows."""
        self._unsent += text + b"\n"
        self.reply, self.heard = None, time.monotonic()

    def stop(self) -> None:
        """Queue a request to stop."""
        self._unsent += STOP + b"\n"

    def move(self) -> list[Any] | None:
        """Send and read without waiting.

        Returns:
            The rank's messages before its reply; None: it closed the line.
        """
        with suppress(BlockingIOError):
            if self._unsent:
                del self._unsent[: self._line.send(self._unsent)]
        try:
            part = self._line.recv(1 << 20)
        except BlockingIOError:
            return []
        if not part:
            return None
        self.heard, self.started = time.monotonic(), True
        self._came += part
        lines = self._came.split(b"\n") if b"\n" in part else [self._came]
        self._came = lines.pop()
        said = [json.loads(text) for text in lines if text]
        self.reply = next((value for value in said if "before" not in value), None)
        return [value["before"] for value in said if "before" in value]

    def close(self) -> None:
        """Hang up."""
        self._line.close()


class ServerLine:
    """A rank's end. While it computes, a thread gives signs of life.

    Args:
        line: that the process inherited.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line, self._came, self._stopped = line, b"", False
        self._computes, self._sending = threading.Event(), threading.Lock()
        threading.Thread(target=self._beat, name="finetooth-beat", daemon=True).start()

    def request(self) -> Mapping[str, Any] | None:
        """The next request; None: the server closed the line."""
        while True:
            text, end, rest = self._came.partition(b"\n")
            if end:
                self._came = rest
                if text != STOP:
                    self._stopped = False
                    self._computes.set()
                    request: Mapping[str, Any] = json_parts.loads(text)
                    return request
            elif part := self._line.recv(1 << 20):
                self._came += part
            else:
                return None

    def stopped(self) -> bool:
        """Whether the server asked to stop."""
        while not self._stopped and select.select([self._line], [], [], 0)[0]:
            part = self._line.recv(1 << 16)
            self._came += part
            self._stopped = not part or STOP in self._came  # while a rank computes, nothing else comes
        return self._stopped

    def say(self, value: Any) -> None:
        """Send a message before the reply."""
        self._send({"before": value})

    def reply(self, value: Mapping[str, Any]) -> None:
        """Send the reply."""
        self._computes.clear()
        self._send(value)

    def _send(self, value: Any) -> None:
        text = json.dumps(value).encode() + b"\n"
        with self._sending:
            self._line.sendall(text)

    def _beat(self) -> None:
        with suppress(OSError):  # the server closed the line
            while self._computes.wait():
                with self._sending:
                    if self._computes.is_set():
                        self._line.sendall(b"\n")
                time.sleep(BEAT)
