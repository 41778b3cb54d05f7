"""Checks the disk space of a server's records.

A call that cannot be recorded is refused: with less than `LEAST` free, requests get 503 and clients wait. Calls that
run when the disk fills up wait for space before their end is recorded; nothing is lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from finetooth_server.faults import DiskFull

if TYPE_CHECKING:
    from finetooth_server.service import Service

LEAST = 4 * 2**20
"""Bytes reserved for the ends of running calls."""

PAUSE = 0.5
"""Seconds between two attempts to write while the disk is full."""

Method = TypeVar("Method", bound=Callable[..., Any])


def check_room(folder: Path) -> None:
    """Check that a server's folder has room for the records of another request.

    Raises:
        DiskFull: it has not.
    """
    if shutil.disk_usage(folder).free < LEAST:
        raise DiskFull


def state_of(service: Service) -> Literal["ok", "failing"]:
    """The health of a server; it fails while requests are refused."""
    try:
        check_room(service.settings.folder)
    except DiskFull:
        return "failing"
    return "failing" if service.writer.broken or service.audit.behind else "ok"


def until_room(method: Method) -> Method:
    """A method that is repeated while the disk is full, until its object's event `ended` is set."""

    @wraps(method)
    def patient(self: Any, *args: Any, **named: Any) -> Any:
        while True:
            try:
                return method(self, *args, **named)
            except DiskFull:
                if self.ended.wait(PAUSE):
                    raise

    return cast(Method, patient)
