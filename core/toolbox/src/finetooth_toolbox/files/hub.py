"""Detects once, within seconds, that the model hub does not answer; its libraries would try for a minute.

Imports huggingface_hub, which every plugin that uses the hub has installed.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any

WAIT = 5.0
"""Seconds within which the hub must answer."""
LASTS = 60.0
"""Seconds for which the result of a check is valid."""

_lock = Lock()
_known: dict[str, tuple[float, str]] = {}
"""Time and problem of the last check, by address."""


def why_unreachable() -> str:
    """The reason why the hub is unreachable, for a message: the user wants to stay offline, or nothing answers. Empty
    if it is reachable.

    The check uses the proxies, certificates and address (`HF_ENDPOINT`) of the hub's own client.
    """
    constants = _constants()
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    with _lock:
        checked, why = _known.get(constants.ENDPOINT, (-LASTS, ""))
        if time.monotonic() - checked >= LASTS:
            why = _ask(constants.ENDPOINT)
            _known[constants.ENDPOINT] = (time.monotonic(), why)
        return why


@contextmanager
def without_retries() -> Iterator[str]:
    """Inside the `with` block, libraries of an unreachable hub use only local files; otherwise they would retry every
    file. Yields the reason; empty if the hub is reachable or the user wants to stay offline."""
    offline = _constants().HF_HUB_OFFLINE
    why = "" if offline else why_unreachable()
    # the values that HF_HUB_OFFLINE=1 sets at their import
    switches: list[Any] = [
        module for module in (_constants(), sys.modules.get("datasets.config")) if module is not None
    ]
    before = [module.HF_HUB_OFFLINE for module in switches]
    try:
        for module in switches if why else ():
            module.HF_HUB_OFFLINE = True
        yield why
    finally:
        for module, value in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _ask(address: str) -> str:
    """The reason why an address is unreachable; empty after any answer."""
    from huggingface_hub import get_session

    answers: list[str] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=WAIT)
            answers.append("")
        except Exception as error:  # the client's exceptions differ between its versions
            text = re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split()))
            answers.append(text[:100] or type(error).__name__)

    # a timeout does not limit the lookup of a name
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT)
    return answers[0] if answers else f"no answer within {WAIT:.0f} s"


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
